// Products of two maps: of one shape, or of a map and a factor for each channel (squeeze and excitation).
#include "kernels.h"

namespace tinytl {

void multiply(const float* x, const float* other, float* y, int32_t pixels, int32_t channels) {
  for (int32_t p = 0; p < pixels; ++p, x += channels, y += channels) {
    for (int32_t c = 0; c < channels; ++c) y[c] = x[c] * other[c];
  }
}

void multiply_dother(const float* dy, const float* x, float* dother, int32_t pixels, int32_t channels) {
  for (int32_t c = 0; c < channels; ++c) dother[c] = dy[c] * x[c];
  // Further pixels in fours: fewer passes over the sums, and shorter chains of roundings.
  const int64_t row = channels;
  int32_t p = 1;
  for (; p + 4 <= pixels; p += 4) {
    const float *d = dy + p * row, *v = x + p * row;
    for (int64_t c = 0; c < row; ++c) {
      dother[c] += (d[c] * v[c] + d[c + row] * v[c + row]) +
                   (d[c + 2 * row] * v[c + 2 * row] + d[c + 3 * row] * v[c + 3 * row]);
    }
  }
  for (; p < pixels; ++p) {
    for (int64_t c = 0; c < row; ++c) dother[c] += dy[p * row + c] * x[p * row + c];
  }
}

}  // namespace tinytl
