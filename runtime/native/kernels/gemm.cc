#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "epilogue.h"
#include "simd.h"

namespace tinytl {
namespace {

alignas(64) thread_local float g_panels[kPanelFloats];

TINYTL_INLINE Bytes interleave_low(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

TINYTL_INLINE Bytes interleave_high(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Four rounds of perfect shuffles transpose 16 x 16 bytes: to[j][i] = from[i * stride + j].
TINYTL_INLINE void transpose_bytes(const int8_t* from, int64_t stride, int8_t* to) {
  Bytes rows[16], next[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) __builtin_memcpy(&rows[i], from + i * stride, 16);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + 8]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + 8]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
  __builtin_memcpy(to, rows, sizeof(rows));
}

void transpose_floats(const float* from, int64_t stride, float* to, int to_stride) {
  const Quad r0 = load<Quad>(from), r1 = load<Quad>(from + stride);
  const Quad r2 = load<Quad>(from + 2 * stride), r3 = load<Quad>(from + 3 * stride);
  const Quad low02 = __builtin_shufflevector(r0, r2, 0, 4, 1, 5), high02 = __builtin_shufflevector(r0, r2, 2, 6, 3, 7);
  const Quad low13 = __builtin_shufflevector(r1, r3, 0, 4, 1, 5), high13 = __builtin_shufflevector(r1, r3, 2, 6, 3, 7);
  store(to, Quad(__builtin_shufflevector(low02, low13, 0, 4, 1, 5)));
  store(to + to_stride, Quad(__builtin_shufflevector(low02, low13, 2, 6, 3, 7)));
  store(to + 2 * to_stride, Quad(__builtin_shufflevector(high02, high13, 0, 4, 1, 5)));
  store(to + 3 * to_stride, Quad(__builtin_shufflevector(high02, high13, 2, 6, 3, 7)));
}

void pack_straight(const MatrixSource& b, int32_t k0, int32_t depth, int32_t n0, int32_t columns, int width,
                   float* panel) {
  for (int32_t k = 0; k < depth; ++k, panel += width) {
    const int64_t at = (k0 + k) * b.stride + n0;
    if (columns < width) {
      for (int32_t n = 0; n < columns; ++n) panel[n] = b.f32 ? b.f32[at + n] : static_cast<float>(b.i8[at + n]);
      for (int32_t n = columns; n < width; ++n) panel[n] = 0;
    } else if (b.f32) {
      for (int n = 0; n < width; n += 4) store(panel + n, load<Quad>(b.f32 + at + n));
    } else if (width % 16 == 0) {
      for (int n = 0; n < width; n += 16) convert16(b.i8 + at + n, 1.0f, panel + n);
    } else {
      for (int n = 0; n < width; n += 4) store(panel + n, load_int8<Quad>(b.i8 + at + n));
    }
    if (b.k_scale) {
      for (int n = 0; n < width; ++n) panel[n] *= b.k_scale[k0 + k];
    }
  }
}

void pack_transposed(const MatrixSource& b, int32_t k0, int32_t depth, int32_t n0, int32_t columns, int width,
                     float* panel) {
  // Blocks of block x block elements go through registers, the edges element by element.
  const int block = b.i8 ? 16 : 4;
  const int32_t block_columns = columns / block * block, block_depth = depth / block * block;
  for (int32_t n = 0; n < block_columns; n += block) {
    for (int32_t k = 0; k < block_depth; k += block) {
      const int64_t at = (n0 + n) * b.stride + k0 + k;
      float* to = panel + int64_t{k} * width + n;
      if (b.f32) {
        transpose_floats(b.f32 + at, b.stride, to, width);
        continue;
      }
      alignas(16) int8_t turned[256];
      transpose_bytes(b.i8 + at, b.stride, turned);
      for (int i = 0; i < 16; ++i, to += width) {
        convert16(turned + 16 * i, b.k_scale ? b.k_scale[k0 + k + i] : 1.0f, to);
      }
    }
  }
  for (int32_t k = 0; k < depth; ++k) {
    const float scale = b.k_scale ? b.k_scale[k0 + k] : 1.0f;
    float* to = panel + int64_t{k} * width;
    for (int32_t n = k < block_depth ? block_columns : 0; n < columns; ++n) {
      const int64_t at = (n0 + n) * b.stride + k0 + k;
      to[n] = b.f32 ? b.f32[at] : static_cast<float>(b.i8[at]) * scale;
    }
    for (int32_t n = columns; n < width; ++n) to[n] = 0;
  }
}

// The sums of a tile leave the registers. Kept apart from the loops over k, which differ.
template <class V, int Rows, int Vectors>
TINYTL_INLINE void store_tile(const V (&sums)[Rows][Vectors], float* const* c, int32_t columns,
                              const TileOutput& output) {
  constexpr int kL = lanes_of<V>, kWidth = kL * Vectors;
  if (columns < kWidth) {
    float edge[Rows][kWidth] = {};
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) store(&edge[i][j * kL], sums[i][j]);
    }
    for (int i = 0; i < Rows; ++i) {
      int32_t n = 0;
      for (; n + 4 <= columns; n += 4) {
        Quad v = load<Quad>(&edge[i][n]);
        if (output.accumulate) v += load<Quad>(c[i] + n);
        v = v * load<Quad>(output.scale + n) + load<Quad>(output.bias + n);
        store(c[i] + n, clamp<Quad>(v, broadcast<Quad>(output.low), broadcast<Quad>(output.high)));
      }
      for (; n < columns; ++n) {
        float v = edge[i][n] + (output.accumulate ? c[i][n] : 0.0f);
        v = v * output.scale[n] + output.bias[n];
        c[i][n] = clamp(v, output.low, output.high);
      }
    }
    return;
  }
  V scale[Vectors], bias[Vectors];
  for (int j = 0; j < Vectors; ++j) {
    scale[j] = load<V>(output.scale + j * kL);
    bias[j] = load<V>(output.bias + j * kL);
  }
  const V low = broadcast<V>(output.low), high = broadcast<V>(output.high);
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      V v = sums[i][j];
      if (output.accumulate) v += load<V>(c[i] + j * kL);
      store(c[i] + j * kL, clamp<V>(v * scale[j] + bias[j], low, high));
    }
  }
}

