// Products of two maps: of one shape, or of a map and a factor for each channel (squeeze and excitation).
#include "kernels.h"
#include "parallel.h"

namespace tinytl {

void multiply(const float* x, const float* other, float* y, int32_t pixels, int32_t channels) {
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    for (int64_t row = 0; row < int64_t{pixels} * channels; row += channels) {
      for (int32_t c = begin; c < end; ++c) y[row + c] = x[row + c] * other[c];
    }
  });
}

void multiply_dother(const float* dy, const float* x, float* dother, int32_t pixels, int32_t channels) {
  const int64_t row = channels;
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    for (int32_t c = begin; c < end; ++c) dother[c] = dy[c] * x[c];
    // Further pixels in fours: fewer passes over the sums, and shorter chains of roundings.
    int32_t p = 1;
    for (; p + 4 <= pixels; p += 4) {
      const float *d = dy + p * row, *v = x + p * row;
      for (int64_t c = begin; c < end; ++c) {
        dother[c] += (d[c] * v[c] + d[c + row] * v[c + row]) +
                     (d[c + 2 * row] * v[c + 2 * row] + d[c + 3 * row] * v[c + 3 * row]);
      }
    }
    for (; p < pixels; ++p) {
      for (int64_t c = begin; c < end; ++c) dother[c] += dy[p * row + c] * x[p * row + c];
    }
  });
}

}  // namespace tinytl
