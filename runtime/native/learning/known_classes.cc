#include "known_classes.h"

#include <algorithm>

namespace tinytl {
namespace {

constexpr float kKept = 0.25f;  // of a known class's row; docs/accuracy.md compares others

// Of the rows, biases behind them, of those classes that are both known and present.
std::vector<float> mean_of(const Linear& linear, size_t known, const std::vector<bool>& present) {
  std::vector<float> mean(static_cast<size_t>(linear.features) + 1);
  float count = 0;
  for (size_t c = 0; c < known; ++c) {
    if (!present[c]) continue;
    const float share = 1 / ++count;
    for (size_t k = 0; k + 1 < mean.size(); ++k) mean[k] += share * (linear.row(c)[k] - mean[k]);
    mean.back() += share * (linear.bias[c] - mean.back());
  }
  return mean;
}

}  // namespace

void keep_known(const Linear& before, const std::vector<bool>& present, Linear* found) {
  const size_t known = before.classes();
  const std::vector<float> mean_before = mean_of(before, known, present), mean_found = mean_of(*found, known, present);
  const size_t features = mean_found.size() - 1;
  for (size_t c = 0; c < found->classes(); ++c) {
    float *row = found->row(c), *bias = &found->bias[c];
    if (c < known && !present[c]) {
      std::copy(before.row(c), before.row(c) + features, row);
      *bias = before.bias[c];
      continue;
    }
    for (size_t k = 0; k < features; ++k) row[k] += mean_before[k] - mean_found[k];
    *bias += mean_before[features] - mean_found[features];
    if (c >= known) continue;
    for (size_t k = 0; k < features; ++k) row[k] += kKept * (before.row(c)[k] - row[k]);
    *bias += kKept * (before.bias[c] - *bias);
  }
}

}  // namespace tinytl
