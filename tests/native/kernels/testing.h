// What the tests of kernels share: numbers at random, comparison with references in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "../../../runtime/native/kernels/kernels.h"

namespace tinytl {

// Maps start on a cache line, as in the arena.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const Aligned&) const { return true; }
};

using Floats = std::vector<float, Aligned<float>>;
using Doubles = std::vector<double>;

inline std::mt19937 g_random(7);
inline int g_cases = 0, g_failures = 0;
inline std::vector<uint64_t> g_hashes;  // of what was compared

inline Floats random_floats(int64_t count, float low = -1, float high = 1) {
  std::uniform_real_distribution<float> distribution(low, high);
  Floats values(static_cast<size_t>(count));
  for (float& v : values) v = distribution(g_random);
  return values;
}

inline void fail(const std::string& name, const char* what, size_t at, double got, double wanted) {
  ++g_failures;
  std::printf("FAIL %s: %s[%zu] = %.9g, not %.9g\n", name.c_str(), what, at, got, wanted);
}

inline void remember(const Floats& got) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (float value : got) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    hash = (hash ^ bits) * 0x100000001b3u;
  }
  g_hashes.push_back(hash);
}

// `depth`: how many terms a sum has; rounding grows with its square root.
inline void compare(const std::string& name, const char* what, const Floats& got, const Doubles& wanted, double depth = 1) {
  ++g_cases;
  remember(got);
  const double tolerance = 4e-6 * std::sqrt(depth + 1);
  if (got.size() != wanted.size()) return fail(name, what, 0, double(got.size()), double(wanted.size()));
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(double(got[i]) - wanted[i]) <= tolerance * (1 + std::abs(wanted[i])))) {
      return fail(name, what, i, double(got[i]), wanted[i]);
    }
  }
}

inline float widened_bf16(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void check_same(const std::string& name, const char* what, const Floats& got, const Floats& wanted) {
  ++g_cases;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (got[i] != wanted[i]) return fail(name, what, i, double(got[i]), double(wanted[i]));
  }
}

inline void expect(const std::string& name, const char* what, size_t at, double got, double wanted,
                   double tolerance) {
  ++g_cases;
  if (!(std::abs(got - wanted) <= tolerance)) fail(name, what, at, got, wanted);
}

const Bounds kBounds[] = {{}, {.low = 0}, {.low = 0, .high = 6}, {.low = -0.75f, .high = 1.25f}};

inline void apply(Doubles& y, const Floats& bias, const Bounds& bounds) {
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] += bias.empty() ? 0.0 : double(bias[i % bias.size()]);
    y[i] = std::clamp(y[i], double(bounds.low), double(bounds.high));
  }
}

// Mask bits must agree with the stored values, and nothing else may be written.
inline void check_mask(const std::string& name, const Floats& y, const Bounds& bounds,
                       const std::vector<uint8_t>& mask) {
  ++g_cases;
  for (size_t i = 0; i < 8 * mask.size(); ++i) {
    const bool bit = (mask[i / 8] >> (i % 8)) & 1;
    if (i >= (y.size() + 7) / 8 * 8) {
      if (bit != ((0xa5 >> (i % 8)) & 1)) return fail(name, "beyond the mask", i, bit, 0);
      continue;
    }
    const bool wanted = i < y.size() && y[i] > bounds.low && y[i] < bounds.high;
    if (bit != wanted) return fail(name, "mask", i, bit, wanted);
  }
}

inline std::vector<uint8_t> dirty_mask(size_t elements) { return std::vector<uint8_t>((elements + 7) / 8 + 2, 0xa5); }

inline std::string name_of(const char* kind, std::initializer_list<int> numbers) {
  std::string name = kind;
  for (int n : numbers) name.append(1, ' ').append(std::to_string(n));
  return name;
}

inline Geometry geometry(int h, int w, int in, int out, int kh, int kw, int sh, int sw, int top, int left, int bottom,
                         int right, int groups) {
  return {h, w, in, (h + top + bottom - kh) / sh + 1, (w + left + right - kw) / sw + 1, out, kh, kw, sh, sw, top, left,
          1, 1, groups};
}

// The kernels, a file each.
void test_pointwise();
void test_convolutions();
void test_elementwise();
void test_activations();
void test_channels();
void test_pools();
void test_resampling();
void test_norms();
void test_losses();
void test_optimizers();
void test_compression();
void test_triangles();

}  // namespace tinytl
