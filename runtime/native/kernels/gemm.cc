#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "epilogue.h"
#include "parallel.h"
#include "simd.h"

namespace tinytl {
namespace {

alignas(64) thread_local float g_panels[kPanelFloats];

using Narrow = VectorOf<kNarrowestPanel>::Type;

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

// to[j * to_stride + i] = from[i * stride + j], for 4 x 4 elements.
template <class Element>
TINYTL_INLINE void transpose_quads(const Element* from, int64_t stride, float* to, int to_stride) {
  const Quad r0 = load<Quad>(from), r1 = load<Quad>(from + stride);
  const Quad r2 = load<Quad>(from + 2 * stride), r3 = load<Quad>(from + 3 * stride);
  const Quad low02 = __builtin_shufflevector(r0, r2, 0, 4, 1, 5), high02 = __builtin_shufflevector(r0, r2, 2, 6, 3, 7);
  const Quad low13 = __builtin_shufflevector(r1, r3, 0, 4, 1, 5), high13 = __builtin_shufflevector(r1, r3, 2, 6, 3, 7);
  store(to, Quad(__builtin_shufflevector(low02, low13, 0, 4, 1, 5)));
  store(to + to_stride, Quad(__builtin_shufflevector(low02, low13, 2, 6, 3, 7)));
  store(to + 2 * to_stride, Quad(__builtin_shufflevector(high02, high13, 0, 4, 1, 5)));
  store(to + 3 * to_stride, Quad(__builtin_shufflevector(high02, high13, 2, 6, 3, 7)));
}

// `from`: element (0, 0) of the panel. `scale`: of its columns, or null. `zero`: of int8.
template <class Element>
void pack_straight(const Element* from, int64_t stride, const float* scale, float zero, int32_t depth, int32_t columns, int width,
                   float* panel) {
  for (int32_t k = 0; k < depth; ++k, from += stride, panel += width) {
    if (columns < width) {
      for (int32_t n = 0; n < columns; ++n) panel[n] = load_centred<float>(from + n, zero) * (scale ? scale[n] : 1.0f);
      for (int32_t n = columns; n < width; ++n) panel[n] = 0;
      continue;
    }
    int n = 0;
    if constexpr (sizeof(Element) == 1) {
      for (; n + 16 <= width; n += 16) {
        Part values[16 / lanes_of<Part>];
        load16(from + n, values);
        for (int i = 0; i < 16 / lanes_of<Part>; ++i) {
          const int at = n + i * lanes_of<Part>;
          store(panel + at, Part((values[i] - zero) * load<Part>(scale + at)));
        }
      }
    }
    for (; n < width; n += kNarrowestPanel) {
      Narrow values = load_centred<Narrow>(from + n, zero);
      if (scale) values *= load<Narrow>(scale + n);
      store(panel + n, values);
    }
  }
}

// `scale`: of the panel's rows, or null.
template <class Element>
void pack_transposed(const Element* from, int64_t stride, const float* scale, float zero, int32_t depth, int32_t columns, int width,
                     float* panel) {
  // Blocks of block x block elements go through registers, the edges element by element.
  constexpr int kBlock = sizeof(Element) == 1 ? 16 : 4;
  const int32_t block_columns = columns / kBlock * kBlock, block_depth = depth / kBlock * kBlock;
  for (int32_t n = 0; n < block_columns; n += kBlock) {
    for (int32_t k = 0; k < block_depth; k += kBlock) {
      const Element* block = from + n * stride + k;
      float* to = panel + int64_t{k} * width + n;
      if constexpr (kBlock == 4) {
        transpose_quads(block, stride, to, width);
      } else {
        alignas(16) int8_t turned[256];
        transpose_bytes(block, stride, turned);
        for (int i = 0; i < 16; ++i, to += width) {
          Part values[16 / lanes_of<Part>];
          load16(turned + 16 * i, values);
          for (int j = 0; j < 16 / lanes_of<Part>; ++j) store(to + j * lanes_of<Part>, Part((values[j] - zero) * scale[k + i]));
        }
      }
    }
  }
  for (int32_t k = 0; k < depth; ++k) {
    const float row_scale = scale ? scale[k] : 1.0f;
    float* to = panel + int64_t{k} * width;
    for (int32_t n = k < block_depth ? block_columns : 0; n < columns; ++n) {
      to[n] = load_centred<float>(from + n * stride + k, zero) * row_scale;
    }
    for (int32_t n = columns; n < width; ++n) to[n] = 0;
  }
}

// `Last`: how many lanes of the last vector there is room for in c.
template <class V, int Rows, int Vectors, int Last = lanes_of<V>>
__attribute__((noinline)) void tile(const float* const* a, const float* const* panels, int segments, int32_t depth,
                                    float* const* c, int32_t n0, const TileOutput& output) {
  constexpr int kL = lanes_of<V>;
  using End = typename VectorOf<Last>::Type;
  V sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sums[i][j] = load<V>(output.start + j * kL);
  }
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
  if (output.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) {
        const float* from = c[i] + n0 + j * kL;
        sums[i][j] += Last == kL || j + 1 < Vectors ? load<V>(from) : V(load_first<V, End>(from));
      }
    }
  }
  if (output.bounds.clamps()) {
    const V low = broadcast<V>(output.bounds.low), high = broadcast<V>(output.bounds.high);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i][j] = clamp<V>(sums[i][j], low, high);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      float* to = c[i] + n0 + j * kL;
      if (Last == kL || j + 1 < Vectors) {
        store(to, sums[i][j]);
      } else {
        __builtin_memcpy(to, &sums[i][j], sizeof(End));
      }
    }
  }
}

