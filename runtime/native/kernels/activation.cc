// Activations by themselves: clamps, with a mask bit for the way back, and curves, which go back from their input.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "epilogue.h"
#include "simd.h"

namespace tinytl {
namespace {

typedef uint32_t Bits __attribute__((vector_size(TINYTL_VECTOR_BYTES)));

// to[i] = f(from[i]...), by whole vectors, so that an element's result does not depend on where it lies.
template <class Function, class... Floats>
TINYTL_INLINE void map(int64_t elements, float* to, Function f, const Floats*... from) {
  parallel(Slices(elements, kElementsUnit), [&](int64_t i, int64_t end) {
    for (; i + kLanes <= end; i += kLanes) store(to + i, Vector(f(load<Vector>(from + i)...)));
    if (i == end) return;
    const size_t rest = static_cast<size_t>(end - i) * sizeof(float);
    const auto load_rest = [&](const float* source) {
      Vector v{};
      std::memcpy(&v, source + i, rest);
      return v;
    };
    const Vector last = f(load_rest(from)...);
    std::memcpy(to + i, &last, rest);
  });
}

// exp(x) of x <= 0 to a relative error of 1e-7, as in Cephes: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for
// exp(r), and n added to its exponent. Zero below -87, where float32 ends; NaN stays NaN.
TINYTL_INLINE Vector exp_of_negative(Vector x) {
  const Vector lowest = broadcast<Vector>(-87.0f);
  const Vector kept = x < lowest ? lowest : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
  const Vector rounded = kept * 1.44269504f + kRound;
  const Vector n = rounded - kRound;
  const Vector r = (kept - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vector result = reinterpret_cast<Vector>(reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(rounded) << 23));
  return x < lowest ? Vector{} : result;
}

// sigmoid(x) and 1 - sigmoid(x), each in full precision.
struct Gate {
  Vector open, shut;
};

TINYTL_INLINE Gate sigmoid(Vector x) {
  const auto negative = x < Vector{};
  const Vector e = exp_of_negative(negative ? x : -x);
  const Vector larger = 1.0f / (1.0f + e), smaller = e * larger;
  return {negative ? smaller : larger, negative ? larger : smaller};
}

TINYTL_INLINE Vector absolute(Vector x) { return x < Vector{} ? -x : x; }

// log(1 + e) of e from 0 to 1, as twice the area tangent of e / (2 + e), which is 1/3 at most.
TINYTL_INLINE Vector log_of_1_and(Vector e) {
  const Vector s = e / (2.0f + e), t = s * s;
  Vector series = t * (1.0f / 15) + 1.0f / 13;
  for (const float divisor : {11.0f, 9.0f, 7.0f, 5.0f, 3.0f, 1.0f}) series = series * t + 1.0f / divisor;
  return 2.0f * s * series;
}

TINYTL_INLINE Vector softplus(Vector x) {
  const Vector rest = log_of_1_and(exp_of_negative(-absolute(x)));
  return x > Vector{} ? x + rest : x != x ? x : rest;
}

TINYTL_INLINE Vector tanh(Vector x) {
  const Vector e = exp_of_negative(-2.0f * absolute(x));
  const Vector result = (1.0f - e) / (1.0f + e);
  return x < Vector{} ? -result : result;
}

// tanh(softplus(x)) = n / (n + 2) where n = exp(x) (exp(x) + 2), in terms of exp(-|x|).
TINYTL_INLINE Vector tanh_of_softplus(Vector x) {
  const Vector e = exp_of_negative(-absolute(x)), n = x > Vector{} ? 1.0f + 2.0f * e : e * (e + 2.0f);
  return n / (n + (x > Vector{} ? 2.0f * e * e : broadcast<Vector>(2.0f)));
}

// The error function to 2e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26), and exp(-x^2), of
// which it is made.
struct Erf {
  Vector value, bell;
};

TINYTL_INLINE Erf erf(Vector x) {
  const Vector bell = exp_of_negative(-x * x), t = 1.0f / (1.0f + 0.3275911f * absolute(x));
  Vector p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector result = 1.0f - p * t * bell;
  return {x < Vector{} ? -result : result, bell};
}

TINYTL_INLINE Vector square_root(Vector x) {
  for (int i = 0; i < kLanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

constexpr float kRootOfHalf = 0.70710678f;
constexpr float kCubic = 0.044715f, kRootOf2ByPi = 0.79788456f;  // of GELU's approximation

// clip(alpha x + beta, 0, 1); NaN stays NaN.
TINYTL_INLINE Vector ramp(Vector x, const Curve& curve) {
  return clamp<Vector>(x * curve.alpha + curve.beta, Vector{}, broadcast<Vector>(1.0f));
}

}  // namespace

void clamp_map(const float* x, float* y, int64_t elements, const Bounds& bounds, uint8_t* mask) {
  const Finish finish(Epilogue{.bounds = bounds, .mask = mask});
  constexpr int64_t kBlock = 4096;  // a block is still in the first-level cache when its mask is made
  static_assert(kElementsUnit % kBlock == 0);
  parallel(Slices(elements, kElementsUnit), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t count = std::min(kBlock, end - first);
      for (int64_t i = first; i < first + count; ++i) y[i] = clamp<float>(x[i], bounds.low, bounds.high);
      finish(y, first, count, 1);
    }
  });
}

void curve_forward(const float* x, float* y, int64_t elements, const Curve& curve) {
  const auto each = [&](auto f) { map(elements, y, f, x); };
  switch (curve.kind) {
    case Activation::kHardSwish:
      return each([&](Vector v) { return v * ramp(v, curve); });
    case Activation::kHardSigmoid:
      return each([&](Vector v) { return ramp(v, curve); });
    case Activation::kSigmoid:
      return each([](Vector v) { return sigmoid(v).open; });
    case Activation::kSilu:
      return each([](Vector v) { return v * sigmoid(v).open; });
    case Activation::kLeakyRelu:
      return each([&](Vector v) { return v < Vector{} ? v * curve.alpha : v; });
    case Activation::kElu:
      return each([&](Vector v) {
        const Vector below = (exp_of_negative(v < Vector{} ? v : Vector{}) - 1.0f) * curve.alpha;
        return v < Vector{} ? below : v;
      });
    case Activation::kGelu:
      return each([](Vector v) { return v * 0.5f * (1.0f + erf(v * kRootOfHalf).value); });
    case Activation::kGeluTanh:
      return each([](Vector v) { return v * 0.5f * (1.0f + tanh(kRootOf2ByPi * (v + kCubic * v * v * v))); });
    case Activation::kSoftplus:
      return each([](Vector v) { return softplus(v); });
    case Activation::kTanh:
      return each([](Vector v) { return tanh(v); });
    case Activation::kMish:
      return each([](Vector v) { return v * tanh_of_softplus(v); });
    case Activation::kSqrt:
      return each([](Vector v) { return square_root(v); });
    case Activation::kReciprocal:
      return each([](Vector v) { return 1.0f / v; });
    case Activation::kNone:
    case Activation::kClamp:
      return;  // are no curves
  }
}

// At their kinks the slopes are PyTorch's.
void curve_dx(const float* x, const float* dy, float* dx, int64_t elements, const Curve& curve) {
  const Vector zero{}, one = broadcast<Vector>(1.0f), alpha = broadcast<Vector>(curve.alpha);
  const auto chain = [&](auto slope) {
    map(elements, dx, [&](Vector v, Vector gradient) { return gradient * slope(v); }, x, dy);
  };
  switch (curve.kind) {
    case Activation::kHardSwish:
      return chain([&](Vector v) {
        const Vector u = v * alpha + curve.beta;
        return u < one ? (u > zero ? u + v * alpha : zero) : one;
      });
    case Activation::kHardSigmoid:
      return chain([&](Vector v) {
        const Vector u = v * alpha + curve.beta;
        return (u > zero) & (u < one) ? alpha : zero;
      });
    case Activation::kSigmoid:
      return chain([](Vector v) {
        const Gate gate = sigmoid(v);
        return gate.open * gate.shut;
      });
    case Activation::kSilu:
      return chain([](Vector v) {
        const Gate gate = sigmoid(v);
        return gate.open * (1.0f + v * gate.shut);
      });
    case Activation::kLeakyRelu:
      return chain([&](Vector v) { return v > zero ? one : alpha; });
    case Activation::kElu:
      return chain([&](Vector v) { return v > zero ? one : exp_of_negative(v > zero ? zero : v) * alpha; });
    case Activation::kGelu:
      return chain([](Vector v) {
        const Erf e = erf(v * kRootOfHalf);
        return 0.5f * (1.0f + e.value) + v * e.bell * (0.5f * kRootOf2ByPi);
      });
    case Activation::kGeluTanh:
      return chain([](Vector v) {
        const Vector t = tanh(kRootOf2ByPi * (v + kCubic * v * v * v));
        return 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * kRootOf2ByPi * (1.0f + 3 * kCubic * v * v);
      });
    case Activation::kSoftplus:
      return chain([](Vector v) { return sigmoid(v).open; });
    case Activation::kTanh:
      return chain([](Vector v) {
        const Vector t = tanh(v);
        return 1.0f - t * t;
      });
    case Activation::kMish:
      return chain([](Vector v) {
        const Vector t = tanh_of_softplus(v);
        return t + v * (1.0f - t * t) * sigmoid(v).open;
      });
    case Activation::kSqrt:  // of zero none, as a norm's in PyTorch
      return chain([&](Vector v) { return v > zero ? 0.5f / square_root(v) : zero; });
    case Activation::kReciprocal:
      return chain([](Vector v) { return -1.0f / (v * v); });
    case Activation::kNone:
    case Activation::kClamp:
      return;  // a clamp's gradient goes through its mask
  }
}

void prelu_forward(const float* x, float* y, int32_t pixels, int32_t channels, const float* slope) {
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    for (int64_t row = 0; row < int64_t{pixels} * channels; row += channels) {
      for (int32_t c = begin; c < end; ++c) y[row + c] = x[row + c] < 0 ? x[row + c] * slope[c] : x[row + c];
    }
  });
}

void prelu_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels, const float* slope,
                    float* dslope) {
  parallel_channels(channels, [&](int32_t begin, int32_t end) {
    for (int64_t row = 0; row < int64_t{pixels} * channels; row += channels) {
      for (int32_t c = begin; c < end && dslope; ++c) dslope[c] += x[row + c] > 0 ? 0 : dy[row + c] * x[row + c];
      for (int32_t c = begin; c < end; ++c) dx[row + c] = x[row + c] > 0 ? dy[row + c] : dy[row + c] * slope[c];
    }
  });
}

}  // namespace tinytl
