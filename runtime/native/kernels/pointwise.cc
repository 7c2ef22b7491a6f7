#include <algorithm>

#include "epilogue.h"
#include "gemm.h"
#include "simd.h"

namespace tinytl {
namespace {

// A linear layer reads each weight once: packing would only add traffic.
template <class V, int Vectors>
TINYTL_INLINE void vector_forward_columns(const float* x, float* y, int32_t in, int32_t out, const Weight& w,
                                          const Epilogue& epilogue, int32_t n0) {
  constexpr int kL = lanes_of<V>;
  V sums[Vectors] = {};
  for (int64_t k = 0; k < in; ++k) {
    const V factor = broadcast<V>(x[k]);
    const int64_t at = k * out + n0;
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      sums[j] += factor * (w.f32 ? load<V>(w.f32 + at + j * kL) : load_int8<V>(w.i8 + at + j * kL));
    }
  }
  const Bounds bounds = bounds_of(epilogue.activation);
  for (int j = 0; j < Vectors; ++j) {
    const int32_t n = n0 + j * kL;
    V v = sums[j];
    if (w.i8) v *= load<V>(w.scale + n);
    if (epilogue.bias) v += load<V>(epilogue.bias + n);
    store(y + n, clamp<V>(v, broadcast<V>(bounds.low), broadcast<V>(bounds.high)));
  }
}

void vector_forward(const float* x, float* y, int32_t in, int32_t out, const Weight& w, const Epilogue& epilogue) {
  int32_t n = 0;
  for (; n + 4 * kLanes <= out; n += 4 * kLanes) vector_forward_columns<Vector, 4>(x, y, in, out, w, epilogue, n);
  for (; n + kLanes <= out; n += kLanes) vector_forward_columns<Vector, 1>(x, y, in, out, w, epilogue, n);
  for (; n + 4 <= out; n += 4) vector_forward_columns<VectorOf<4>::Type, 1>(x, y, in, out, w, epilogue, n);
  for (; n < out; ++n) vector_forward_columns<float, 1>(x, y, in, out, w, epilogue, n);
  if (epilogue.mask) store_mask(y, 0, out, epilogue.activation, epilogue.mask);
}

void vector_dx(const float* dy, float* dx, int32_t in, int32_t out, const Weight& w) {
  constexpr int32_t kChunk = 1024;
  float scaled[kChunk];
  std::fill(dx, dx + in, 0.0f);
  for (int32_t n0 = 0; n0 < out; n0 += kChunk) {
    const int32_t columns = std::min(kChunk, out - n0);
    for (int32_t n = 0; n < columns; ++n) scaled[n] = w.i8 ? dy[n0 + n] * w.scale[n0 + n] : dy[n0 + n];
    for (int32_t k = 0; k < in; ++k) {
      const int64_t at = int64_t{k} * out + n0;
      Vector sums[4] = {};
      int32_t n = 0;
      for (; n + 4 * kLanes <= columns; n += 4 * kLanes) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const int32_t column = n + j * kLanes;
          sums[j] += load<Vector>(scaled + column) *
                     (w.f32 ? load<Vector>(w.f32 + at + column) : load_int8<Vector>(w.i8 + at + column));
        }
      }
      for (; n + kLanes <= columns; n += kLanes) {
        sums[0] += load<Vector>(scaled + n) * (w.f32 ? load<Vector>(w.f32 + at + n) : load_int8<Vector>(w.i8 + at + n));
      }
      float sum = sum_of<Vector>((sums[0] + sums[1]) + (sums[2] + sums[3]));
      for (; n < columns; ++n) sum += scaled[n] * (w.f32 ? w.f32[at + n] : static_cast<float>(w.i8[at + n]));
      dx[k] += sum;
    }
  }
}

}  // namespace

void pointwise_forward(const float* x, float* y, int32_t pixels, int32_t in, int32_t out, const Weight& w,
                       const Epilogue& epilogue) {
  if (pixels == 1) return vector_forward(x, y, in, out, w, epilogue);
  const MatrixSource source{w.f32, w.i8, nullptr, out, false};
  multiply_rows(x, source, y, pixels, in, out, w.i8 ? w.scale : nullptr, epilogue);
}

void pointwise_dx(const float* dy, float* dx, int32_t pixels, int32_t in, int32_t out, const Weight& w) {
  if (pixels == 1) return vector_dx(dy, dx, in, out, w);
  const MatrixSource source{w.f32, w.i8, w.i8 ? w.scale : nullptr, out, true};
  multiply_rows(dy, source, dx, pixels, out, in, nullptr, Epilogue{});
}

void pointwise_dw(const float* x, const float* dy, float* dw, int32_t pixels, int32_t in, int32_t out) {
  if (pixels == 1) {
    for (int64_t i = 0; i < in; ++i) {
      for (int32_t n = 0; n < out; ++n) dw[i * out + n] += x[i] * dy[n];
    }
    return;
  }
  // A panel and the columns of x that meet it stay in the first-level cache.
  constexpr int32_t kDepth = 128;
  const MatrixSource source{dy, nullptr, nullptr, out, false};
  for (int32_t p0 = 0; p0 < pixels; p0 += kDepth) {
    const int32_t depth = std::min(kDepth, pixels - p0);
    for (int32_t n0 = 0; n0 < out;) {
      const int width = panel_width(out - n0);
      const int32_t columns = std::min<int32_t>(width, out - n0);
      float* panel = panel_buffer();
      pack_panel(source, p0, depth, n0, columns, width, panel);
      const TransposedSegment segment{x + int64_t{p0} * in, panel, depth};
      multiply_transposed(&segment, 1, in, width, dw + n0, out, in, columns);
      n0 += columns;
    }
  }
}

}  // namespace tinytl
