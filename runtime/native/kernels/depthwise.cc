#include <algorithm>

#include "epilogue.h"
#include "gemm.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace tinytl {
namespace {

alignas(64) const float kZeros[kLanes] = {};  // stands in for pixels outside a map


// One pass from a source map to a target map of the same channels: the convolution, or its gradient from dy to dx.
struct Sweep {
  const float* source;
  int32_t source_height, source_width;
  float* target;
  int32_t target_height, target_width;
  const Geometry& g;
  bool backward;
  const Weight& weight;
  const float* bias;
  Bounds bounds;
};

// The weight that tap (i, j) has for the channels of a vector.
template <class V>
TINYTL_INLINE V tap_weight(const Sweep& s, int32_t i, int32_t j, int32_t channel) {
  const int64_t at = (int64_t{i} * s.g.kernel_width + j) * s.g.in_channels + channel;
  const V w = with_elements(s.weight, [&](auto elements) { return load_centred<V>(elements + at, s.weight.zero); });
  return s.weight.i8 ? w * load<V>(s.weight.scale + channel) : w;
}

// How neighbouring results of a row share source pixels. Pixel u of a span meets tap j in result(u, j) of the tile.
// Gather: a convolution of stride 1 or 2, or the gradient of stride 1, which is one with its taps reversed.
template <int Taps, int Stride>
struct Gather {
  static constexpr bool kScatter = false;
  static constexpr int kTaps = Taps, kStride = Stride;
  static constexpr int kColumns = 7;  // feature maps are 7 x 2^n wide
  static constexpr int kSpan = (kColumns - 1) * Stride + Taps;
  static constexpr int result(int u, int j) { return u >= j && (u - j) % Stride == 0 ? (u - j) / Stride : -1; }
  static int32_t first_result(int32_t) { return 0; }
  static int32_t first_pixel(int32_t x0, int32_t pad) { return x0 * Stride - pad; }
};
// Scatter: the gradient of stride 2, where tap j of dy's pixel u belongs to column 2 u + j - kShift.
template <int Taps>
struct Scatter {
  static constexpr bool kScatter = true;
  static constexpr int kTaps = Taps, kStride = 2;
  static constexpr int kColumns = 14;
  static constexpr int kShift = Taps - 1 - Taps / 2 % 2;  // fits a padding of Taps / 2 at column 0
  static constexpr int kSpan = (kColumns - 1 + kShift) / 2 + 1;
  static constexpr int result(int u, int j) { return 2 * u + j - kShift; }
  static int32_t first_result(int32_t pad) { return -((pad - kShift) & 1); }  // where it fits, maybe before the map
  static int32_t first_pixel(int32_t x0, int32_t pad) { return (x0 + pad - kShift) / 2; }
};

// The source pixels of a tile, in row 0 and in one channel block; those outside the map are zeros in every row.
template <int Span>
struct Pixels {
  const float* at[Span];
  int64_t inside[Span];  // all bits or none

  Pixels(const float* map, int32_t width, int32_t channels, int32_t channel, int32_t first_column) {
    for (int u = 0; u < Span; ++u) {
      const int32_t column = first_column + u;
      const bool here = column >= 0 && column < width;
      at[u] = here ? map + int64_t{column} * channels + channel : kZeros;
      inside[u] = here ? -1 : 0;
    }
  }