template <class V, int Rows, int Vectors>
__attribute__((noinline)) void tile(const float* const* a, const float* const* panels, int segments, int32_t depth,
                                    float* const* c, int32_t columns, const TileOutput& output) {
  constexpr int kL = lanes_of<V>;
  V sums[Rows][Vectors] = {};
  for (int segment = 0; segment < segments; ++segment, a += Rows) {
    const float* panel = panels[segment];
    const float* rows[Rows];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) rows[i] = a[i];
    for (int64_t k = 0; k < depth; ++k, panel += kL * Vectors) {
      V b[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) b[j] = load<V>(panel + j * kL);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const V factor = broadcast<V>(rows[i][k]);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sums[i][j] += factor * b[j];
      }
    }
  }
  store_tile(sums, c, columns, output);
}

template <class V, int Rows, int Vectors>
__attribute__((noinline)) void transposed_tile(const TransposedSegment* segments, int segment_count, int64_t a_stride,
                                               float* const* c, int32_t columns, const TileOutput& output) {
  constexpr int kL = lanes_of<V>;
  V sums[Rows][Vectors] = {};
  for (int segment = 0; segment < segment_count; ++segment) {
    const float* a = segments[segment].a;
    const float* panel = segments[segment].panel;
    for (int32_t k = segments[segment].depth; k > 0; --k, a += a_stride, panel += kL * Vectors) {
      V b[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) b[j] = load<V>(panel + j * kL);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const V factor = broadcast<V>(a[i]);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sums[i][j] += factor * b[j];
      }
    }
  }
  store_tile(sums, c, columns, output);
}

