// A linear classifier of labels that stand beside each other (multi-label), fitted in closed form.
#pragma once

#include "linear_fit.h"
#include "marks.h"

namespace tinytl {

// Ridge regression of every label y (0 or 1) on features x, which for two groups is their discriminant, and one matrix for
// all labels:
//
//   S = sum over samples of r r^T / N, r = x - mean(x),   A = (1 - s) S + s max(tr(S) / d, 0.0001) I,
//   score(x) = (1 - s) c^T A^-1 r,   c = sum over samples of (y - mean(y)) r / N,
//   logit = a score + b.
//
// A sample i that is left out in turn has the score y - mean(y) - (y - mean(y) - score) / (1 - h),
// h = (1 + (1 - s) r^T A^-1 r) / N. Of such scores a and b are those of the lowest cross-entropy, to targets as sure as the
// number of samples with and without the label allows (Platt, Probabilistic outputs for support vector machines, 1999), or
// as the label smoothing that training goes on with; the shrinkage s is the one of the lowest.
//
// A label that all samples have, or none, has weights of zero.
LinearFit fit_labels(const Rows& rows, const Marks& marks, const Terms& terms, const TakeWeight& take);

}  // namespace tinytl
