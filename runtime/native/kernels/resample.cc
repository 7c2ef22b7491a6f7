// Linear maps of the rows and of the columns of a map, whose matrices are bands: pads, crops, resizes, pools.
#include <algorithm>

#include "kernels.h"
#include "parallel.h"

namespace tinytl {
namespace {

// For each result, body(the pixel of the larger map that it takes, its weight), of those that are not zero.
template <class Body>
void each_tap(const Geometry& g, const Bands& rows, const Bands& columns, int32_t row, int32_t column, const Body& body) {
  const float* down = rows.values + int64_t{row} * (1 + rows.taps);
  const float* across = columns.values + int64_t{column} * (1 + columns.taps);
  const auto top = static_cast<int32_t>(down[0]), left = static_cast<int32_t>(across[0]);
  for (int32_t i = 0; i < rows.taps; ++i) {
    if (down[1 + i] == 0) continue;
    for (int32_t j = 0; j < columns.taps; ++j) {
      const float weight = down[1 + i] * across[1 + j];
      if (weight != 0) body(int64_t{top + i} * g.in_width + left + j, weight);
    }
  }
}

}  // namespace

void resample_forward(const float* x, float* y, const Geometry& g, const Bands& rows, const Bands& columns) {
  const int64_t channels = g.in_channels;
  parallel(Slices(g.out_height, 1), [&](int64_t begin, int64_t end) {
    float* to = y + begin * g.out_width * channels;
    for (auto row = static_cast<int32_t>(begin); row < end; ++row) {
      for (int32_t column = 0; column < g.out_width; ++column, to += channels) {
        std::fill(to, to + channels, 0.0f);
        each_tap(g, rows, columns, row, column, [&](int64_t pixel, float weight) {
          const float* from = x + pixel * channels;
          for (int64_t c = 0; c < channels; ++c) to[c] += weight * from[c];
        });
      }
    }
  });
}

void resample_dx(const float* dy, float* dx, const Geometry& g, const Bands& rows, const Bands& columns) {
  const int64_t channels = g.in_channels;
  parallel_channels(g.in_channels, [&](int32_t begin, int32_t end) {
    for (int64_t p = 0; p < int64_t{g.in_height} * g.in_width; ++p)
      std::fill(dx + p * channels + begin, dx + p * channels + end, 0.0f);
    const float* from = dy;
    for (int32_t row = 0; row < g.out_height; ++row) {
      for (int32_t column = 0; column < g.out_width; ++column, from += channels) {
        each_tap(g, rows, columns, row, column, [&](int64_t pixel, float weight) {
          float* to = dx + pixel * channels;
          for (int32_t c = begin; c < end; ++c) to[c] += weight * from[c];
        });
      }
    }
  });
}

}  // namespace tinytl
