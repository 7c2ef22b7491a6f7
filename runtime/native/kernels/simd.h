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
};
template <>
struct VectorOf<1> {
  typedef float Type;
};

constexpr int kLanes = TINYTL_VECTOR_BYTES / 4;
using Vector = VectorOf<kLanes>::Type;

template <class V>
constexpr int lanes_of = static_cast<int>(sizeof(V) / sizeof(float));

// memcpy compiles to one unaligned move.
template <class V>
TINYTL_INLINE V load(const float* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
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
  v = v > low ? v : low;
  return v < high ? v : high;
}

typedef int8_t Bytes __attribute__((vector_size(16)));
typedef VectorOf<4>::Type Quad;

// 16 int8 as floats, times a scale. Spelled out in shuffles, since GCC 12 makes scalar code of the plain loop once it
// is unrolled, and of __builtin_convertvector: each byte moves to the top of its int, then down again with its sign.
TINYTL_INLINE void convert16(const int8_t* from, float scale, float* to) {
  typedef int16_t Shorts __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  Bytes bytes;
  __builtin_memcpy(&bytes, from, 16);
  const Bytes none{};
  const Shorts zeros{};
  const Shorts low8 = reinterpret_cast<Shorts>(Bytes(
      __builtin_shufflevector(none, bytes, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)));
  const Shorts high8 = reinterpret_cast<Shorts>(Bytes(
      __builtin_shufflevector(none, bytes, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)));
  auto put = [&](int at, Shorts ints) {
    store(to + at, Quad(__builtin_convertvector(reinterpret_cast<Ints>(ints) >> 24, Quad) * scale));
  };
  put(0, __builtin_shufflevector(zeros, low8, 0, 8, 1, 9, 2, 10, 3, 11));
  put(4, __builtin_shufflevector(zeros, low8, 4, 12, 5, 13, 6, 14, 7, 15));
  put(8, __builtin_shufflevector(zeros, high8, 0, 8, 1, 9, 2, 10, 3, 11));
  put(12, __builtin_shufflevector(zeros, high8, 4, 12, 5, 13, 6, 14, 7, 15));
}

template <class V>
TINYTL_INLINE V load_int8(const int8_t* from) {
#if TINYTL_VECTOR_BYTES >= 32
  if constexpr (lanes_of<V> == kLanes) {
    typedef int8_t Part __attribute__((vector_size(kLanes)));
    typedef int32_t Ints __attribute__((vector_size(TINYTL_VECTOR_BYTES)));
    Part part;
    __builtin_memcpy(&part, from, kLanes);
    return __builtin_convertvector(__builtin_convertvector(part, Ints), V);
  }
#endif
  float values[lanes_of<V>];
  for (int i = 0; i < lanes_of<V>; ++i) values[i] = static_cast<float>(from[i]);
  return load<V>(values);
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
