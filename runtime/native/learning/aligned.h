// A classifier taken to a place of which there are images without labels.
#pragma once

#include <cstdint>
#include <vector>

#include "linear.h"
#include "linear_fit.h"

namespace tinytl {

// Where light and camera alone are others, features are others by as much for every class. Then
//
//   d = mean of the features here - mean of the classes' means there,   W (x - share d) + b = W x + (b - share W d):
//
// taking that off is another bias. The share is six tenths of the way (all of it gains a little more where classes are as
// frequent here as there, and loses more where they are not: docs/accuracy.md), less where chance alone would bring the means so
// far apart: times 1 - (variance of d) / |d|^2, as James and Stein (1961) shrink a mean.
//
// Of few classes that are here alone d is what tells them from others, and taking it off harms. Then answers become less sure;
// where they do, and a second classifier (the discriminant of what was kept) does not agree more often either, it `helps` not.
struct Aligned {
  std::vector<double> off;  // of each class's bias
  double share = 0;
  // As answers were, and at the mean itself: the likeliest class's probability, and how often the second classifier agrees.
  double sure_before = 0, sure = 0, agreed_before = 0, agreed = 0;

  bool helps() const { return sure > sure_before - 0.05 || agreed > agreed_before + 0.1; }
};

// The first rows are of here, the last, as many as `labels`, of there, of every class some.
Aligned align(const Rows& rows, const std::vector<int32_t>& labels, const Linear& before, const Terms& terms);

}  // namespace tinytl
