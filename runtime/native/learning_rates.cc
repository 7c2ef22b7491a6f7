#include "learning_rates.h"

#include <cmath>
#include <numbers>

namespace tinytl {

double cosine(int64_t step, int64_t total) {
  return 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(step) / static_cast<double>(total)));
}

}  // namespace tinytl
