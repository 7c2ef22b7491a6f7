// A classifier that knows its classes, fitted to further samples.
#pragma once

#include "linear.h"
#include "linear_fit.h"
#include "logistic.h"

namespace tinytl {

constexpr double kMostGivenUp = 0.03;  // of the accuracy where a deployed classifier comes from

// Logistic regression that is pulled towards the classifier that there is: of its rows W, biases behind the weights, and
// samples x, which have a 1 there,
//
//   sum over samples of share cross-entropy(W x) + pull q / 2 |W - W_before|^2,   q = mean of |x|^2,
//
// is least; every class that there are samples of has the same share, and is told from these alone: what is known of classes
// without samples stays. What a row gains is a sum of samples (Schoelkopf,
// Herbrich and Smola, A generalized representer theorem, 2001), so that only their shares in it are looked for, by
// conjugate gradients on the products of samples with each other: no feature is read again for that.
//
// The pull is the strongest whose loss of samples that are left out is no more than a standard error above the lowest
// (Breiman et al., Classification and regression trees, 1984, section 3.4.3): it is what keeps what the classifier knew of
// the place where it comes from, of which there are no samples (docs/accuracy.md). A fifth is left out at a time, and
// neighbours, which may be of one scene, together. Of few samples it is a usual pull.
//
// Samples that were kept of that place stand for it, and have a share in the mean loss: their classes stay what they are there.
// No pull is taken by which, left out, more than 3 points of them are lost, if there is one by which they are not.
//
// Of more samples than there is room for some are taken. `take` gets the rows one after another.
struct Kept {
  int64_t count = 0;  // so many of the last rows are of that place
  double share = 0;
};
LinearFit fit_pulled(const Rows& rows, const Truth& truth, const Linear& before, const Kept& kept, const Terms& terms,
                     const TakeWeight& take);

}  // namespace tinytl
