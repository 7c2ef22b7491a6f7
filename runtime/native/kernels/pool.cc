#include <algorithm>

#include "kernels.h"

namespace tinytl {

void average_pool_forward(const float* x, float* y, const Geometry& g) {
  const int32_t channels = g.in_channels;
  const float share = 1.0f / static_cast<float>(g.kernel_height * g.kernel_width);
  for (int32_t oy = 0; oy < g.out_height; ++oy) {
    for (int32_t ox = 0; ox < g.out_width; ++ox, y += channels) {
      std::fill(y, y + channels, 0.0f);
      for (int32_t i = 0; i < g.kernel_height; ++i) {
        for (int32_t j = 0; j < g.kernel_width; ++j) {
          const int64_t pixel = int64_t{oy * g.stride_height + i} * g.in_width + ox * g.stride_width + j;
          const float* from = x + pixel * channels;
          for (int32_t c = 0; c < channels; ++c) y[c] += from[c];
        }
      }
      for (int32_t c = 0; c < channels; ++c) y[c] *= share;
    }
  }
}

void average_pool_dx(const float* dy, float* dx, const Geometry& g) {
  const int32_t channels = g.in_channels;
  const float share = 1.0f / static_cast<float>(g.kernel_height * g.kernel_width);
  std::fill(dx, dx + int64_t{g.in_height} * g.in_width * channels, 0.0f);
  for (int32_t oy = 0; oy < g.out_height; ++oy) {
    for (int32_t ox = 0; ox < g.out_width; ++ox, dy += channels) {
      for (int32_t i = 0; i < g.kernel_height; ++i) {
        for (int32_t j = 0; j < g.kernel_width; ++j) {
          const int64_t pixel = int64_t{oy * g.stride_height + i} * g.in_width + ox * g.stride_width + j;
          float* to = dx + pixel * channels;
          for (int32_t c = 0; c < channels; ++c) to[c] += dy[c] * share;
        }
      }
    }
  }
}

void global_pool_forward(const float* x, float* y, int32_t pixels, int32_t channels) {
  std::fill(y, y + channels, 0.0f);
  for (int32_t p = 0; p < pixels; ++p, x += channels) {
    for (int32_t c = 0; c < channels; ++c) y[c] += x[c];
  }
  const float share = 1.0f / static_cast<float>(pixels);
  for (int32_t c = 0; c < channels; ++c) y[c] *= share;
}

void global_pool_dx(const float* dy, float* dx, int32_t pixels, int32_t channels) {
  const float share = 1.0f / static_cast<float>(pixels);
  for (int32_t p = 0; p < pixels; ++p, dx += channels) {
    for (int32_t c = 0; c < channels; ++c) dx[c] = dy[c] * share;
  }
}

}  // namespace tinytl
