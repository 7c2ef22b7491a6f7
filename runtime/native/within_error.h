// Whether some losses are higher than others, or may be so by chance.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace tinytl {

// The mean of value(sample) over those of [first, end), by their shares.
template <typename Value>
double mean_of(const std::vector<double>& shares, size_t first, size_t end, const Value& value) {
  double mean = 0, sum = 0;
  for (size_t i = first; i < end; ++i) {
    mean += shares[i] * value(i);
    sum += shares[i];
  }
  return mean / sum;
}

// Of the first `count` samples: is the mean of losses, by shares, above that of others by no more than a standard error of
// their differences?
inline bool within_error(const std::vector<double>& losses, const std::vector<double>& others,
                         const std::vector<double>& shares, size_t count) {
  const double mean = mean_of(shares, 0, count, [&](size_t i) { return losses[i] - others[i]; });
  double squares = 0, sum = 0;
  for (size_t i = 0; i < count; ++i) {
    const double apart = shares[i] * (losses[i] - others[i] - mean);
    squares += apart * apart;
    sum += shares[i];
  }
  return mean <= std::sqrt(squares) / sum;
}

}  // namespace tinytl
