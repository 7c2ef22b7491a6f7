#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace tinytl {
namespace {

// 32 random bits an element, a function of the seed and the element's index alone: the same on every machine, in any
// order, and in vectors.
class RandomBits {
 public:
  explicit RandomBits(uint64_t seed) {
    seed = (seed + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    seed = (seed ^ seed >> 29) * 0x94d049bb133111ebu;
    low_ = static_cast<uint32_t>(seed);
    high_ = static_cast<uint32_t>(seed >> 32);
  }
  uint32_t at(int64_t element) const {
    uint32_t bits = static_cast<uint32_t>(element) + low_;
    bits = (bits ^ bits >> 16) * 0x7feb352du ^ high_;
    bits = (bits ^ bits >> 15) * 0x846ca68bu;
    return bits ^ bits >> 16;
  }

 private:
  uint32_t low_, high_;
};

// A float32 without its lower bits, rounded up as often as those demand: stochastic rounding is to add random bits
// below those that stay.
template <int Dropped>
uint32_t upper_bits(float value, uint32_t random) {
  return (std::bit_cast<uint32_t>(value) + (random >> (32 - Dropped))) >> Dropped;
}

uint16_t narrowed(float value, uint32_t random) { return static_cast<uint16_t>(upper_bits<16>(value, random)); }

// An 8-bit code counts eighths of octaves up to a block's largest magnitude: it is the upper bits of a small float,
// from which those of zero are taken away. An offset moves zero to 1 / 2^16 (a code with a sign) or 1 / 2^32 (without),
// where the steps are even. A moment moves by less than a step, so only stochastic rounding lets it move at all.
//
// A second moment v is coded as it is. An update divides by sqrt(v), so rounding must not shrink v much: it loses a
// ninth at most, or half among the lowest codes, and what is not zero has a code of 1 at least. The longest step then
// grows by less than half.
template <bool Signed>
struct MomentCode {
  static constexpr int kLargest = Signed ? 127 : 255, kDropped = 20;
  static constexpr uint32_t kZero = (std::bit_cast<uint32_t>(1.0f) >> kDropped) - kLargest;
  static constexpr float kOffset = std::bit_cast<float>(kZero << kDropped);
  static constexpr float kSmallestScale = 1e-30f;  // has a finite inverse; what is smaller becomes zero

  static void decode(const uint8_t* __restrict codes, float scale, int count, float* __restrict to) {
    const float unit = scale / (1 - kOffset);
    for (int i = 0; i < count; ++i) {
      const int code = Signed ? static_cast<int8_t>(codes[i]) : codes[i];
      const auto bits = static_cast<uint32_t>(Signed ? std::abs(code) : code) + kZero;
      const float magnitude = (std::bit_cast<float>(bits << kDropped) - kOffset) * unit;
      to[i] = code < 0 ? -magnitude : magnitude;
    }
  }

  // Returns the scale.
  static float encode(const float* __restrict values, const RandomBits& random, int64_t first, int count,
                      uint8_t* __restrict codes) {
    int32_t largest = 0;  // magnitudes are ordered as their bits are; NaN is above all and stays, as the scale
    for (int i = 0; i < count; ++i) largest = std::max(largest, std::bit_cast<int32_t>(values[i]) & INT32_MAX);
    const auto scale = std::bit_cast<float>(largest);
    const float inverse = scale > kSmallestScale ? (1 - kOffset) / scale : 0.0f;
    for (int i = 0; i < count; ++i) {
      const float magnitude = std::abs(values[i]) * inverse;
      const auto bits = upper_bits<kDropped>(magnitude + kOffset, random.at(first + i));
      const int code = std::min(static_cast<int>(bits - kZero), kLargest);
      if constexpr (Signed) {
        codes[i] = static_cast<uint8_t>(values[i] < 0 ? -code : code);
      } else {
        codes[i] = static_cast<uint8_t>(std::max(code, static_cast<int>(magnitude > 0)));
      }
    }
    return scale;
  }
};

using FirstCode = MomentCode<true>;
using SecondCode = MomentCode<false>;

void sgd(float* __restrict values, const float* __restrict gradient, int count, float rate) {
  for (int i = 0; i < count; ++i) values[i] -= rate * gradient[i];
}

void momentum(float* __restrict values, const float* __restrict gradient, float* __restrict velocity, int count,
              float rate) {
  constexpr float kMomentum = 0.9f;
  for (int i = 0; i < count; ++i) {
    const float v = kMomentum * velocity[i] + gradient[i];
    velocity[i] = v;
    values[i] -= rate * v;
  }
}

struct Adam {
  static constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;
  float step_size, root;