using TileFunction = void (*)(const float* const*, const float* const*, int, int32_t, float* const*, int32_t,
                              const TileOutput&);
using TransposedFunction = void (*)(const TransposedSegment*, int, int64_t, float* const*, int32_t, const TileOutput&);

constexpr int kFullVectors = kPanelWidth / kLanes;
using Narrow = VectorOf<kNarrowestPanel>::Type;

template <int Rows>
TileFunction tile_function(int width) {
  if (width == kPanelWidth) return tile<Vector, Rows, kFullVectors>;
  if (width == kNarrowestPanel) return tile<Narrow, Rows, 1>;
  return tile<Vector, Rows, kFullVectors / 2>;
}

template <int Rows>
TransposedFunction transposed_function(int width) {
  if (width == kPanelWidth) return transposed_tile<Vector, Rows, kFullVectors>;
  if (width == kNarrowestPanel) return transposed_tile<Narrow, Rows, 1>;
  return transposed_tile<Vector, Rows, kFullVectors / 2>;
}

}  // namespace

float* panel_buffer() { return g_panels; }

int panel_width(int32_t columns) {
  const int padded = (std::min(columns, kPanelWidth) + kNarrowestPanel - 1) / kNarrowestPanel * kNarrowestPanel;
  int width = kPanelWidth;
  while (width > padded) width /= 2;
  return width;
}

void pack_panel(const MatrixSource& b, int32_t k0, int32_t depth, int32_t n0, int32_t columns, int width,
                float* panel) {
  (b.transposed ? pack_transposed : pack_straight)(b, k0, depth, n0, columns, width, panel);
}

void PanelEpilogue::fill(const float* column_scale, const float* column_bias, int32_t n0, int32_t columns) {
  for (int32_t n = 0; n < kPanelWidth; ++n) {
    scale[n] = column_scale && n < columns ? column_scale[n0 + n] : 1.0f;
    bias[n] = column_bias && n < columns ? column_bias[n0 + n] : 0.0f;
  }
}

void multiply_tile(int tile_rows, int width, const float* const* a, const float* const* panels, int segments,
                   int32_t depth, float* const* c, int32_t columns, const TileOutput& output) {
  const TileFunction function = tile_rows == kTileRows ? tile_function<kTileRows>(width)
                                                       : tile_function<kHalfTileRows>(width);
  function(a, panels, segments, depth, c, columns, output);
}

void multiply_transposed(const TransposedSegment* segments, int segment_count, int64_t a_stride, int width, float* c,
                         int64_t c_stride, int32_t rows, int32_t columns) {
  constexpr int kMaxSegments = 64;
  PanelEpilogue plain;
  plain.fill(nullptr, nullptr, 0, 0);
  const Bounds none;
  const TileOutput output{true, plain.scale, plain.bias, none.low, none.high};
  float unwanted[kPanelWidth];
  TransposedSegment shifted[kMaxSegments];
  for (int first = 0; first < segment_count; first += kMaxSegments) {
    const int count = std::min(kMaxSegments, segment_count - first);
    for (int32_t row = 0; row < rows;) {
      const int32_t left = rows - row;
      int32_t tile_rows = left > kHalfTileRows ? kTileRows : kHalfTileRows;
      if (tile_rows > rows) tile_rows = kHalfTileRows;
      if (tile_rows > rows) tile_rows = 1;
      // Reading past a row of A is not allowed, so the last tile starts early and drops the rows that are done.
      const int32_t start = std::min(row, rows - tile_rows);
      float* c_rows[kTileRows];
      for (int32_t i = 0; i < tile_rows; ++i) {
        c_rows[i] = start + i < row ? unwanted : c + (start + i) * c_stride;
      }
      if (start < row) std::memset(unwanted, 0, sizeof(unwanted));
      for (int s = 0; s < count; ++s) {
        shifted[s] = segments[first + s];
        shifted[s].a += start;
      }
      const TransposedFunction function = tile_rows == kTileRows       ? transposed_function<kTileRows>(width)
                                          : tile_rows == kHalfTileRows ? transposed_function<kHalfTileRows>(width)
                                                                       : transposed_function<1>(width);
      function(shifted, count, a_stride, c_rows, columns, output);
      row = start + tile_rows;
    }
  }
}

