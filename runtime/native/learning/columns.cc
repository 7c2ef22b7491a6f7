#include "columns.h"

#include <algorithm>

namespace tinytl {
namespace {

constexpr int64_t kGroup = Triangle::kPanel;

}  // namespace

void transpose(const float* rows, int64_t count, int64_t width, float* columns) {
  for (int64_t lane = 0; lane < kGroup; ++lane)
    for (int64_t k = 0; k < width; ++k) columns[k * kGroup + lane] = lane < count ? rows[lane * width + k] : 0;
}

void solve_rows(const Triangle& factor, const float* rows, size_t count, float* solved) {
  const int64_t width = factor.order(), all = static_cast<int64_t>(count);
  std::vector<float> columns(static_cast<size_t>(width * kGroup));
  for (int64_t first = 0; first < all; first += kGroup) {
    const int64_t size = std::min(kGroup, all - first);
    transpose(rows + first * width, size, width, columns.data());
    factor.solve(columns.data());
    factor.solve_transposed(columns.data());
    for (int64_t lane = 0; lane < size; ++lane)
      for (int64_t k = 0; k < width; ++k)
        solved[(first + lane) * width + k] = columns[static_cast<size_t>(k * kGroup + lane)];
  }
}

}  // namespace tinytl
