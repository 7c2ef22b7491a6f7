#include <algorithm>

#include "epilogue.h"
#include "gemm.h"
#include "parallel.h"
#include "simd.h"

namespace tinytl {
void pointwise_forward(const float* x, float* y, int32_t pixels, int32_t in, int32_t out, const Weight& w,
                       const Epilogue& epilogue) {
  if (pixels == 1) return linear_forward({x, y, 1, 0}, in, out, w, epilogue);
  const float* scale = w.i8 ? w.scale : nullptr;
  multiply_rows(x, {.weight = w, .stride = out, .scale = scale}, y, pixels, in, out, epilogue, Finish(epilogue));
}

void pointwise_dx(const float* dy, float* dx, int32_t pixels, int32_t in, int32_t out, const Weight& w,
                  const GradientEpilogue& epilogue) {
  if (pixels == 1) return linear_dx({dy, dx, 1, 0}, in, out, w, epilogue);
  const float* scale = w.i8 ? w.scale : nullptr;
  const MatrixSource source{.weight = w, .stride = out, .transposed = true, .scale = scale};
  multiply_rows(dy, source, dx, pixels, out, in, {.accumulate = epilogue.accumulate}, Finish(epilogue));
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