void multiply_rows(const float* a, const MatrixSource& b, float* c, int32_t m, int32_t k, int32_t n,
                   const float* column_scale, const Epilogue& epilogue) {
  constexpr int32_t kMaxPanels = 64;
  // Rows whose share of A stays in the second-level cache while all packed panels pass over them.
  constexpr int32_t kBlockFloats = 49152;
  const int32_t depth_blocks = std::max<int32_t>((k + kPanelDepth - 1) / kPanelDepth, 1);
  const int32_t depth_step = (k + depth_blocks - 1) / depth_blocks;
  const int32_t row_step =
      std::max<int32_t>(kBlockFloats / std::max(depth_step, 1) / kTileRows, 4) * kTileRows;
  const Bounds none, bounds = bounds_of(epilogue.activation);
  struct Panel {
    const float* packed;
    int32_t n0, columns;
    int width;
  } panels[kMaxPanels];
  static thread_local PanelEpilogue epilogues[kMaxPanels];
  float unwanted[kPanelWidth] = {};

  for (int32_t n0 = 0; n0 < n;) {
    int32_t n1 = n0;
    for (int32_t k0 = 0, block = 0; block < depth_blocks; ++block, k0 += depth_step) {
      const int32_t depth = std::min(depth_step, k - k0);
      const bool last = block + 1 == depth_blocks;
      int panel_count = 0;
      float* packed = g_panels;
      for (n1 = n0; n1 < n && panel_count < kMaxPanels; ++panel_count) {
        Panel& panel = panels[panel_count];
        panel.width = panel_width(n - n1);
        // Sized by depth_step, so that every block of k splits the columns alike.
        if (packed + int64_t{depth_step} * panel.width > g_panels + kPanelFloats) break;
        panel.n0 = n1;
        panel.columns = std::min<int32_t>(panel.width, n - n1);
        panel.packed = packed;
        pack_panel(b, k0, depth, n1, panel.columns, panel.width, packed);
        epilogues[panel_count].fill(last ? column_scale : nullptr, last ? epilogue.bias : nullptr, n1, panel.columns);
        packed += int64_t{depth_step} * panel.width;
        n1 += panel.columns;
      }
      for (int32_t m0 = 0; m0 < m; m0 += row_step) {
        const int32_t m1 = std::min(m0 + row_step, m);
        for (int p = 0; p < panel_count; ++p) {
          const Panel& panel = panels[p];
          const TileOutput output{block > 0, epilogues[p].scale, epilogues[p].bias, last ? bounds.low : none.low,
                                  last ? bounds.high : none.high};
          for (int32_t row = m0; row < m1;) {
            const int tile_rows = m1 - row > kHalfTileRows ? kTileRows : kHalfTileRows;
            const float* a_rows[kTileRows];
            float* c_rows[kTileRows];
            for (int i = 0; i < tile_rows; ++i) {
              a_rows[i] = a + int64_t{std::min(row + i, m1 - 1)} * k + k0;
              c_rows[i] = row + i < m1 ? c + int64_t{row + i} * n + panel.n0 : unwanted;
            }
            multiply_tile(tile_rows, panel.width, a_rows, &panel.packed, 1, depth, c_rows, panel.columns, output);
            row += tile_rows;
          }
        }
        if (epilogue.mask && last && n1 == n) {
          store_mask(c + int64_t{m0} * n, int64_t{m0} * n, int64_t{m1 - m0} * n, epilogue.activation, epilogue.mask);
        }
      }
    }
    n0 = n1;
  }
}

}  // namespace tinytl
