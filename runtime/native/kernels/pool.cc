#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

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

// Zeros in channels [begin, end) of the input's gradient.
void zero_channels(float* dx, const Geometry& g, int32_t begin, int32_t end) {
  for (int64_t p = 0; p < int64_t{g.in_height} * g.in_width; ++p, dx += g.in_channels) {
    std::fill(dx + begin, dx + end, 0.0f);
  }
}

}  // namespace

void average_pool_forward(const float* x, float* y, const Geometry& g, bool include_pad) {
  parallel_channels(g.in_channels, [&](int32_t begin, int32_t end) {
    float* to = y;
    each_window(g, [&](const Window& w) {
      std::fill(to + begin, to + end, 0.0f);
      each_pixel(g, w, [&](int64_t at, int32_t) {
        for (int32_t c = begin; c < end; ++c) to[c] += x[at + c];
      });
      const float share = share_of(g, w, include_pad);
      for (int32_t c = begin; c < end; ++c) to[c] *= share;
      to += g.in_channels;
    });
  });
}

void average_pool_dx(const float* dy, float* dx, const Geometry& g, bool include_pad) {
  parallel_channels(g.in_channels, [&](int32_t begin, int32_t end) {
    zero_channels(dx, g, begin, end);
    const float* from = dy;
    each_window(g, [&](const Window& w) {
      const float share = share_of(g, w, include_pad);
      each_pixel(g, w, [&](int64_t at, int32_t) {
        for (int32_t c = begin; c < end; ++c) dx[at + c] += from[c] * share;
      });
      from += g.in_channels;
    });
  });
}

namespace {

// work(V, c) for the vectors V of channels [begin, end), the last ones one by one.
template <class Work>
TINYTL_INLINE void each_vector(int32_t begin, int32_t end, const Work& work) {
  for (; begin + kLanes <= end; begin += kLanes) work(Vector{}, begin);
  for (; begin < end; ++begin) work(float{}, begin);
}

// Number: of an element of a window.
template <class Number>
void max_pool_with(const float* x, float* y, Number* index, const Geometry& g) {
  parallel_channels(g.in_channels, [&](int32_t begin, int32_t end) {
    int64_t to = 0;
    each_window(g, [&](const Window& w) {
      each_vector(begin, end, [&](auto zero, int32_t c) {
        using V = decltype(zero);
        using Numbers = typename VectorOf<lanes_of<V>>::Bits;
        const int64_t corner = (int64_t{w.top} * g.in_width + w.left) * g.in_channels + c;
        V largest = load<V>(x + corner);
        Numbers winners = Numbers{} + static_cast<uint32_t>((w.top - w.corner_y) * g.kernel_width + w.left - w.corner_x);
        each_pixel(g, w, [&](int64_t at, int32_t pixel) {
          const V v = load<V>(x + at + c);
          const auto wins = (v > largest) | (v != v);  // NaN is the largest: it must not get lost
          largest = wins ? v : largest;
          winners = wins ? Numbers{} + static_cast<uint32_t>(pixel) : winners;
        });
        store(y + to + c, largest);
        if (!index) return;
        uint32_t numbers[lanes_of<V>];
        std::memcpy(numbers, &winners, sizeof(numbers));
        for (int i = 0; i < lanes_of<V>; ++i) index[to + c + i] = static_cast<Number>(numbers[i]);
      });
      to += g.in_channels;
    });
  });
}

template <class Number>
void max_pool_dx_with(const float* dy, const Number* index, float* dx, const Geometry& g) {
  parallel_channels(g.in_channels, [&](int32_t begin, int32_t end) {
    zero_channels(dx, g, begin, end);
    int64_t from = 0;
    each_window(g, [&](const Window& w) {
      each_vector(begin, end, [&](auto zero, int32_t c) {
        using V = decltype(zero);
        using Numbers = typename VectorOf<lanes_of<V>>::Bits;
        uint32_t numbers[lanes_of<V>];
        for (int i = 0; i < lanes_of<V>; ++i) numbers[i] = index[from + c + i];
        Numbers winners;
        std::memcpy(&winners, numbers, sizeof(winners));
        const V gradient = load<V>(dy + from + c);
        each_pixel(g, w, [&](int64_t at, int32_t pixel) {
          float* to = dx + at + c;
          const auto won = winners == Numbers{} + static_cast<uint32_t>(pixel);
          store(to, V(load<V>(to) + (won ? gradient : V{})));
        });
      });
      from += g.in_channels;
    });
  });
}

bool fits_bytes(const Geometry& g) { return g.kernel_height * g.kernel_width <= 256; }

}  // namespace

void max_pool_forward(const float* x, float* y, void* index, const Geometry& g) {
  if (fits_bytes(g)) return max_pool_with(x, y, static_cast<uint8_t*>(index), g);
  max_pool_with(x, y, static_cast<uint16_t*>(index), g);
}

void max_pool_dx(const float* dy, const void* index, float* dx, const Geometry& g) {
  if (fits_bytes(g)) return max_pool_dx_with(dy, static_cast<const uint8_t*>(index), dx, g);
  max_pool_dx_with(dy, static_cast<const uint16_t*>(index), dx, g);
}

void global_pool_forward(const float* x, float* y, int32_t pixels, int32_t channels) {
  const float share = 1.0f / static_cast<float>(pixels);
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    std::fill(y + begin, y + end, 0.0f);
    for (int64_t row = 0; row < int64_t{pixels} * channels; row += channels) {
      for (int32_t c = begin; c < end; ++c) y[c] += x[row + c];
    }
    for (int32_t c = begin; c < end; ++c) y[c] *= share;
  });
}

void global_pool_dx(const float* dy, float* dx, int32_t pixels, int32_t channels) {
  const float share = 1.0f / static_cast<float>(pixels);
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    for (int64_t row = 0; row < int64_t{pixels} * channels; row += channels) {
      for (int32_t c = begin; c < end; ++c) dx[row + c] = dy[c] * share;
    }
  });
}

}  // namespace tinytl
