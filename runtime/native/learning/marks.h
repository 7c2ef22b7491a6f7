// Which labels samples have, of labels that stand beside each other (multi-label).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tinytl {

struct Marks {
  const std::vector<uint8_t>& values;  // [samples][labels], 0 or 1
  size_t labels;

  bool has(int64_t sample, size_t label) const { return values[static_cast<size_t>(sample) * labels + label] != 0; }
};

// log(1 + exp(x)), the cross-entropy of a logit -x of a label that a sample has; without overflow.
inline double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

}  // namespace tinytl
