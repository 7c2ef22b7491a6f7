// A linear classifier of features, fitted in closed form.
#pragma once

#include <cstdint>
#include <vector>

#include "linear_fit.h"

namespace tinytl {

// Linear discriminant analysis: images of a class lie around its mean as those of any other class around theirs.
//
//   S = sum over samples of r r^T / N, r = x - m_y,   A = (1 - s) S + s max(tr(S) / d, 0.0001) I,
//   logit_c = t (m_c^T A^-1 x - m_c^T A^-1 m_c / 2),   all classes being as likely.
//
// Where all images look alike to the network, as with random weights, a classifier that tells them apart all the same would
// be so steep that no training, whose steps are as long for any network, could go on from it: hence the least variance.
//
// The shrinkage s (Friedman, Regularized discriminant analysis, 1989) and the scale t are those of the lowest
// cross-entropy when each sample is left out in turn, t with the label smoothing that training goes on with. Nothing is
// fitted anew for that: without sample i of a class of n, m_y' = m_y - r / (n - 1) and N S' = N S - n / (n - 1) r r^T, whose
// inverse Sherman and Morrison give.
//
// Where samples are fewer than features, they are replaced by coordinates in the space that they span, on which all of
// this depends alone; where memory is short, in the space that so many of them span as there is room for.
//
// labels[rows.count()] < classes. A class without samples gets a logit a little below the others' mean.
LinearFit fit_discriminant(const Rows& rows, const std::vector<int32_t>& labels, int classes, const Terms& terms,
                           const TakeWeight& take);

}  // namespace tinytl
