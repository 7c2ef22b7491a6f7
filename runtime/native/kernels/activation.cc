// Activations by themselves: clamps, with a mask bit for the way back, and curves, which go back from their input.
#include <algorithm>
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

// clip(x + 3, 0, 6) / 6; NaN stays NaN.
TINYTL_INLINE Vector hard_sigmoid(Vector x) {
  const Vector zero{}, six = broadcast<Vector>(6.0f);
  Vector v = x + 3.0f;
  v = v < zero ? zero : v;
  return (v > six ? six : v) * (1.0f / 6);
}

void clamp_with_mask(const float* x, float* y, int64_t elements, Activation activation, uint8_t* mask) {
  const Bounds bounds = bounds_of(activation);
  const Finish finish(Epilogue{.activation = activation, .mask = mask});
  constexpr int64_t kBlock = 4096;  // a block is still in the first-level cache when its mask is made
  static_assert(kElementsUnit % kBlock == 0);
  parallel(Slices(elements, kElementsUnit), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t count = std::min(kBlock, end - first);
      for (int64_t i = first; i < first + count; ++i) {
        const float v = bounds.low > x[i] ? bounds.low : x[i];  // in this order NaN stays NaN
        y[i] = bounds.high < v ? bounds.high : v;
      }
      finish(y, first, count, 1);
    }
  });
}

}  // namespace

void activate(const float* x, float* y, int64_t elements, Activation activation, uint8_t* mask) {
  switch (activation) {
    case Activation::kHardSwish:
      return map(elements, y, [](Vector v) { return v * hard_sigmoid(v); }, x);
    case Activation::kHardSigmoid:
      return map(elements, y, [](Vector v) { return hard_sigmoid(v); }, x);
    case Activation::kSigmoid:
      return map(elements, y, [](Vector v) { return sigmoid(v).open; }, x);
    case Activation::kSilu:
      return map(elements, y, [](Vector v) { return v * sigmoid(v).open; }, x);
    default:
      return clamp_with_mask(x, y, elements, activation, mask);
  }
}

// At the kinks of the hard curves the slope is PyTorch's: 0 at -3, and at 3 that of what follows.
void activation_dx(const float* x, const float* dy, float* dx, int64_t elements, Activation activation) {
  const Vector zero{}, one = broadcast<Vector>(1.0f), low = broadcast<Vector>(-3.0f), high = broadcast<Vector>(3.0f);
  const auto chain = [&](auto slope) {
    map(elements, dx, [&](Vector v, Vector gradient) { return gradient * slope(v); }, x, dy);
  };
  switch (activation) {
    case Activation::kHardSwish:
      return chain([&](Vector v) { return v < high ? (v > low ? v * (1.0f / 3) + 0.5f : zero) : one; });
    case Activation::kHardSigmoid:
      return chain([&](Vector v) { return (v > low) & (v < high) ? broadcast<Vector>(1.0f / 6) : zero; });
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
    default:
      return;  // a clamp's gradient goes through its mask
  }
}

}  // namespace tinytl
