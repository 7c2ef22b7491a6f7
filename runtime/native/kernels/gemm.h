// Blocked matrix products over NHWC rows: a small packed panel of the weights, activations read where they are.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "simd.h"

namespace tinytl {

// The matrix B[k][n] of a product, float32 or int8 with a scale for each k (int8 scales along n belong to the
// epilogue): element (k, n) is at k * stride + n, or at n * stride + k when transposed.
struct MatrixSource {
  const float* f32 = nullptr;
  const int8_t* i8 = nullptr;
  const float* k_scale = nullptr;
  int64_t stride = 0;
  bool transposed = false;
};

// What happens to a tile of sums: (sums + what was there, if accumulating) * scale + bias, clamped.
struct TileOutput {
  bool accumulate;
  const float* scale;  // [panel width], padded
  const float* bias;   // [panel width], padded
  float low, high;
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

// Packed panels live here, one buffer a thread.
constexpr int32_t kPanelFloats = 40960;
constexpr int32_t kPanelDepth = kPanelFloats / kPanelWidth;
float* panel_buffer();

// The width of the panel that covers the next of `columns` remaining columns.
int panel_width(int32_t columns);

// Packs B[k0, k0 + depth)[n0, n0 + columns) as depth rows of `width` floats, zero beyond `columns`.
void pack_panel(const MatrixSource& b, int32_t k0, int32_t depth, int32_t n0, int32_t columns, int width, float* panel);

// Scale and bias of columns [n0, n0 + columns), padded to a panel; null means 1 and 0.
struct PanelEpilogue {
  float scale[kPanelWidth];
  float bias[kPanelWidth];
  void fill(const float* column_scale, const float* column_bias, int32_t n0, int32_t columns);
};

// c[i][0, columns) = sum over segments s and k of a[s * tile_rows + i][k] panels[s][k * width + column], for
// tile_rows rows (kTileRows or kHalfTileRows).
void multiply_tile(int tile_rows, int width, const float* const* a, const float* const* panels, int segments,
                   int32_t depth, float* const* c, int32_t columns, const TileOutput& output);

// A run of k for the transposed product: element (row i, k) of A is a[k * stride + i].
struct TransposedSegment {
  const float* a;
  const float* panel;
  int32_t depth;
};

// c[i * c_stride + column] += sum over segments and k, for rows [0, rows).
void multiply_transposed(const TransposedSegment* segments, int segment_count, int64_t a_stride, int width, float* c,
                         int64_t c_stride, int32_t rows, int32_t columns);

// C[m][n] = sum_k A[m][k] B[k][n], rows of A and C contiguous; column_scale multiplies before the epilogue.
void multiply_rows(const float* a, const MatrixSource& b, float* c, int32_t m, int32_t k, int32_t n,
                   const float* column_scale, const Epilogue& epilogue);

}  // namespace tinytl
