#include <algorithm>

#include "kernels.h"

namespace tinytl {
namespace {

// What of an output pixel's window lies within the input: rows [top, bottom), columns [left, right).
struct Window {
  int32_t top, bottom, left, right;
  int32_t corner_y, corner_x;  // of the whole window
};

template <class Body>
void each_window(const Geometry& g, Body body) {
  for (int32_t oy = 0; oy < g.out_height; ++oy) {
    for (int32_t ox = 0; ox < g.out_width; ++ox) {
      const int32_t y = oy * g.stride_height - g.pad_top, x = ox * g.stride_width - g.pad_left;
      body(Window{std::max(y, 0), std::min(y + g.kernel_height, g.in_height), std::max(x, 0),
                  std::min(x + g.kernel_width, g.in_width), y, x});
    }
  }
}

// body(where in the input the pixel begins, the pixel's number in its window).
template <class Body>
void each_pixel(const Geometry& g, const Window& w, Body body) {
  for (int32_t y = w.top; y < w.bottom; ++y) {
    for (int32_t x = w.left; x < w.right; ++x) {
      body((int64_t{y} * g.in_width + x) * g.in_channels, (y - w.corner_y) * g.kernel_width + x - w.corner_x);
    }
  }
}

float share_of(const Geometry& g, const Window& w, bool include_pad) {
  int32_t height = w.bottom - w.top, width = w.right - w.left;
  if (include_pad) {
    height = std::min(g.kernel_height, g.in_height + g.pad_top - w.corner_y);
    width = std::min(g.kernel_width, g.in_width + g.pad_left - w.corner_x);
  }
  return 1.0f / (static_cast<float>(height) * static_cast<float>(width));
}

}  // namespace

void average_pool_forward(const float* x, float* y, const Geometry& g, bool include_pad) {
  const int32_t channels = g.in_channels;
  each_window(g, [&](const Window& w) {
    std::fill(y, y + channels, 0.0f);
    each_pixel(g, w, [&](int64_t at, int32_t) {
      for (int32_t c = 0; c < channels; ++c) y[c] += x[at + c];
    });
    const float share = share_of(g, w, include_pad);
    for (int32_t c = 0; c < channels; ++c) y[c] *= share;
    y += channels;
  });
}

void average_pool_dx(const float* dy, float* dx, const Geometry& g, bool include_pad) {
  const int32_t channels = g.in_channels;
  std::fill(dx, dx + int64_t{g.in_height} * g.in_width * channels, 0.0f);
  each_window(g, [&](const Window& w) {
    const float share = share_of(g, w, include_pad);
    each_pixel(g, w, [&](int64_t at, int32_t) {
      for (int32_t c = 0; c < channels; ++c) dx[at + c] += dy[c] * share;
    });
    dy += channels;
  });
}

void max_pool_forward(const float* x, float* y, uint8_t* index, const Geometry& g) {
  const int32_t channels = g.in_channels;
  each_window(g, [&](const Window& w) {
    bool first = true;
    each_pixel(g, w, [&](int64_t at, int32_t pixel) {
      const float* from = x + at;
      const auto number = static_cast<uint8_t>(pixel);
      if (first) {
        std::copy(from, from + channels, y);
        if (index) std::fill(index, index + channels, number);
        first = false;
        return;
      }
      for (int32_t c = 0; c < channels; ++c) {
        const bool wins = from[c] > y[c] || from[c] != from[c];  // NaN is the largest: it must not get lost
        y[c] = wins ? from[c] : y[c];
        if (index) index[c] = wins ? number : index[c];
      }
    });
    y += channels;
    if (index) index += channels;
  });
}

void max_pool_dx(const float* dy, const uint8_t* index, float* dx, const Geometry& g) {
  const int32_t channels = g.in_channels;
  std::fill(dx, dx + int64_t{g.in_height} * g.in_width * channels, 0.0f);
  each_window(g, [&](const Window& w) {
    each_pixel(g, w, [&](int64_t at, int32_t pixel) {
      const auto number = static_cast<uint8_t>(pixel);
      for (int32_t c = 0; c < channels; ++c) dx[at + c] += index[c] == number ? dy[c] : 0.0f;
    });
    dy += channels;
    index += channels;
  });
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
