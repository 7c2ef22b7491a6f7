#include <cmath>

#include "kernels.h"
#include "parallel.h"

namespace tinytl {
namespace {

// Sums over a group, in double across pixels; within a pixel a few floats are summed at a time.
template <class Term>
double group_sum(int32_t pixels, int32_t channels, int32_t first, int32_t width, Term term) {
  double sum = 0;
  for (int32_t p = 0; p < pixels; ++p) {
    const int64_t row = int64_t{p} * channels + first;
    for (int32_t c = 0; c < width; ++c) sum += static_cast<double>(term(row + c, first + c));
  }
  return sum;
}

}  // namespace

void group_norm_forward(const float* x, float* y, int32_t pixels, int32_t channels, int32_t groups, float epsilon,
                        const float* weight, const float* bias, float* statistics) {
  const int32_t width = channels / groups;
  const double count = static_cast<double>(pixels) * width;
  parallel(groups, [&](int group) {
    const int32_t first = group * width;
    const double mean =
        group_sum(pixels, channels, first, width, [&](int64_t i, int32_t) { return x[i]; }) / count;
    const double variance = group_sum(pixels, channels, first, width, [&](int64_t i, int32_t) {
                              const double distance = x[i] - mean;
                              return distance * distance;
                            }) / count;
    const float center = static_cast<float>(mean);
    const float inverse = static_cast<float>(1 / std::sqrt(variance + static_cast<double>(epsilon)));
    statistics[2 * group] = center;
    statistics[2 * group + 1] = inverse;
    for (int32_t p = 0; p < pixels; ++p) {
      const int64_t row = int64_t{p} * channels;
      for (int32_t c = first; c < first + width; ++c) {
        const float normal = (x[row + c] - center) * inverse;
        y[row + c] = normal * (weight ? weight[c] : 1.0f) + (bias ? bias[c] : 0.0f);
      }
    }
  });
}

void group_norm_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels,
                         int32_t groups, const float* weight, const float* statistics, float* dweight, float* dbias) {
  const int32_t width = channels / groups;
  const double count = static_cast<double>(pixels) * width;
  parallel(groups, [&](int group) {
    const int32_t first = group * width;
    const float center = statistics[2 * group], inverse = statistics[2 * group + 1];
    // Before dx is written, which may be dy.
    for (int32_t p = 0; p < pixels && (dweight || dbias); ++p) {
      const int64_t row = int64_t{p} * channels;
      for (int32_t c = first; c < first + width; ++c) {
        if (dweight) dweight[c] += dy[row + c] * (x[row + c] - center) * inverse;
        if (dbias) dbias[c] += dy[row + c];
      }
    }
    auto scaled = [&](int64_t i, int32_t c) { return dy[i] * (weight ? weight[c] : 1.0f); };
    const double mean = group_sum(pixels, channels, first, width, scaled) / count;
    const double slope = group_sum(pixels, channels, first, width, [&](int64_t i, int32_t c) {
                           return scaled(i, c) * (x[i] - center) * inverse;
                         }) / count;
    for (int32_t p = 0; p < pixels; ++p) {
      const int64_t row = int64_t{p} * channels;
      for (int32_t c = first; c < first + width; ++c) {
        const float normal = (x[row + c] - center) * inverse;
        dx[row + c] =
            (scaled(row + c, c) - static_cast<float>(mean) - normal * static_cast<float>(slope)) * inverse;
      }
    }
  });
}

void affine_forward(const float* x, float* y, int32_t pixels, int32_t channels, const float* weight,
                    const float* bias) {
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    for (int64_t row = 0; row < int64_t{pixels} * channels; row += channels) {
      for (int32_t c = begin; c < end; ++c)
        y[row + c] = x[row + c] * (weight ? weight[c] : 1.0f) + (bias ? bias[c] : 0.0f);
    }
  });
}

void affine_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels,
                     const float* weight, float* dweight, float* dbias) {
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    for (int64_t row = 0; row < int64_t{pixels} * channels; row += channels) {
      if (dweight) {
        for (int32_t c = begin; c < end; ++c) dweight[c] += dy[row + c] * x[row + c];
      }
      if (dbias) {
        for (int32_t c = begin; c < end; ++c) dbias[c] += dy[row + c];
      }
      for (int32_t c = begin; c < end; ++c) dx[row + c] = dy[row + c] * (weight ? weight[c] : 1.0f);
    }
  });
}

}  // namespace tinytl
