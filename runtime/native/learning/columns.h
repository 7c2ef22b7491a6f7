// What a factored triangle solves for, sixteen right-hand sides at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/parallel.h"
#include "../kernels/triangle.h"

namespace tinytl {

// Rows [count][width] as columns [width][16]; count <= 16, the others are zero.
void transpose(const float* rows, int64_t count, int64_t width, float* columns);

// A^-1 of each row of [count][order], where `factor` is that of A.
void solve_rows(const Triangle& factor, const float* rows, size_t count, float* solved);

// For each of `count` rows r, in parallel: read(number, r [order]), then see(number, r^T A^-1 r).
template <typename Read, typename See>
void each_length(const Triangle& factor, size_t count, Read read, See see) {
  constexpr size_t kGroup = Triangle::kPanel;
  const auto width = static_cast<size_t>(factor.order());
  parallel_shares(static_cast<int>((count + kGroup - 1) / kGroup), [&](int begin, int end) {
    std::vector<float> row(width), columns(width * kGroup);
    for (size_t first = static_cast<size_t>(begin) * kGroup; first < std::min(static_cast<size_t>(end) * kGroup, count);
         first += kGroup) {
      const size_t size = std::min(kGroup, count - first);
      std::fill(columns.begin(), columns.end(), 0.0f);
      for (size_t lane = 0; lane < size; ++lane) {
        read(first + lane, row.data());
        for (size_t k = 0; k < width; ++k) columns[k * kGroup + lane] = row[k];
      }
      factor.solve(columns.data());
      for (size_t lane = 0; lane < size; ++lane) {
        double length = 0;
        for (size_t k = 0; k < width; ++k) {
          const auto value = static_cast<double>(columns[k * kGroup + lane]);
          length += value * value;
        }
        see(first + lane, length);
      }
    }
  });
}

}  // namespace tinytl
