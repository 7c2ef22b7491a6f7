// What a linear classifier that is fitted in closed form comes to, and what every such fit takes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../errors.h"
#include "../unknown.h"
#include "labelled_rows.h"
#include "span.h"

namespace tinytl {

struct LinearFit {
  double shrinkage = NAN, pull = NAN;  // how much of it the fit took, if it takes any
  // Of samples that are left out of the fit, each class being as important; how many samples that is.
  double loss = 0, accuracy = 0;
  int64_t left_out = 0;
  // The accuracy on samples of the place that the classifier comes from, before and now, which are left out, too.
  double kept_before = NAN, kept = NAN;
  std::vector<Sure> answers;  // of these samples; of one label each alone
};

struct Terms {
  int64_t features;    // numbers of a row that are not padding
  double smoothing;    // of the labels
  int64_t room;        // bytes of memory that the fit may take
  std::string folder;  // for what does not have to be in memory
};

// Takes a class's row of the classifier: logit = weight features + bias, weight [rows.width()].
using TakeWeight = std::function<void(size_t label, const float* weight, float bias)>;

inline constexpr std::array kShrinkages{0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9};
constexpr int64_t kMostScores = 1 << 18;  // of samples left out, in memory
constexpr double kLeastRest = 1e-6;       // of a sample's own share in what is said of it; rounding may take it all
constexpr double kLeastVariance = 1e-4;   // of a feature

// The variance of a feature of samples whose squares sum up to `scatter`, on the mean.
inline double variance_of(double scatter, int64_t samples, int64_t features) {
  if (!std::isfinite(scatter)) fail(kData, "The network's features of these images are no numbers.");
  return std::max(scatter / static_cast<double>(samples) / static_cast<double>(features), kLeastVariance);
}

// What a fit takes in rows of `width` numbers: the matrix, a row and another for each class, and some that are looked at.
inline int64_t bytes_in_room(int64_t width, int64_t classes) {
  return (width / 2 + 2 * classes + LabelledRows::kBatch + 2 * Triangle::kPanel) * width * static_cast<int64_t>(sizeof(float));
}

// Lets a Fit(rows, labels, classes, terms, scores) find its best classifier of rows, or of coordinates in the space that they
// span, where these are fewer, or in the space that so many of them span as there is room for.
template <typename Fit, typename Labels>
LinearFit fit_in_room(const Rows& rows, const Labels& labels, int classes, const Terms& terms, const TakeWeight& take) {
  const auto count = static_cast<size_t>(classes);
  const int64_t scores = std::clamp<int64_t>(terms.room / 32, kMostScores / 64, kMostScores);
  const int64_t room = terms.room - scores * static_cast<int64_t>(sizeof(float));
  if (rows.count() >= rows.width() && Fit::bytes(rows.width(), classes) <= room) {
    Fit fit(rows, labels, count, terms, scores);
    const LinearFit found = fit.best();
    for (size_t c = 0; c < count; ++c) take(c, &fit.weight[c * static_cast<size_t>(rows.width())], fit.bias[c]);
    return found;
  }
  int64_t basis = Triangle::padded(std::min(rows.count(), rows.width()));
  while (basis > Triangle::kPanel && Span::bytes(basis, rows.width()) + Fit::bytes(basis, classes) > room)
    basis -= Triangle::kPanel;
  const Span span(rows, basis, terms.folder);
  Fit fit(span.coordinates(), labels, count, terms, scores);
  const LinearFit found = fit.best();
  span.lead_back(fit.weight, [&](size_t c, const float* weight, float shift) { take(c, weight, fit.bias[c] + shift); });
  return found;
}

}  // namespace tinytl
