// Built with -ffp-contract=off: every operation is rounded by itself, as the specification says. Clang fuses within
// one expression only, so each operation stands in its own statement; GCC fuses across them too, and is told not to.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif
#ifdef __FAST_MATH__
#error "sampling must agree bit for bit with runtime/images/sampling.py: build it without -ffast-math"
#endif

#include "sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <utility>

namespace tinytl {

static_assert(FLT_EVAL_METHOD == 0, "float and double must be computed as such, not in x87's 80 bits");

namespace {

enum Stream : uint64_t { kOrder = 1, kAugment = 2, kDropout = 3 };

// The two source pixels of an output pixel along one axis, and how far it lies towards the second.
struct Tap {
  int32_t low, high;
  float fraction;
};

Tap tap(int32_t output, int32_t length, int32_t outputs) {
  const int64_t numerator = (2 * int64_t{output} + 1) * length;
  const int64_t denominator = 2 * int64_t{outputs};
  const double quotient = static_cast<double>(numerator) / static_cast<double>(denominator);
  double source = quotient - 0.5;
  source = std::clamp(source, 0.0, static_cast<double>(length - 1));
  const int32_t low = static_cast<int32_t>(source);
  const double fraction = source - low;
  return {low, std::min(low + 1, length - 1), static_cast<float>(fraction)};
}

float lerp(float a, float b, float fraction) {
  const float difference = b - a;
  const float share = difference * fraction;
  return a + share;
}

int32_t rounded_side(double side, int32_t size) {
  const double nearest = std::floor(side + 0.5);
  return nearest < 1.0 ? 1 : nearest > size ? size : static_cast<int32_t>(nearest);
}

}  // namespace

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

uint64_t key(std::initializer_list<uint64_t> words) {
  uint64_t k = 0;
  for (const uint64_t word : words) k = mix((k ^ word) + kGolden);
  return k;
}

uint64_t draw(uint64_t k, uint64_t i) { return mix(k + (i + 1) * kGolden); }

double uniform(uint64_t k, uint64_t i) { return static_cast<double>(draw(k, i) >> 40) * 0x1p-24; }

void epoch_order(uint64_t seed, uint64_t epoch, uint32_t count, uint32_t* order) {
  for (uint32_t i = 0; i < count; ++i) order[i] = i;
  const uint64_t k = key({seed, kOrder, epoch});
  uint64_t n = 0;
  for (uint32_t i = count; i-- > 1;) {
    const uint64_t d = draw(k, n++);
    const uint64_t m = uint64_t{i} + 1;
    // The upper 64 bits of the product d * m, in 64 bits.
    const uint64_t j = ((d >> 32) * m + (((d & 0xFFFFFFFF) * m) >> 32)) >> 32;
    std::swap(order[i], order[j]);
  }
}

Crop random_crop(uint64_t seed, uint64_t epoch, uint64_t position, Size image, double min_area, bool flip) {
  const uint64_t k = key({seed, kAugment, epoch, position});
  const double rest = 1.0 - min_area;
  const double extra = rest * uniform(k, 0);
  const double share = min_area + extra;
  const double area = share * static_cast<double>(int64_t{image.height} * image.width);
  const double doubled = 2.0 * uniform(k, 1);
  const double v = doubled - 1.0;
  const double above = 7.0 + v;
  const double below = 7.0 - v;
  const double ratio = above / below;
  const double shape = static_cast<double>(image.height) / static_cast<double>(image.width);
  const double tall = area / ratio;
  const double wide = area * ratio;
  const double height_squared = tall * shape;
  const double width_squared = wide / shape;
  Crop crop;
  crop.height = rounded_side(std::sqrt(height_squared), image.height);
  crop.width = rounded_side(std::sqrt(width_squared), image.width);
  const double top = uniform(k, 2) * (image.height - crop.height + 1);
  const double left = uniform(k, 3) * (image.width - crop.width + 1);
  crop.top = static_cast<int32_t>(std::floor(top));
  crop.left = static_cast<int32_t>(std::floor(left));
  crop.flip = flip && uniform(k, 4) < 0.5;
  return crop;
}

Crop centre_crop(Size stored, Size input) {
  return {(stored.height - input.height) / 2, (stored.width - input.width) / 2, input.height, input.width, false};
}

void resample(const uint8_t* image, Size stored, const Crop& crop, Size input, int32_t channels, const float* mean,
              const float* deviation, float* out) {
  // Columns in blocks, so that their taps are computed once for all rows and still need no memory of the heap.
  constexpr int32_t kBlock = 64;
  const auto depth = static_cast<size_t>(channels), stride = depth * static_cast<size_t>(stored.width);
  const uint8_t* corner = image + static_cast<size_t>(crop.top) * stride + static_cast<size_t>(crop.left) * depth;
  Tap columns[kBlock];
  for (int32_t first = 0; first < input.width; first += kBlock) {
    const int32_t width = std::min(kBlock, input.width - first);
    for (int32_t i = 0; i < width; ++i) {
      const int32_t column = crop.flip ? input.width - 1 - (first + i) : first + i;
      columns[i] = tap(column, crop.width, input.width);
    }
    for (int32_t y = 0; y < input.height; ++y) {
      const Tap row = tap(y, crop.height, input.height);
      const uint8_t* upper = corner + static_cast<size_t>(row.low) * stride;
      const uint8_t* lower = corner + static_cast<size_t>(row.high) * stride;
      float* to = out + depth * (static_cast<size_t>(y) * static_cast<size_t>(input.width) + static_cast<size_t>(first));
      for (int32_t i = 0; i < width; ++i) {
        const size_t low = depth * static_cast<size_t>(columns[i].low), high = depth * static_cast<size_t>(columns[i].high);
        for (size_t channel = 0; channel < depth; ++channel) {
          const float left = lerp(upper[low + channel], lower[low + channel], row.fraction);
          const float right = lerp(upper[high + channel], lower[high + channel], row.fraction);
          const float pixel = lerp(left, right, columns[i].fraction);
          const float centred = pixel - mean[channel];
          *to++ = centred / deviation[channel];
        }
      }
    }
  }
}

void dropout_mask(uint64_t seed, uint64_t epoch, uint64_t position, uint64_t layer, size_t pixels, size_t channels,
                  double rate, float* out) {
  const double keep = 1.0 - rate;
  const double inverse = 1.0 / keep;
  const float scale = static_cast<float>(inverse);
  const uint64_t k = key({seed, kDropout, epoch, position, layer});
  for (size_t p = 0; p < pixels; ++p)
    for (size_t c = 0; c < channels; ++c) *out++ = uniform(k, c * pixels + p) >= rate ? scale : 0.0f;
}

}  // namespace tinytl
