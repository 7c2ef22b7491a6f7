#include <algorithm>

#include "epilogue.h"
#include "gemm.h"
#include "parallel.h"
#include "simd.h"

namespace tinytl {
namespace {

// A linear layer reads each weight once: packing would only add traffic.
template <class V, int Vectors, class Element>
TINYTL_INLINE void vector_forward_columns(const float* x, float* y, int32_t in, int32_t out, const Element* w,
                                          const float* scale, float zero, const Epilogue& epilogue, int32_t n0) {
  constexpr int kL = lanes_of<V>;
  V sums[Vectors] = {};
  for (int64_t k = 0; k < in; ++k) {
    const V factor = broadcast<V>(x[k]);
    const Element* row = w + k * out + n0;
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sums[j] += factor * load_centred<V>(row + j * kL, zero);
  }
  for (int j = 0; j < Vectors; ++j) {
    const int32_t n = n0 + j * kL;
    V v = sums[j];
    if (scale) v *= load<V>(scale + n);
    if (epilogue.bias) v += load<V>(epilogue.bias + n);
    if (epilogue.accumulate) v += load<V>(y + n);
    store(y + n, clamp<V>(v, broadcast<V>(epilogue.bounds.low), broadcast<V>(epilogue.bounds.high)));
  }
}

template <class Element>
void vector_forward(const float* x, float* y, int32_t in, int32_t out, const Element* w, const float* scale,
                    float zero, const Epilogue& epilogue) {
  int32_t n = 0;
  for (; n + 4 * kLanes <= out; n += 4 * kLanes) {
    vector_forward_columns<Vector, 4>(x, y, in, out, w, scale, zero, epilogue, n);
  }
  for (; n + kLanes <= out; n += kLanes) vector_forward_columns<Vector, 1>(x, y, in, out, w, scale, zero, epilogue, n);
  for (; n + 4 <= out; n += 4) vector_forward_columns<Quad, 1>(x, y, in, out, w, scale, zero, epilogue, n);
  for (; n < out; ++n) vector_forward_columns<float, 1>(x, y, in, out, w, scale, zero, epilogue, n);
  Finish{epilogue}(y, 0, 1, out);
}

template <class Element>
void vector_dx(const float* dy, float* dx, int32_t in, int32_t out, const Element* w, const float* scale,
               float zero, bool accumulate) {
  constexpr int32_t kChunk = 1024;
  float scaled[kChunk];
  if (!accumulate) std::fill(dx, dx + in, 0.0f);
  for (int32_t n0 = 0; n0 < out; n0 += kChunk) {
    const int32_t columns = std::min(kChunk, out - n0);
    for (int32_t n = 0; n < columns; ++n) scaled[n] = scale ? dy[n0 + n] * scale[n0 + n] : dy[n0 + n];
    for (int32_t k = 0; k < in; ++k) {
      const Element* row = w + int64_t{k} * out + n0;
      Vector sums[4] = {};
      int32_t n = 0;
      for (; n + 4 * kLanes <= columns; n += 4 * kLanes) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const int32_t column = n + j * kLanes;
          sums[j] += load<Vector>(scaled + column) * load_centred<Vector>(row + column, zero);
        }
      }
      for (; n + kLanes <= columns; n += kLanes) sums[0] += load<Vector>(scaled + n) * load_centred<Vector>(row + n, zero);
      float sum = sum_of<Vector>((sums[0] + sums[1]) + (sums[2] + sums[3]));
      for (; n < columns; ++n) sum += scaled[n] * load_centred<float>(row + n, zero);
      dx[k] += sum;
    }
  }
}

}  // namespace

void pointwise_forward(const float* x, float* y, int32_t pixels, int32_t in, int32_t out, const Weight& w,
                       const Epilogue& epilogue) {
  const float* scale = w.i8 ? w.scale : nullptr;
  if (pixels == 1) {
    return with_elements(w, [&](auto elements) { vector_forward(x, y, in, out, elements, scale, w.zero, epilogue); });
  }
  multiply_rows(x, {.weight = w, .stride = out, .scale = scale}, y, pixels, in, out, epilogue, Finish(epilogue));
}

void pointwise_dx(const float* dy, float* dx, int32_t pixels, int32_t in, int32_t out, const Weight& w,
                  const GradientEpilogue& epilogue) {
  const float* scale = w.i8 ? w.scale : nullptr;
  const Finish finish(epilogue);
  if (pixels == 1) {
    with_elements(w, [&](auto elements) { vector_dx(dy, dx, in, out, elements, scale, w.zero, epilogue.accumulate); });
    return finish(dx, 0, 1, in);
  }
  const MatrixSource source{.weight = w, .stride = out, .transposed = true, .scale = scale};
  multiply_rows(dy, source, dx, pixels, out, in, {.accumulate = epilogue.accumulate}, finish);
}

void pointwise_dw(const float* x, const float* dy, float* dw, int32_t pixels, int32_t in, int32_t out) {
  if (pixels == 1) {
    for (int64_t i = 0; i < in; ++i) {
      for (int32_t n = 0; n < out; ++n) dw[i * out + n] += x[i] * dy[n];
    }
    return;
  }
  // What a tile reads stays in the first-level cache for the next one.
  constexpr int32_t kDepth = 128;
  parallel(Slices(in, kTileRows), [&](int64_t begin, int64_t end) {
    alignas(64) float panel[kDepth * kPanelWidth];
    for (int32_t p0 = 0; p0 < pixels; p0 += kDepth) {
      const int32_t depth = std::min(kDepth, pixels - p0);
      for (int32_t n0 = 0; n0 < out;) {
        const int width = panel_width(out - n0);
        const int32_t columns = std::min<int32_t>(width, out - n0);
        TransposedSegment segment{x + int64_t{p0} * in + begin, dy + int64_t{p0} * out + n0, depth};
        int64_t stride = out;
        if (columns < width) {  // whole rows are not there to be read
          pack_panel({.weight = {.f32 = dy}, .stride = out}, p0, depth, n0, columns, width, panel);
          segment.b = panel;
          stride = width;
        }
        multiply_transposed(&segment, 1, in, stride, width, dw + begin * out + n0, out, static_cast<int32_t>(end - begin),
                            columns);
        n0 += columns;
      }
    }
  });
}

}  // namespace tinytl
