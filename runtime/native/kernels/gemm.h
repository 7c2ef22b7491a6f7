// Blocked matrix products over NHWC rows: a small packed panel of the weights, activations read where they are.
#pragma once

#include <cstdint>

#include "epilogue.h"
#include "kernels.h"
#include "simd.h"

namespace tinytl {

// The matrix B[k][n] of a product: element (k, n) is the weight's element first + k * stride + n, or
// first + n * stride + k when transposed. scale: of an int8 weight, for each element of a row as it is stored.
struct MatrixSource {
  Weight weight;
  int64_t stride = 0;
  bool transposed = false;
  const float* scale = nullptr;
  int64_t first = 0;
};

// Calls body with a pointer to the weight's elements, of whichever type they are.
template <class Body>
TINYTL_INLINE auto with_elements(const Weight& w, const Body& body) {
  if (w.f32) return body(w.f32);
  if (w.bf16) return body(w.bf16);
  return body(w.i8);
}

// Elements of a weight, of int8 the codes less their zero.
template <class V, class Element>
TINYTL_INLINE V load_centred(const Element* from, float zero) {
  if constexpr (sizeof(Element) == 1) return load<V>(from) - broadcast<V>(zero);
  return load<V>(from);
}

// What becomes of a tile of sums: added to start and, when accumulating, to what was there; clamped.
struct TileOutput {
  bool accumulate;
  const float* start;  // [panel width]
  Bounds bounds;
};

// A pass over a panel multiplies rows of A with `width` packed columns; a tile has at most kTileRows rows.
#if TINYTL_VECTOR_BYTES == 64
constexpr int kTileRows = 14, kHalfTileRows = 7, kPanelWidth = 32, kNarrowestPanel = 8;
#elif TINYTL_VECTOR_BYTES == 32
constexpr int kTileRows = 6, kHalfTileRows = 3, kPanelWidth = 16, kNarrowestPanel = 8;
#elif defined(__aarch64__)
constexpr int kTileRows = 6, kHalfTileRows = 3, kPanelWidth = 16, kNarrowestPanel = 4;
#else
constexpr int kTileRows = 6, kHalfTileRows = 3, kPanelWidth = 8, kNarrowestPanel = 4;
#endif

// Packed panels live here, one buffer a thread: what one packs for another costs more than to pack it twice.
constexpr int32_t kPanelFloats = 40960;
constexpr int32_t kPanelDepth = kPanelFloats / kPanelWidth;
float* panel_buffer();

// The width of the panel that covers the next of `columns` remaining columns.
int panel_width(int32_t columns);

// Packs B[k0, k0 + depth)[n0, n0 + columns) as depth rows of `width` floats, zero beyond `columns`.
void pack_panel(const MatrixSource& b, int32_t k0, int32_t depth, int32_t n0, int32_t columns, int width, float* panel);

// The bias of columns [n0, n0 + columns), or zeros where it is null, padded to a panel.
struct PanelBias {
  float values[kPanelWidth];
  void fill(const float* bias, int32_t n0, int32_t columns);
};

// c[i][n0 + column] for columns [0, columns) = sum over segments s and k of a[s * tile_rows + i][k] *
// panels[s][k * width + column], for tile_rows rows (kTileRows or kHalfTileRows), some of which may be the same.
void multiply_tile(int tile_rows, int width, const float* const* a, const float* const* panels, int segments,
                   int32_t depth, float* const* c, int32_t n0, int32_t columns, const TileOutput& output);

// A run of k for the transposed product: element (row i, k) of A is a[k * a_stride + i], row k of B is b[k * b_stride].
struct TransposedSegment {
  const float *a, *b;
  int32_t depth;
};

// c[i * c_stride + column] += sum over segments and k, for rows [0, rows). Rows of B are read `width` floats long.
void multiply_transposed(const TransposedSegment* segments, int segment_count, int64_t a_stride, int64_t b_stride,
                         int width, float* c, int64_t c_stride, int32_t rows, int32_t columns);

// C[m][n] = sum_k A[m][k] B[k][n], rows of A and C contiguous; `finish` gets the rows of C when they are done. In
// parallel.
void multiply_rows(const float* a, const MatrixSource& b, float* c, int32_t m, int32_t k, int32_t n,
                   const Epilogue& epilogue, const Finish& finish);

}  // namespace tinytl
