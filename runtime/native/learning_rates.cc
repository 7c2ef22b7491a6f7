#include "learning_rates.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tinytl {

double schedule(int64_t step, int64_t total) {
  const auto warm_up = static_cast<double>((total + 9) / 10), at = static_cast<double>(step);
  return std::min(1.0, (at + 1) / warm_up) * 0.5 * (1 + std::cos(std::numbers::pi * at / static_cast<double>(total)));
}

}  // namespace tinytl
