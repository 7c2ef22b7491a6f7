#include <algorithm>
#include <cstring>

#include "epilogue.h"
#include "simd.h"

namespace tinytl {
namespace {

typedef int32_t Ints __attribute__((vector_size(TINYTL_VECTOR_BYTES)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef uint64_t Pair __attribute__((vector_size(16)));

TINYTL_INLINE uint32_t or_of_lanes(Ints4 v) {
  const Pair pair = reinterpret_cast<Pair>(v);
  const uint64_t half = pair[0] | pair[1];
  return static_cast<uint32_t>(half | half >> 32);
}
#if TINYTL_VECTOR_BYTES >= 32
typedef int32_t Ints8 __attribute__((vector_size(32)));
TINYTL_INLINE uint32_t or_of_lanes(Ints8 v) {
  return or_of_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3) | __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
#endif
#if TINYTL_VECTOR_BYTES >= 64
TINYTL_INLINE uint32_t or_of_lanes(Ints v) {
  return or_of_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) |
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif

TINYTL_INLINE Ints bit_of_lane() {
  Ints bits;
  for (int j = 0; j < kLanes; ++j) bits[j] = 1 << j;
  return bits;
}

// The bits of 32 elements: each comparison selects its own bit of an int, and one reduction joins them all.
TINYTL_INLINE uint32_t mask_word(const float* y, Vector low, Vector high) {
  const Ints bits = bit_of_lane();
  Ints joined{};
#pragma GCC unroll 8
  for (int j = 0; j < 32; j += kLanes) {
    const Vector v = load<Vector>(y + j);
    joined |= (v > low) & (v < high) & (bits << j);
  }
  return or_of_lanes(joined);
}

}  // namespace

void store_mask(const float* y, int64_t first, int64_t count, Activation activation, uint8_t* mask) {
  const Bounds bounds = bounds_of(activation);
  const bool all = activation == Activation::kNone;
  const float low = bounds.low, high = bounds.high;
  auto put_slowly = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t bit = first + i;
      const bool passes = all || (y[i] > low && y[i] < high);
      const int below = static_cast<int>(mask[bit / 8]) & ((1 << (bit % 8)) - 1);
      mask[bit / 8] = static_cast<uint8_t>(below | (passes ? 1 << (bit % 8) : 0));
    }
  };
  int64_t i = std::min<int64_t>((8 - first % 8) % 8, count);
  put_slowly(0, i);
  uint8_t* to = mask + (first + i) / 8;
  if (all) {
    const int64_t bytes = (count - i) / 8;
    std::memset(to, 0xff, static_cast<size_t>(bytes));
    i += 8 * bytes;
  }
  for (; i + 32 <= count; i += 32, to += 4) {
    const uint32_t word = mask_word(y + i, broadcast<Vector>(low), broadcast<Vector>(high));
    std::memcpy(to, &word, 4);
  }
  put_slowly(i, count);
}

void mask_gradient(const float* dy, float* dx, const uint8_t* mask, int64_t elements) {
  int64_t i = 0;
  constexpr int kStep = kLanes < 8 ? 8 : kLanes;
  const Ints own_bit = bit_of_lane();
  for (; i + kStep <= elements; i += kStep) {
    int32_t bits = mask[i / 8];
    if (kStep > 8) bits |= mask[i / 8 + 1] << 8;
#pragma GCC unroll 2
    for (int j = 0; j < kStep; j += kLanes) {
      const Ints passes = ((Ints{} + (bits >> j)) & own_bit) != 0;
      store(dx + i + j, Vector(passes ? load<Vector>(dy + i + j) : Vector{}));
    }
  }
  for (; i < elements; ++i) dx[i] = (mask[i / 8] >> (i % 8)) & 1 ? dy[i] : 0.0f;
}

void bias_gradient(const float* dy, float* db, int32_t pixels, int32_t channels) {
  // Pixels in fours: fewer passes over db, and shorter chains of roundings.
  int32_t p = 0;
  for (; p + 4 <= pixels; p += 4, dy += 4 * int64_t{channels}) {
    const float *d0 = dy, *d1 = d0 + channels, *d2 = d1 + channels, *d3 = d2 + channels;
    for (int32_t c = 0; c < channels; ++c) db[c] += (d0[c] + d1[c]) + (d2[c] + d3[c]);
  }
  for (; p < pixels; ++p, dy += channels) {
    for (int32_t c = 0; c < channels; ++c) db[c] += dy[c];
  }
}

void activate(const float* x, float* y, int64_t elements, Activation activation, uint8_t* mask) {
  const Bounds bounds = bounds_of(activation);
  constexpr int64_t kBlock = 4096;  // a block is still in the first-level cache when its mask is made
  for (int64_t first = 0; first < elements; first += kBlock) {
    const int64_t count = std::min(kBlock, elements - first);
    for (int64_t i = first; i < first + count; ++i) {
      const float v = x[i] > bounds.low ? x[i] : bounds.low;
      y[i] = v < bounds.high ? v : bounds.high;
    }
    if (mask) store_mask(y + first, first, count, activation, mask);
  }
}

void add(const float* a, const float* b, float* y, int64_t elements) {
  for (int64_t i = 0; i < elements; ++i) y[i] = a[i] + b[i];
}

}  // namespace tinytl
