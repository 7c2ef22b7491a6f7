// Channels that move: between groups, and from one map to another.
#include "kernels.h"
#include "parallel.h"

namespace tinytl {
namespace {

// Pixels in slices of about kElementsUnit elements.
template <class Work>
void each_pixel(int32_t pixels, int32_t channels, const Work& work) {
  parallel(Slices(pixels, kElementsUnit / channels + 1), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) work(p);
  });
}

}  // namespace

void shuffle(const float* x, float* y, int32_t pixels, int32_t channels, int32_t groups) {
  const int32_t width = channels / groups;
  each_pixel(pixels, channels, [&](int64_t p) {
    const float* from = x + p * channels;
    float* to = y + p * channels;
    for (int32_t i = 0; i < width; ++i)
      for (int32_t group = 0; group < groups; ++group) *to++ = from[group * width + i];
  });
}

void copy_channels(const float* x, int32_t x_channels, float* y, int32_t y_channels, int32_t pixels, int32_t count,
                   bool accumulate) {
  each_pixel(pixels, count, [&](int64_t p) {
    const float* from = x + p * x_channels;
    float* to = y + p * y_channels;
    for (int32_t c = 0; c < count; ++c) to[c] = accumulate ? to[c] + from[c] : from[c];
  });
}

}  // namespace tinytl