template <class V, int Rows, int Vectors>
__attribute__((noinline)) void transposed_tile(const TransposedSegment* segments, int segment_count, int64_t a_stride,
                                               int64_t b_stride, float* const* c) {
  constexpr int kL = lanes_of<V>;
  V sums[Rows][Vectors] = {};
  for (int segment = 0; segment < segment_count; ++segment) {
    const float *a = segments[segment].a, *from = segments[segment].b;
    for (int32_t k = segments[segment].depth; k > 0; --k, a += a_stride, from += b_stride) {
      V b[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) b[j] = load<V>(from + j * kL);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const V factor = broadcast<V>(a[i]);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sums[i][j] += factor * b[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store(c[i] + j * kL, V(load<V>(c[i] + j * kL) + sums[i][j]));
  }
}

using TileFunction = void (*)(const float* const*, const float* const*, int, int32_t, float* const*, int32_t,
                              const TileOutput&);
using TransposedFunction = void (*)(const TransposedSegment*, int, int64_t, int64_t, float* const*);

constexpr int kFullVectors = kPanelWidth / kLanes;

// Three quarters of a panel, as 24 channels are of AVX-512's, take one tile and not two.
constexpr bool kQuarters = kPanelWidth == 2 * kLanes && kNarrowestPanel == kLanes / 2;
constexpr int kThreeQuarters = kPanelWidth / 4 * 3;

template <int Rows>
TileFunction three_quarters_tile() {
  if constexpr (kQuarters) return tile<Vector, Rows, 2, kLanes / 2>;
  return nullptr;
}

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

// Rows of a tile that reaches past the last column live here, at the full width, while it is multiplied.
class WholeRows {
 public:
  WholeRows(float* const* rows, int count, int32_t n0, int32_t columns)
      : rows_(rows), count_(count), n0_(n0), bytes_(static_cast<size_t>(columns) * sizeof(float)) {
    for (int i = 0; i < count; ++i) {
      std::memcpy(copy_[i], rows[i] + n0, bytes_);
      pointers_[i] = copy_[i];
    }
  }
  ~WholeRows() {
    for (int i = 0; i < count_; ++i) std::memcpy(rows_[i] + n0_, copy_[i], bytes_);
  }
  WholeRows(const WholeRows&) = delete;
  float* const* pointers() const { return pointers_; }

 private:
  float* const* rows_;
  int count_;
  int32_t n0_;
  size_t bytes_;
  float* pointers_[kTileRows];
  float copy_[kTileRows][kPanelWidth] = {};
};

// A part of a product, on one thread.
class PartialProduct {
 public:
  PartialProduct(const float* a, const MatrixSource& b, float* c, int32_t k, int32_t n, const Epilogue& epilogue)
      : a_(a), b_(b), c_(c), k_(k), n_(n), epilogue_(epilogue) {}

  // Slices [first_slice, end_slice) of the rows, columns [begin, end); finish(slice, row, end row) gets what is done.
  template <class FinishRows>
  void multiply(const Slices& rows, int first_slice, int end_slice, int32_t begin, int32_t end,
                const FinishRows& finish) {
    const int32_t depth_blocks = std::max<int32_t>((k_ + kPanelDepth - 1) / kPanelDepth, 1);
    const int32_t depth_step = (k_ + depth_blocks - 1) / depth_blocks;
    const int32_t step = row_step(depth_step);
    for (int32_t n0 = begin, n1 = begin; n0 < end; n0 = n1) {
      for (int32_t k0 = 0; k0 < k_; k0 += depth_step) {
        const int32_t depth = std::min(depth_step, k_ - k0);
        const bool last = k0 + depth == k_;
        n1 = pack(n0, end, k0, depth, depth_step, last);
        for (int slice = first_slice; slice < end_slice; ++slice) {
          const auto end_row = static_cast<int32_t>(rows.end(slice));
          for (auto m0 = static_cast<int32_t>(rows.begin(slice)); m0 < end_row; m0 += step) {
            const int32_t m1 = std::min(m0 + step, end_row);
            multiply_block(m0, m1, k0, depth, last);
            if (last && n1 == end) finish(slice, m0, m1);
          }
        }
      }
    }
  }

 private:
  static constexpr int32_t kMaxPanels = 64, kBlockTiles = 8;
  struct Panel {
    const float* packed;
    int32_t n0, columns;
    int width;
    PanelBias bias;
  };

  // Rows that stay in the first-level cache, if there are any such, while all packed panels pass over them.
  int32_t row_step(int32_t depth_step) const {
    constexpr int32_t kBlockFloats = 6144;
    return std::clamp(kBlockFloats / kTileRows / (depth_step + n_), 1, kBlockTiles) * kTileRows;
  }

  // Packs rows [k0, k0 + depth) of B and columns [n0, n1), as many as there is room for up to `end`. Returns n1.
  int32_t pack(int32_t n0, int32_t end, int32_t k0, int32_t depth, int32_t depth_step, bool last) {
    float* packed = g_panels;
    for (panel_count_ = 0; n0 < end && panel_count_ < kMaxPanels; ++panel_count_) {
      Panel& panel = panels_[panel_count_];
      panel.width = kQuarters && end - n0 == kThreeQuarters ? kPanelWidth : panel_width(end - n0);
      // Sized by depth_step, so that every block of k splits the columns alike.
      if (packed + int64_t{depth_step} * panel.width > g_panels + kPanelFloats) break;
      panel.n0 = n0;
      panel.columns = std::min<int32_t>(panel.width, end - n0);
      panel.packed = packed;
      pack_panel(b_, k0, depth, n0, panel.columns, panel.width, packed);
      panel.bias.fill(last ? epilogue_.bias : nullptr, n0, panel.columns);
      packed += int64_t{depth_step} * panel.width;
      n0 += panel.columns;
    }
    return n0;
  }

  void multiply_block(int32_t m0, int32_t m1, int32_t k0, int32_t depth, bool last) const {
    const float* a_rows[kBlockTiles * kTileRows];
    float* c_rows[kBlockTiles * kTileRows];
    // A last tile repeats the last row, to the same effect.
    const int32_t rows = (m1 - m0 + kTileRows - 1) / kTileRows * kTileRows;
    for (int32_t i = 0; i < rows; ++i) {
      const int64_t row = std::min(m0 + i, m1 - 1);
      a_rows[i] = a_ + row * k_ + k0;
      c_rows[i] = c_ + row * n_;
    }
    const Bounds bounds = last ? epilogue_.bounds : Bounds{};
    for (int p = 0; p < panel_count_; ++p) {
      const Panel& panel = panels_[p];
      const TileOutput output{epilogue_.accumulate || k0 > 0, panel.bias.values, bounds};
      for (int32_t row = 0; m0 + row < m1;) {
        const int tile_rows = m1 - m0 - row > kHalfTileRows ? kTileRows : kHalfTileRows;
        multiply_tile(tile_rows, panel.width, a_rows + row, &panel.packed, 1, depth, c_rows + row, panel.n0,
                      panel.columns, output);
        row += tile_rows;
      }
    }
  }

  const float* a_;
  const MatrixSource& b_;
  float* c_;
  const int32_t k_, n_;
  const Epilogue& epilogue_;
  Panel panels_[kMaxPanels];
  int panel_count_ = 0;
};

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
  const int64_t row = b.transposed ? n0 : k0, column = b.transposed ? k0 : n0;
  const float* scale = b.scale ? b.scale + column : nullptr;
  with_elements(b.weight, [&]<class Element>(const Element* elements) {
    (b.transposed ? pack_transposed<Element> : pack_straight<Element>)(elements + b.first + row * b.stride + column,
                                                                       b.stride, scale, b.weight.zero, depth, columns, width, panel);
  });
}

void PanelBias::fill(const float* bias, int32_t n0, int32_t columns) {
  for (int32_t n = 0; n < kPanelWidth; ++n) values[n] = bias && n < columns ? bias[n0 + n] : 0.0f;
}

void multiply_tile(int tile_rows, int width, const float* const* a, const float* const* panels, int segments,
                   int32_t depth, float* const* c, int32_t n0, int32_t columns, const TileOutput& output) {
  const TileFunction function = tile_rows == kTileRows ? tile_function<kTileRows>(width)
                                                       : tile_function<kHalfTileRows>(width);
  if (columns == width) return function(a, panels, segments, depth, c, n0, output);
  if (kQuarters && width == kPanelWidth && columns == kThreeQuarters) {
    return (tile_rows == kTileRows ? three_quarters_tile<kTileRows>() : three_quarters_tile<kHalfTileRows>())(
        a, panels, segments, depth, c, n0, output);
  }
  function(a, panels, segments, depth, WholeRows(c, tile_rows, n0, columns).pointers(), 0, output);
}

void multiply_transposed(const TransposedSegment* segments, int segment_count, int64_t a_stride, int64_t b_stride,
                         int width, float* c, int64_t c_stride, int32_t rows, int32_t columns) {
  // Two tile heights that make up every even number of channels but the smallest.
  constexpr int kTall = kTileRows >= 12 ? 12 : 6, kShort = kTall / 3 * 2;
  constexpr int kMaxSegments = 64;
  float unwanted[kPanelWidth] = {};
  TransposedSegment shifted[kMaxSegments];
  for (int first = 0; first < segment_count; first += kMaxSegments) {
    const int count = std::min(kMaxSegments, segment_count - first);
    for (int32_t row = 0; row < rows;) {
      const int32_t left = rows - row;
      const int tile_rows = left == kTall || left >= kTall + kShort ? kTall : rows >= kShort ? kShort : 1;
      // Reading past a row of A is not allowed, so the last tile starts early and drops the rows that are done.
      const int32_t start = std::min(row, rows - tile_rows);
      float* c_rows[kTall];
      for (int i = 0; i < tile_rows; ++i) c_rows[i] = start + i < row ? unwanted : c + (start + i) * c_stride;
      for (int s = 0; s < count; ++s) {
        shifted[s] = segments[first + s];
        shifted[s].a += start;
      }
      const TransposedFunction function = tile_rows == kTall    ? transposed_function<kTall>(width)
                                          : tile_rows == kShort ? transposed_function<kShort>(width)
                                                                : transposed_function<1>(width);
      if (columns == width) {
        function(shifted, count, a_stride, b_stride, c_rows);
      } else {
        function(shifted, count, a_stride, b_stride, WholeRows(c_rows, tile_rows, 0, columns).pointers());
      }
      row = start + tile_rows;
    }
  }
}

void multiply_rows(const float* a, const MatrixSource& b, float* c, int32_t m, int32_t k, int32_t n,
                   const Epilogue& epilogue, const Finish& finish) {
  if (m <= kFewPixels && n % 8 == 0) {
    const Slices rows(m, m);
    return parallel_channels(n, [&](int32_t begin, int32_t end) {
      PartialProduct(a, b, c, k, n, epilogue).multiply(rows, 0, 1, begin, end, [&](int, int32_t m0, int32_t m1) {
        finish.columns(c, m0, m1 - m0, n, begin, end);
      });
    });
  }
  const SlicedFinish sliced(finish, n, 1, m, kTileRows);
  parallel_shares(sliced.slices().count(), [&](int first, int end) {
    PartialProduct(a, b, c, k, n, epilogue)
        .multiply(sliced.slices(), first, end, 0, n, [&](int slice, int32_t m0, int32_t m1) { sliced(slice, c, m0, m1); });
  });
}

}  // namespace tinytl
