#include <algorithm>

#include "epilogue.h"
#include "kernels.h"
#include "simd.h"

namespace tinytl {
namespace {

constexpr int kTileColumns = 7;    // feature maps are 7 x 2^n wide
constexpr int kMaxCachedTaps = 49;  // weights of a channel block kept as floats

// One strided convolution of a channel block: source pixel (y * stride_y + origin_y + i, x * stride_x + origin_x + j)
// meets weight (i, j), which is the tap at weight_first + i * weight_step_y + j * weight_step_x of the layer. The
// forward pass is one of these, the input gradient one for each phase of the stride.
struct Sweep {
  const float* source;
  int32_t source_height, source_width;
  int64_t source_row, source_column;  // steps in floats
  float* target;
  int32_t target_height, target_width;
  int64_t target_row, target_column;
  int32_t taps_y, taps_x, stride_y, stride_x, origin_y, origin_x;
  int32_t weight_first, weight_step_y, weight_step_x;
  const Weight* weight;
  int32_t channels;
  const float* bias;
  Bounds bounds;
};

template <class V>
TINYTL_INLINE V load_weight(const Sweep& s, int32_t i, int32_t j, int32_t channel) {
  const int64_t tap = s.weight_first + i * s.weight_step_y + j * s.weight_step_x;
  const int64_t at = tap * s.channels + channel;
  if (s.weight->f32) return load<V>(s.weight->f32 + at);
  return load_int8<V>(s.weight->i8 + at) * load<V>(s.weight->scale + channel);
}

// `Columns` neighbouring results of row y. Edge: source columns may lie outside. Taps, Stride: 0 if not known.
template <class V, int Columns, bool Edge, int Taps, int Stride>
TINYTL_INLINE void sweep_tile(const Sweep& s, const V* weights, bool cached, int32_t channel, V bias, int32_t y,
                              int32_t x, int32_t i0, int32_t i1) {
  const int32_t taps = Taps ? Taps : s.taps_x, stride = Stride ? Stride : s.stride_x;
  V sums[Columns];
#pragma GCC unroll 8
  for (int t = 0; t < Columns; ++t) sums[t] = bias;
  const int32_t column0 = x * stride + s.origin_x;
  for (int32_t i = i0; i < i1; ++i) {
    const float* row = s.source + int64_t{y * s.stride_y + s.origin_y + i} * s.source_row + channel;
    const float* at = row + column0 * s.source_column;
    if constexpr (Taps != 0) {
      // Known taps: each source pixel is loaded once for all results that it meets.
      constexpr int kSpan = (Columns - 1) * Stride + Taps;
      V w[Taps];
#pragma GCC unroll 8
      for (int j = 0; j < Taps; ++j) w[j] = weights[i * Taps + j];
#pragma GCC unroll 24
      for (int u = 0; u < kSpan; ++u) {
        V pixel;
        if (Edge && (column0 + u < 0 || column0 + u >= s.source_width)) {
          pixel = V{};
        } else {
          pixel = load<V>(at + u * s.source_column);
        }
#pragma GCC unroll 8
        for (int j = 0; j < Taps; ++j) {
          if (u >= j && (u - j) % Stride == 0 && (u - j) / Stride < Columns) sums[(u - j) / Stride] += w[j] * pixel;
        }
      }
    } else {
      for (int32_t j = 0; j < taps; ++j) {
        const V w = cached ? weights[i * taps + j] : load_weight<V>(s, i, j, channel);
#pragma GCC unroll 8
        for (int t = 0; t < Columns; ++t) {
          const int32_t column = j + t * stride;
          if (Edge && (column0 + column < 0 || column0 + column >= s.source_width)) continue;
          sums[t] += w * load<V>(at + column * s.source_column);
        }
      }
    }
  }
  const V low = broadcast<V>(s.bounds.low), high = broadcast<V>(s.bounds.high);
  float* to = s.target + y * s.target_row + x * s.target_column + channel;
#pragma GCC unroll 8
  for (int t = 0; t < Columns; ++t, to += s.target_column) store(to, clamp<V>(sums[t], low, high));
}

template <class V, int Taps, int Stride>
__attribute__((noinline)) void sweep_rows(const Sweep& s, int32_t channel, int32_t y0, int32_t y1) {
  const int32_t stride = Stride ? Stride : s.stride_x;
  V weights[kMaxCachedTaps];
  const bool cached = s.taps_y * s.taps_x <= kMaxCachedTaps;
  for (int32_t i = 0; cached && i < s.taps_y; ++i) {
    for (int32_t j = 0; j < s.taps_x; ++j) weights[i * s.taps_x + j] = load_weight<V>(s, i, j, channel);
  }
  const V bias = s.bias ? load<V>(s.bias + channel) : V{};
  for (int32_t y = y0; y < y1; ++y) {
    const int32_t row0 = y * s.stride_y + s.origin_y;
    const int32_t i0 = std::clamp<int32_t>(-row0, 0, s.taps_y);
    const int32_t i1 = std::clamp<int32_t>(s.source_height - row0, i0, s.taps_y);
    for (int32_t x = 0; x < s.target_width;) {
      const bool wide = x + kTileColumns <= s.target_width;
      const int32_t last = x + (wide ? kTileColumns - 1 : 0);
      const bool edge =
          x * stride + s.origin_x < 0 || last * stride + s.origin_x + s.taps_x > s.source_width;
      if (!wide) {
        sweep_tile<V, 1, true, 0, 0>(s, weights, cached, channel, bias, y, x, i0, i1);
      } else if (edge) {
        sweep_tile<V, kTileColumns, true, Taps, Stride>(s, weights, cached, channel, bias, y, x, i0, i1);
      } else {
        sweep_tile<V, kTileColumns, false, Taps, Stride>(s, weights, cached, channel, bias, y, x, i0, i1);
      }
      x = last + 1;
    }
  }
}

int32_t sweep_channel_block(const Sweep& s, int32_t channel, int32_t y0, int32_t y1) {
  if (channel + kLanes <= s.channels) {
    if (s.taps_x == 3 && s.taps_y <= 3 && s.stride_x == 1) {
      sweep_rows<Vector, 3, 1>(s, channel, y0, y1);
    } else if (s.taps_x == 3 && s.taps_y <= 3 && s.stride_x == 2) {
      sweep_rows<Vector, 3, 2>(s, channel, y0, y1);
    } else if (s.taps_x == 5 && s.taps_y <= 5 && s.stride_x == 1) {
      sweep_rows<Vector, 5, 1>(s, channel, y0, y1);
    } else {
      sweep_rows<Vector, 0, 0>(s, channel, y0, y1);
    }
    return kLanes;
  }
  if (kLanes > 4 && channel + 4 <= s.channels) {
    sweep_rows<VectorOf<4>::Type, 0, 0>(s, channel, y0, y1);
    return 4;
  }
  sweep_rows<float, 0, 0>(s, channel, y0, y1);
  return 1;
}

// Rows of a block: its share of both maps stays in the second-level cache while the channel blocks pass over it.
int32_t rows_in_block(int64_t floats_a_row) {
  constexpr int64_t kBlockFloats = 65536;
  return static_cast<int32_t>(std::max<int64_t>(kBlockFloats / std::max<int64_t>(floats_a_row, 1), 1));
}

int32_t floor_divide(int32_t a, int32_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace

void depthwise_forward(const float* x, float* y, const Geometry& g, const Weight& w, const Epilogue& epilogue) {
  const int32_t channels = g.in_channels;
  const int64_t in_row = int64_t{g.in_width} * channels, out_row = int64_t{g.out_width} * channels;
  const Sweep sweep{.source = x, .source_height = g.in_height, .source_width = g.in_width, .source_row = in_row,
                    .source_column = channels, .target = y, .target_height = g.out_height,
                    .target_width = g.out_width, .target_row = out_row, .target_column = channels,
                    .taps_y = g.kernel_height, .taps_x = g.kernel_width, .stride_y = g.stride_height,
                    .stride_x = g.stride_width, .origin_y = -g.pad_top, .origin_x = -g.pad_left, .weight_first = 0,
                    .weight_step_y = g.kernel_width, .weight_step_x = 1, .weight = &w, .channels = channels,
                    .bias = epilogue.bias, .bounds = bounds_of(epilogue.activation)};
  const int32_t step = rows_in_block(in_row * g.stride_height + out_row);
  for (int32_t y0 = 0; y0 < g.out_height; y0 += step) {
    const int32_t y1 = std::min(y0 + step, g.out_height);
    for (int32_t c = 0; c < channels;) c += sweep_channel_block(sweep, c, y0, y1);
    if (epilogue.mask) {
      store_mask(y + y0 * out_row, y0 * out_row, (y1 - y0) * out_row, epilogue.activation, epilogue.mask);
    }
  }
}

void depthwise_dx(const float* dy, float* dx, const Geometry& g, const Weight& w) {
  const int32_t channels = g.in_channels;
  const int64_t in_row = int64_t{g.in_width} * channels, out_row = int64_t{g.out_width} * channels;
  const int32_t sy = g.stride_height, sx = g.stride_width;
  // The inputs at (phase + stride * t) of one phase see the same taps: those that agree with phase + pad modulo the
  // stride, in descending order.
  struct Taps {
    int32_t first, count, origin;
  };
  auto taps_of = [](int32_t phase, int32_t pad, int32_t stride, int32_t kernel) {
    const int32_t smallest = (phase + pad) % stride;
    const int32_t count = smallest < kernel ? (kernel - smallest + stride - 1) / stride : 0;
    return Taps{smallest + (count - 1) * stride, count,
                floor_divide(phase + pad - smallest, stride) - (count - 1)};
  };
  const int32_t rows = (g.in_height + sy - 1) / sy;  // of the longest phase
  const int32_t step = rows_in_block(in_row * sy + out_row);
  for (int32_t t0 = 0; t0 < rows; t0 += step) {
    for (int32_t c = 0; c < channels;) {
      int32_t lanes = 1;
      for (int32_t py = 0; py < std::min(sy, g.in_height); ++py) {
        for (int32_t px = 0; px < std::min(sx, g.in_width); ++px) {
          const Taps ty = taps_of(py, g.pad_top, sy, g.kernel_height);
          const Taps tx = taps_of(px, g.pad_left, sx, g.kernel_width);
          const Sweep sweep{.source = dy, .source_height = g.out_height, .source_width = g.out_width,
                            .source_row = out_row, .source_column = channels,
                            .target = dx + py * in_row + int64_t{px} * channels,
                            .target_height = (g.in_height - py + sy - 1) / sy,
                            .target_width = (g.in_width - px + sx - 1) / sx, .target_row = sy * in_row,
                            .target_column = int64_t{sx} * channels, .taps_y = tx.count ? ty.count : 0,
                            .taps_x = tx.count, .stride_y = 1, .stride_x = 1, .origin_y = ty.origin,
                            .origin_x = tx.origin, .weight_first = ty.first * g.kernel_width + tx.first,
                            .weight_step_y = -sy * g.kernel_width, .weight_step_x = -sx, .weight = &w,
                            .channels = channels, .bias = nullptr, .bounds = {}};
          lanes = sweep_channel_block(sweep, c, t0, std::min(t0 + step, sweep.target_height));
        }
      }
      c += lanes;
    }
  }
}

namespace {

template <class V>
__attribute__((noinline)) void depthwise_dw_block(const float* x, const float* dy, float* dw, const Geometry& g,
                                                  int32_t channel, int32_t y0, int32_t y1) {
  const int32_t channels = g.in_channels, stride = g.stride_width;
  for (int32_t i = 0; i < g.kernel_height; ++i) {
    for (int32_t j = 0; j < g.kernel_width; ++j) {
      const int32_t shift = j - g.pad_left;  // source column of result 0
      const int32_t x0 = shift < 0 ? (-shift + stride - 1) / stride : 0;
      const int32_t x1 = std::min(g.out_width, floor_divide(g.in_width - 1 - shift, stride) + 1);
      V sums[4] = {};
      for (int32_t y = y0; y < y1; ++y) {
        const int32_t row = y * g.stride_height - g.pad_top + i;
        if (row < 0 || row >= g.in_height) continue;
        const float* from = x + (int64_t{row} * g.in_width + shift) * channels + channel;
        const float* gradient = dy + int64_t{y} * g.out_width * channels + channel;
        int32_t column = x0;
        for (; column + 4 <= x1; column += 4) {
#pragma GCC unroll 4
          for (int t = 0; t < 4; ++t) {
            sums[t] += load<V>(from + int64_t{column + t} * stride * channels) *
                       load<V>(gradient + int64_t{column + t} * channels);
          }
        }
        for (; column < x1; ++column) {
          sums[0] += load<V>(from + int64_t{column} * stride * channels) *
                     load<V>(gradient + int64_t{column} * channels);
        }
      }
      float* to = dw + int64_t{i * g.kernel_width + j} * channels + channel;
      store(to, V(load<V>(to) + ((sums[0] + sums[1]) + (sums[2] + sums[3]))));
    }
  }
}

}  // namespace

void depthwise_dw(const float* x, const float* dy, float* dw, const Geometry& g) {
  const int32_t channels = g.in_channels;
  const int64_t in_row = int64_t{g.in_width} * channels, out_row = int64_t{g.out_width} * channels;
  const int32_t step = rows_in_block(in_row * g.stride_height + out_row);
  for (int32_t y0 = 0; y0 < g.out_height; y0 += step) {
    const int32_t y1 = std::min(y0 + step, g.out_height);
    int32_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) depthwise_dw_block<Vector>(x, dy, dw, g, c, y0, y1);
    for (; c < channels; ++c) depthwise_dw_block<float>(x, dy, dw, g, c, y0, y1);
  }
}

}  // namespace tinytl
