// A linear classifier of features, fitted in closed form.
#pragma once

#include <cstdint>
#include <vector>

#include "rows.h"

namespace tinytl {

// The classifier: logits = weight features + bias.
struct Discriminant {
  std::vector<float> weight;  // [classes][rows.width()]
  std::vector<float> bias;    // [classes]
  double shrinkage = 0;
  // Of a sample that is left out of the fit, with each class as important as any other; how many samples that is.
  double loss = 0, accuracy = 0;
  int64_t left_out = 0;
};

// Linear discriminant analysis: images of a class lie around its mean as those of any other class around theirs.
//
//   S = sum over samples of r r^T / N, r = x - m_y,   A = (1 - s) S + s tr(S) / d I,
//   logit_c = t (m_c^T A^-1 x - m_c^T A^-1 m_c / 2),   all classes being as likely.
//
// The shrinkage s (Friedman, Regularized discriminant analysis, 1989) and the scale t are those of the lowest
// cross-entropy when each sample is left out in turn, t with the label smoothing that training goes on with, for which nothing is fitted anew: without sample i of a class of
// n, m_y' = m_y - r / (n - 1) and N S' = N S - n / (n - 1) r r^T, whose inverse Sherman and Morrison give.
//
// Where samples are fewer than features, they are replaced by coordinates in the space that they span: rows of the
// Cholesky factor of their inner products, on which all of this depends alone.
//
// labels[rows.count()] < classes; `features` numbers of a row are not padding. A class without samples gets a logit a
// little below the others' mean.
Discriminant fit_discriminant(const Rows& rows, const std::vector<int32_t>& labels, int classes, int64_t features,
                               double smoothing);

}  // namespace tinytl