  Adam(float rate, double step)
      : step_size(static_cast<float>(rate / (1 - std::pow(kBeta1, step)))),
        root(static_cast<float>(1 / std::sqrt(1 - std::pow(kBeta2, step)))) {}

  void apply(float* __restrict values, const float* __restrict gradient, float* __restrict m, float* __restrict v,
             int count) const {
    for (int i = 0; i < count; ++i) {
      const float g = gradient[i];
      const float first = m[i] + static_cast<float>(1 - kBeta1) * (g - m[i]);
      const float second = static_cast<float>(kBeta2) * v[i] + static_cast<float>(1 - kBeta2) * g * g;
      m[i] = first;
      v[i] = second;
      values[i] -= step_size * first / (std::sqrt(second) * root + static_cast<float>(kEpsilon));
    }
  }
};

float* widen(const uint16_t* __restrict from, int count, float* __restrict to) {
  for (int i = 0; i < count; ++i) to[i] = widened(from[i]);
  return to;
}

void narrow(const float* __restrict from, const RandomBits& random, int64_t first, int count, uint16_t* __restrict to) {
  for (int i = 0; i < count; ++i) to[i] = narrowed(from[i], random.at(first + i));
}

}  // namespace

void update(const Trained& trained, const Gradient& gradient, const UpdateRule& rule) {
  const uint64_t seed = rule.seed + static_cast<uint64_t>(rule.step) * 0xd1342543de82ef95u;
  const RandomBits value_bits(seed), first_bits(seed + 1), second_bits(seed + 2);
  const Adam adam(rule.rate, static_cast<double>(rule.step));
  const Moment &first = trained.first, &second = trained.second;
  constexpr int64_t kBlocks = 8;  // are worth another thread
  parallel(Slices(trained.elements, kBlocks * kMomentBlock), [&](int64_t begin, int64_t end) {
    // What is not float32 passes through these, a block at a time.
    float values[kMomentBlock], gradients[kMomentBlock], firsts[kMomentBlock], seconds[kMomentBlock];
    for (int64_t at = begin, block = begin / kMomentBlock; at < end; at += kMomentBlock, ++block) {
      const int count = static_cast<int>(std::min<int64_t>(kMomentBlock, end - at));
      float* value = trained.f32 ? trained.f32 + at : widen(trained.bf16 + at, count, values);
      const float* g = gradient.f32 ? gradient.f32 + at : widen(gradient.bf16 + at, count, gradients);
      float* m = first.f32 ? first.f32 + at : firsts;
      float* v = second.f32 ? second.f32 + at : seconds;
      if (first.codes) FirstCode::decode(first.codes + at, first.scales[block], count, m);
      if (second.codes) SecondCode::decode(second.codes + at, second.scales[block], count, v);
      switch (rule.optimizer) {
        case Optimizer::kSgd: sgd(value, g, count, rule.rate); break;
        case Optimizer::kMomentum: momentum(value, g, m, count, rule.rate); break;
        case Optimizer::kAdam: adam.apply(value, g, m, v, count); break;
      }
      if (trained.bf16) narrow(value, value_bits, at, count, trained.bf16 + at);
      if (first.codes) first.scales[block] = FirstCode::encode(m, first_bits, at, count, first.codes + at);
      if (second.codes) second.scales[block] = SecondCode::encode(v, second_bits, at, count, second.codes + at);
    }
  });
}

void add_rounded(const float* gradient, uint16_t* sums, int64_t elements, uint64_t seed) {
  const RandomBits random(seed);
  parallel(Slices(elements, kElementsUnit), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[i] = narrowed(widened(sums[i]) + gradient[i], random.at(i));
  });
}

}  // namespace tinytl
