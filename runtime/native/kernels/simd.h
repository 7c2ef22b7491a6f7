// Vectors of floats by compiler extension (GCC and Clang), as wide as the registers of the build.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#define TINYTL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define TINYTL_VECTOR_BYTES 32
#else
#define TINYTL_VECTOR_BYTES 16
#endif

#define TINYTL_INLINE inline __attribute__((always_inline))

namespace tinytl {

template <int Lanes>
struct VectorOf {
  typedef float Type __attribute__((vector_size(Lanes * 4)));
  typedef uint32_t Bits __attribute__((vector_size(Lanes * 4)));
  typedef uint16_t Halves __attribute__((vector_size(Lanes * 2)));
};
template <>
struct VectorOf<1> {
  typedef float Type;
  typedef uint32_t Bits;
};

constexpr int kLanes = TINYTL_VECTOR_BYTES / 4;
using Vector = VectorOf<kLanes>::Type;

template <class V>
constexpr int lanes_of = static_cast<int>(sizeof(V) / sizeof(float));

// memcpy compiles to one unaligned move. load() makes floats of elements of any stored type.
template <class V>
TINYTL_INLINE V load(const float* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

// The first lanes of a vector, as many as Part has; the others are zero.
template <class V, class Part>
TINYTL_INLINE V load_first(const float* from) {
  V v{};
  __builtin_memcpy(&v, from, sizeof(Part));
  return v;
}

template <class V>
TINYTL_INLINE void store(float* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

template <class V>
TINYTL_INLINE V broadcast(float value) {
  return value - V{};
}

template <class V>
TINYTL_INLINE V clamp(V v, V low, V high) {
  v = low > v ? low : v;  // in this order NaN stays NaN
  return high < v ? high : v;
}

typedef int8_t Bytes __attribute__((vector_size(16)));
typedef VectorOf<4>::Type Quad;

TINYTL_INLINE Bytes interleave_low(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

// int8: each byte is copied to all of its int, whose shift to the right leaves it with its sign. Spelled out in shuffles,
// since GCC 12 makes scalar code of __builtin_convertvector and of unrolled loops.
template <int First>
TINYTL_INLINE VectorOf<8>::Type octet(Bytes b) {
  typedef int32_t Ints __attribute__((vector_size(32)));
  constexpr int k = First;
  const auto fourfold = __builtin_shufflevector(
      b, b, k, k, k, k, k + 1, k + 1, k + 1, k + 1, k + 2, k + 2, k + 2, k + 2, k + 3, k + 3, k + 3, k + 3, k + 4,
      k + 4, k + 4, k + 4, k + 5, k + 5, k + 5, k + 5, k + 6, k + 6, k + 6, k + 6, k + 7, k + 7, k + 7, k + 7);
  return __builtin_convertvector(reinterpret_cast<Ints>(fourfold) >> 24, VectorOf<8>::Type);
}

template <class V>
TINYTL_INLINE V load(const int8_t* from) {
  constexpr int kL = lanes_of<V>;
  if constexpr (kL == 1) {
    return static_cast<float>(*from);
  } else if constexpr (kL == 4) {
    typedef int16_t Shorts __attribute__((vector_size(16)));
    typedef int32_t Ints __attribute__((vector_size(16)));
    int32_t four;
    __builtin_memcpy(&four, from, sizeof(four));
    const Bytes bytes = reinterpret_cast<Bytes>(Ints{four, 0, 0, 0});
    const Shorts twice = reinterpret_cast<Shorts>(interleave_low(bytes, bytes));
    const Shorts fourfold = __builtin_shufflevector(twice, twice, 0, 8, 1, 9, 2, 10, 3, 11);
    return __builtin_convertvector(reinterpret_cast<Ints>(fourfold) >> 24, V);
  } else if constexpr (kL == 8) {
    typedef int64_t Pair __attribute__((vector_size(16)));
    int64_t eight;
    __builtin_memcpy(&eight, from, sizeof(eight));
    return octet<0>(reinterpret_cast<Bytes>(Pair{eight, 0}));
  } else {
    using Half = typename VectorOf<8>::Type;
    return __builtin_shufflevector(load<Half>(from), load<Half>(from + 8), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
                                   14, 15);
  }
}

// 16 of them, in vectors of at most 32 bytes.
using Part = VectorOf<kLanes < 8 ? kLanes : 8>::Type;
TINYTL_INLINE void load16(const int8_t* from, Part (&to)[16 / lanes_of<Part>]) {
#if TINYTL_VECTOR_BYTES >= 32
  Bytes bytes;
  __builtin_memcpy(&bytes, from, sizeof(bytes));
  to[0] = octet<0>(bytes);
  to[1] = octet<8>(bytes);
#else
  for (int i = 0; i < 4; ++i) to[i] = load<Part>(from + 4 * i);
#endif
}

TINYTL_INLINE float widened(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// bfloat16: the upper half of a float32.
template <class V>
TINYTL_INLINE V load(const uint16_t* from) {
  if constexpr (lanes_of<V> == 1) {
    return widened(*from);
  } else {
    using Lanes = VectorOf<lanes_of<V>>;
    typename Lanes::Halves halves;
    __builtin_memcpy(&halves, from, sizeof(halves));
    return reinterpret_cast<V>(__builtin_convertvector(halves, typename Lanes::Bits) << 16);
  }
}

template <class V>
TINYTL_INLINE float sum_of(V v) {
  float values[lanes_of<V>];
  store(values, v);
  float sum = 0;
  for (float value : values) sum += value;
  return sum;
}

}  // namespace tinytl
