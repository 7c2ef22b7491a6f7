// Local response normalisation over neighbouring channels of each pixel.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "parallel.h"

namespace tinytl {
namespace {

Slices pixel_slices(int32_t pixels, int32_t channels) { return Slices(pixels, kElementsUnit / channels + 1); }

// s[c] of a pixel.
inline float scale_at(const float* x, int32_t c, int32_t channels, const ResponseWindow& window) {
  const int32_t begin = std::max(c - (window.size - 1) / 2, 0), end = std::min(c + window.size / 2 + 1, channels);
  float squares = 0;
  for (int32_t k = begin; k < end; ++k) squares += x[k] * x[k];
  return window.offset + window.alpha * squares;
}

// s^-beta. Nearly every network has a beta of 0.75, of which two roots are several times as fast as a power.
inline float power(float s, float beta) {
  if (beta != 0.75f) return std::pow(s, -beta);
  const float root = std::sqrt(s);
  return 1 / (root * std::sqrt(root));
}

}  // namespace

void response_norm_forward(const float* x, float* y, int32_t pixels, int32_t channels, const ResponseWindow& window) {
  parallel(pixel_slices(pixels, channels), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float* from = x + p * channels;
      float* to = y + p * channels;
      for (int32_t c = 0; c < channels; ++c) to[c] = from[c] * power(scale_at(from, c, channels, window), window.beta);
    }
  });
}

// With p[c] = s[c]^-beta: dx[k] = dy[k] p[k] - 2 alpha beta x[k] (sum over the c whose window has k: dy[c] x[c] p[c] / s[c]).
void response_norm_dx(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels,
                      const ResponseWindow& window) {
  const int32_t before = (window.size - 1) / 2, behind = window.size / 2;  // k is in the windows of k - behind to k + before
  parallel(pixel_slices(pixels, channels), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float *from = x + p * channels, *gradient = dy + p * channels;
      float* to = dx + p * channels;
      // Of the last channels, by channel modulo the window: dx may be dy, which is read `before` channels ahead.
      float direct[kLargestResponseWindow], spread[kLargestResponseWindow] = {};
      for (int32_t c = 0; c < channels + before; ++c) {
        const int32_t slot = c % window.size;
        spread[slot] = 0;
        if (c < channels) {
          const float s = scale_at(from, c, channels, window);
          direct[slot] = gradient[c] * power(s, window.beta);
          spread[slot] = direct[slot] * from[c] / s;
        }
        const int32_t k = c - before;
        if (k < 0) continue;
        float sum = 0;
        for (int32_t i = std::max(k - behind, 0); i <= c; ++i) sum += spread[i % window.size];
        to[k] = direct[k % window.size] - 2 * window.alpha * window.beta * from[k] * sum;
      }
    }
  });
}

}  // namespace tinytl