  void in_row(int64_t row_start, const float* (&row)[Span]) const {
    for (int u = 0; u < Span; ++u) row[u] = at[u] + (row_start & inside[u]);
  }
};

// Columns [x0, x0 + kColumns) of rows [y0, y1). Edge: some source or target columns lie outside.
template <class P, bool Edge>
TINYTL_INLINE void sweep_strip(const Sweep& s, const Vector* weights, int32_t channel, Vector bias, int32_t x0,
                               int32_t first_column, int32_t pad, int32_t y0, int32_t y1) {
  constexpr int kTaps = P::kTaps;
  const int64_t step = s.g.in_channels;
  const Pixels<P::kSpan> pixels(s.source, s.source_width, s.g.in_channels, channel, first_column);
  const int from = Edge ? std::max(0, -x0) : 0;
  const int to = Edge ? std::min(P::kColumns, s.target_width - x0) : P::kColumns;
  const Vector low = broadcast<Vector>(s.bounds.low), high = broadcast<Vector>(s.bounds.high);
  float* results = s.target + (int64_t{y0} * s.target_width + x0) * step + channel;
  for (int32_t y = y0; y < y1; ++y, results += s.target_width * step) {
    Vector sums[P::kColumns];
#pragma GCC unroll 16
    for (int t = 0; t < P::kColumns; ++t) sums[t] = bias;
    auto add_row = [&](int32_t row, const Vector* taps) {
      Vector w[kTaps];
#pragma GCC unroll 8
      for (int j = 0; j < kTaps; ++j) w[j] = taps[j];
      const int64_t row_start = int64_t{row} * s.source_width * step;
      const float* first = s.source + row_start + first_column * step + channel;
      const float* at[P::kSpan];
      if (Edge) pixels.in_row(row_start, at);
#pragma GCC unroll 24
      for (int u = 0; u < P::kSpan; ++u) {
        const Vector pixel = load<Vector>(Edge ? at[u] : first + u * step);
#pragma GCC unroll 8
        for (int j = 0; j < kTaps; ++j) {
          const int t = P::result(u, j);
          if (t >= 0 && t < P::kColumns) sums[t] += w[j] * pixel;
        }
      }
    };
    if constexpr (P::kScatter) {
      const int32_t at = y + pad;
      const int32_t last = std::min(s.source_height - 1, at / 2);
      for (int32_t row = std::max(0, (at - kTaps + 2) >> 1); row <= last; ++row) {
        add_row(row, weights + (at - 2 * row) * kTaps);
      }
    } else {
      const int32_t row0 = y * P::kStride - pad;
      if (kTaps == 3 && row0 >= 0 && row0 + kTaps <= s.source_height) {
#pragma GCC unroll 8
        for (int32_t i = 0; i < kTaps; ++i) add_row(row0 + i, weights + i * kTaps);
      } else {
        const int32_t end = std::min(kTaps, s.source_height - row0);
        for (int32_t i = std::max(0, -row0); i < end; ++i) add_row(row0 + i, weights + i * kTaps);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < P::kColumns; ++t) {
      if (!Edge || (t >= from && t < to)) store(results + t * step, clamp<Vector>(sums[t], low, high));
    }
  }
}

// All strips of a channel block.
template <class P>
__attribute__((noinline)) void sweep_strips(const Sweep& s, int32_t channel, int32_t y0, int32_t y1) {
  constexpr int kTaps = P::kTaps;
  // The gradient of stride 1 is a convolution with its kernel turned round.
  const bool turned = s.backward && !P::kScatter;
  Vector weights[kTaps * kTaps];
  for (int32_t i = 0; i < kTaps; ++i) {
    for (int32_t j = 0; j < kTaps; ++j) {
      weights[i * kTaps + j] =
          turned ? tap_weight<Vector>(s, kTaps - 1 - i, kTaps - 1 - j, channel) : tap_weight<Vector>(s, i, j, channel);
    }
  }
  const int32_t pad_y = turned ? kTaps - 1 - s.g.pad_top : s.g.pad_top;
  const int32_t pad_x = turned ? kTaps - 1 - s.g.pad_left : s.g.pad_left;
  const Vector bias = s.bias ? load<Vector>(s.bias + channel) : Vector{};
  for (int32_t x0 = P::first_result(pad_x); x0 < s.target_width; x0 += P::kColumns) {
    const int32_t first = P::first_pixel(x0, pad_x);
    if (x0 < 0 || x0 + P::kColumns > s.target_width || first < 0 || first + P::kSpan > s.source_width) {
      sweep_strip<P, true>(s, weights, channel, bias, x0, first, pad_y, y0, y1);
    } else {
      sweep_strip<P, false>(s, weights, channel, bias, x0, first, pad_y, y0, y1);
    }
  }
}

// Any kernel, stride and dilation, pixel by pixel.
template <class V>
__attribute__((noinline)) void sweep_pixels(const Sweep& s, int32_t channel, int32_t y0, int32_t y1) {
  const int64_t channels = s.g.in_channels;
  const V bias = s.bias ? load<V>(s.bias + channel) : V{};
  const V low = broadcast<V>(s.bounds.low), high = broadcast<V>(s.bounds.high);
  // Where a tap sees the source, or a negative number.
  auto seen = [&](int32_t at, int32_t shift, int32_t pad, int32_t stride, int32_t size) {
    int32_t from = s.backward ? at + pad - shift : at * stride - pad + shift;
    if (s.backward) from = from % stride == 0 ? from / stride : -1;
    return from < size ? from : -1;
  };
  for (int32_t y = y0; y < y1; ++y) {
    for (int32_t x = 0; x < s.target_width; ++x) {
      V sum = bias;
      for (int32_t i = 0; i < s.g.kernel_height; ++i) {
        const int32_t row = seen(y, i * s.g.dilation_height, s.g.pad_top, s.g.stride_height, s.source_height);
        for (int32_t j = 0; row >= 0 && j < s.g.kernel_width; ++j) {
          const int32_t column = seen(x, j * s.g.dilation_width, s.g.pad_left, s.g.stride_width, s.source_width);
          if (column < 0) continue;
          const float* pixel = s.source + (int64_t{row} * s.source_width + column) * channels + channel;
          sum += tap_weight<V>(s, i, j, channel) * load<V>(pixel);
        }
      }
      store(s.target + (int64_t{y} * s.target_width + x) * channels + channel, clamp<V>(sum, low, high));
    }
  }
}

// Is it one that strips are made for?
bool plain(const Geometry& g) {
  return g.kernel_height == g.kernel_width && g.stride_height == g.stride_width && g.dilation_height == 1 &&
         g.dilation_width == 1;
}

using SweepFunction = void (*)(const Sweep&, int32_t, int32_t, int32_t);

template <int Taps>
SweepFunction strips_of(const Sweep& s) {
  if (s.g.stride_width == 1) return sweep_strips<Gather<Taps, 1>>;
  if (s.g.stride_width > 2) return sweep_pixels<Vector>;
  return s.backward ? sweep_strips<Scatter<Taps>> : sweep_strips<Gather<Taps, 2>>;
}

SweepFunction sweep_function(const Sweep& s, int lanes) {
  if (lanes == 1) return sweep_pixels<float>;
  if (lanes < kLanes) return sweep_pixels<Quad>;
  if (!plain(s.g)) return sweep_pixels<Vector>;
  switch (s.g.kernel_width) {
    case 3: return strips_of<3>(s);
    case 5: return strips_of<5>(s);
    case 7: return strips_of<7>(s);
    default: return sweep_pixels<Vector>;
  }
}

// Rows of a block: its share of both maps stays in the second-level cache while the channel blocks pass over it.
int32_t rows_in_block(int64_t floats_a_row) {
  constexpr int64_t kBlockFloats = 65536;
  return static_cast<int32_t>(std::max<int64_t>(kBlockFloats / std::max<int64_t>(floats_a_row, 1), 1));
}

int lanes_for(int32_t channels) { return channels >= kLanes ? kLanes : channels >= 4 ? 4 : 1; }

void sweep(const Sweep& s, const Finish& finish) {
  const int32_t channels = s.g.in_channels;
  const int lanes = lanes_for(channels);
  const SweepFunction function = sweep_function(s, lanes);
  const int64_t out_row = int64_t{s.g.out_width} * channels, in_row = int64_t{s.g.in_width} * channels;
  const int32_t step = rows_in_block(s.backward ? in_row + out_row / s.g.stride_height
                                                : in_row * s.g.stride_height + out_row);
  auto sweep_rows = [&](int32_t begin, int32_t end, int32_t y0, int32_t y1) {
    // The last block overlaps the one before where the channels are no multiple of the lanes.
    for (int32_t c = begin; c < end; c += lanes) function(s, std::min(c, channels - lanes), y0, y1);
  };
  // As in products of few rows, so that channels stay on one thread.
  if (s.target_height * s.target_width <= kFewPixels && channels % lanes == 0 && channels % 8 == 0) {
    return parallel_channels(channels, [&](int32_t begin, int32_t end) {
      sweep_rows(begin, end, 0, s.target_height);
      finish.columns(s.target, 0, int64_t{s.target_height} * s.target_width, channels, begin, end);
    });
  }
  const int min_rows = s.target_width < 28 ? 3 : 2;  // each slice makes vectors of the weights anew
  const SlicedFinish sliced(finish, channels, s.target_width, s.target_height, 1, min_rows);
  parallel(sliced.slices().count(), [&](int slice) {
    const auto end = static_cast<int32_t>(sliced.slices().end(slice));
    for (auto y0 = static_cast<int32_t>(sliced.slices().begin(slice)); y0 < end; y0 += step) {
      const int32_t y1 = std::min(y0 + step, end);
      sweep_rows(0, channels, y0, y1);
      sliced(slice, s.target, y0, y1);
    }
  });
}

// What the weight gradients are made of.
struct WeightGradient {
  const float *x, *dy;
  float* dw;
  const Geometry& g;
};

// to[j] += v[j] from lane `first` on.
template <class V>
TINYTL_INLINE void add_lanes(float* to, V v, int first) {
  float values[lanes_of<V>];
  store(values, V(first ? V{} : load<V>(to)) + v);
  for (int j = first; j < lanes_of<V>; ++j) to[j] = first ? to[j] + values[j] : values[j];
}

// Strips as in a convolution: the sums of a row of taps stay in registers while the strip runs down the rows. The first
// lanes of a channel block may belong to the block before it.
template <class P>
__attribute__((noinline)) void gradient_strips(const WeightGradient& w, int32_t channel, int32_t y0, int32_t y1,
                                               int first_lane) {
  // Enough sums that do not depend on each other, but not too many for the registers.
  constexpr int kTaps = P::kTaps, kTapRows = kTaps == 3 ? 3 : 1;
  const Geometry& g = w.g;
  const int64_t in_row = int64_t{g.in_width} * g.in_channels, out_row = int64_t{g.out_width} * g.in_channels;
  for (int32_t x0 = 0; x0 < g.out_width; x0 += P::kColumns) {
    const Pixels<P::kSpan> pixels(w.x, g.in_width, g.in_channels, channel, P::first_pixel(x0, g.pad_left));
    const Pixels<P::kColumns> gradients(w.dy, g.out_width, g.in_channels, channel, x0);
    for (int32_t i0 = 0; i0 < kTaps; i0 += kTapRows) {
      Vector sums[kTapRows][kTaps] = {};
      for (int32_t y = y0; y < y1; ++y) {
        const float* gradient[P::kColumns];
        gradients.in_row(y * out_row, gradient);
        Vector dy[P::kColumns];
#pragma GCC unroll 8
        for (int t = 0; t < P::kColumns; ++t) dy[t] = load<Vector>(gradient[t]);
#pragma GCC unroll 4
        for (int i = 0; i < kTapRows; ++i) {
          const int32_t row = y * P::kStride - g.pad_top + i0 + i;
          if (row < 0 || row >= g.in_height) continue;
          const float* from[P::kSpan];
          pixels.in_row(row * in_row, from);
#pragma GCC unroll 24
          for (int u = 0; u < P::kSpan; ++u) {
            const Vector pixel = load<Vector>(from[u]);
#pragma GCC unroll 8
            for (int j = 0; j < kTaps; ++j) {
              const int t = P::result(u, j);
              if (t >= 0 && t < P::kColumns) sums[i][j] += pixel * dy[t];
            }
          }
        }
      }
      float* to = w.dw + int64_t{i0} * kTaps * g.in_channels + channel;
      for (int tap = 0; tap < kTapRows * kTaps; ++tap, to += g.in_channels) add_lanes(to, sums[tap / kTaps][tap % kTaps], first_lane);
    }
  }
}

// Any kernel, stride and dilation, tap by tap.
template <class V>
__attribute__((noinline)) void gradient_taps(const WeightGradient& w, int32_t channel, int32_t y0, int32_t y1,
                                             int first_lane) {
  const Geometry& g = w.g;
  for (int32_t i = 0; i < g.kernel_height; ++i) {
    for (int32_t j = 0; j < g.kernel_width; ++j) {
      V sum{};
      for (int32_t y = y0; y < y1; ++y) {
        const int32_t row = y * g.stride_height - g.pad_top + i * g.dilation_height;
        for (int32_t x = 0; row >= 0 && row < g.in_height && x < g.out_width; ++x) {
          const int32_t column = x * g.stride_width - g.pad_left + j * g.dilation_width;
          if (column < 0 || column >= g.in_width) continue;
          sum += load<V>(w.x + (int64_t{row} * g.in_width + column) * g.in_channels + channel) *
                 load<V>(w.dy + (int64_t{y} * g.out_width + x) * g.in_channels + channel);
        }
      }
      add_lanes(w.dw + (int64_t{i} * g.kernel_width + j) * g.in_channels + channel, sum, first_lane);
    }
  }
}

using GradientFunction = void (*)(const WeightGradient&, int32_t, int32_t, int32_t, int);

template <int Taps>
GradientFunction gradient_strips_of(const Geometry& g) {
  return g.stride_width == 1 ? gradient_strips<Gather<Taps, 1>> : gradient_strips<Gather<Taps, 2>>;
}

GradientFunction gradient_function(const Geometry& g, int lanes) {
  if (lanes == 1) return gradient_taps<float>;
  if (lanes < kLanes) return gradient_taps<Quad>;
  if (!plain(g) || g.stride_width > 2) return gradient_taps<Vector>;
  switch (g.kernel_width) {
    case 3: return gradient_strips_of<3>(g);
    case 5: return gradient_strips_of<5>(g);
    case 7: return gradient_strips_of<7>(g);
    default: return gradient_taps<Vector>;
  }
}

}  // namespace

void depthwise_forward(const float* x, float* y, const Geometry& g, const Weight& w, const Epilogue& epilogue) {
  sweep({x, g.in_height, g.in_width, y, g.out_height, g.out_width, g, false, w, epilogue.bias,
         epilogue.bounds}, Finish(epilogue));
}

void depthwise_dx(const float* dy, float* dx, const Geometry& g, const Weight& w, const GradientEpilogue& epilogue) {
  sweep({dy, g.out_height, g.out_width, dx, g.in_height, g.in_width, g, true, w, nullptr, {}}, Finish(epilogue));
}

void depthwise_dw(const float* x, const float* dy, float* dw, const Geometry& g) {
  constexpr int32_t kRows = 16;  // of a strip, which is read once for each row of taps, from the first-level cache
  const int32_t channels = g.in_channels;
  const int lanes = lanes_for(channels);
  const GradientFunction function = gradient_function(g, lanes);
  const int64_t in_row = int64_t{g.in_width} * channels, out_row = int64_t{g.out_width} * channels;
  const int32_t step = std::min(rows_in_block(in_row * g.stride_height + out_row), kRows);
  parallel(Slices(channels, lanes), [&](int64_t begin, int64_t end) {
    for (int32_t y0 = 0; y0 < g.out_height; y0 += step) {
      const int32_t y1 = std::min(y0 + step, g.out_height);
      for (auto c = static_cast<int32_t>(begin); c < end; c += lanes) {
        const int32_t channel = std::min(c, channels - lanes);
        function({x, dy, dw, g}, channel, y0, y1, c - channel);
      }
    }
  });
}

}  // namespace tinytl
