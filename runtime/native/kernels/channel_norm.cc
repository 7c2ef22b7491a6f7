// LayerNorm and RMSNorm over the channels of each pixel.
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace tinytl {
namespace {

// The sum of term(lanes, first channel) over vectors of channels and term(float, channel) over the rest.
template <class Term>
TINYTL_INLINE float sum_channels(int32_t channels, const Term& term) {
  Vector sums{};
  int32_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) sums += term(Vector{}, c);
  float sum = sum_of<Vector>(sums);
  for (; c < channels; ++c) sum += term(0.0f, c);
  return sum;
}

Slices pixel_slices(int32_t pixels, int32_t channels) { return Slices(pixels, kElementsUnit / channels + 1); }

}  // namespace

void channel_norm_forward(const float* x, float* y, int32_t pixels, int32_t channels, bool rms, float epsilon,
                          const float* weight, const float* bias, float* statistics) {
  const float share = 1.0f / static_cast<float>(channels);
  parallel(pixel_slices(pixels, channels), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float* from = x + p * channels;
      float* to = y + p * channels;
      float mean = 0;
      if (!rms) mean = share * sum_channels(channels, [&]<class V>(V, int32_t c) { return load<V>(from + c); });
      const float variance = share * sum_channels(channels, [&]<class V>(V, int32_t c) {
        const V distance = load<V>(from + c) - mean;
        return distance * distance;
      });
      const float inverse = 1 / std::sqrt(variance + epsilon);
      statistics[2 * p] = mean;
      statistics[2 * p + 1] = inverse;
      for (int32_t c = 0; c < channels; ++c)
        to[c] = (from[c] - mean) * inverse * (weight ? weight[c] : 1.0f) + (bias ? bias[c] : 0.0f);
    }
  });
}

void channel_norm_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels, bool rms,
                           const float* weight, const float* statistics, float* dweight, float* dbias) {
  // Before dx is written, which may be dy.
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    for (int64_t p = 0; p < pixels && (dweight || dbias); ++p) {
      const float *from = x + p * channels, *gradient = dy + p * channels;
      const float mean = statistics[2 * p], inverse = statistics[2 * p + 1];
      for (int32_t c = begin; c < end && dweight; ++c) dweight[c] += gradient[c] * ((from[c] - mean) * inverse);
      for (int32_t c = begin; c < end && dbias; ++c) dbias[c] += gradient[c];
    }
  });
  const float share = 1.0f / static_cast<float>(channels);
  parallel(pixel_slices(pixels, channels), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float *from = x + p * channels, *gradient = dy + p * channels;
      float* to = dx + p * channels;
      const float mean = statistics[2 * p], inverse = statistics[2 * p + 1];
      const auto scaled = [&]<class V>(V, int32_t c) {
        return weight ? load<V>(gradient + c) * load<V>(weight + c) : load<V>(gradient + c);
      };
      const float offset = rms ? 0 : share * sum_channels(channels, scaled);
      const float slope = share * sum_channels(channels, [&]<class V>(V v, int32_t c) {
        return scaled(v, c) * ((load<V>(from + c) - mean) * inverse);
      });
      for (int32_t c = 0; c < channels; ++c)
        to[c] = (scaled(0.0f, c) - offset - (from[c] - mean) * inverse * slope) * inverse;
    }
  });
}

}  // namespace tinytl
