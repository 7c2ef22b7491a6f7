// Saved activations in fewer bits: bfloat16 to the nearest, or int8 codes with a scale a block.
#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace tinytl {
namespace {

uint16_t nearest_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);  // ties to even
  return static_cast<uint16_t>((value == value ? rounded : bits | 0x400000) >> 16);
}

// Where the codes' scales lie.
int64_t scales_at(int64_t elements) { return (elements + 3) / 4 * 4; }

// Returns the scale.
float encode(const float* __restrict x, int8_t* __restrict codes, int count) {
  int32_t largest = 0;  // magnitudes are ordered as their bits are; NaN is above all and stays, as the scale
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::bit_cast<int32_t>(x[i]) & INT32_MAX);
  const float scale = std::bit_cast<float>(largest) / 127, inverse = 1 / scale;
  if (!(inverse > 0 && inverse < __builtin_inff())) {  // zeros, or nearly; or what is no number
    std::memset(codes, 0, static_cast<size_t>(count));
    return scale;
  }
  for (int i = 0; i < count; ++i) {
    const float code = x[i] * inverse;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>(code + (code < 0 ? -0.5f : 0.5f)));
  }
  return scale;
}

void decode(const int8_t* __restrict codes, float scale, float* __restrict y, int count) {
  for (int i = 0; i < count; ++i) y[i] = scale * static_cast<float>(codes[i]);
}

// Calls body(first element, elements, block) for every block.
template <class Body>
void parallel_blocks(int64_t elements, const Body& body) {
  static_assert(kElementsUnit % kCompressedBlock == 0);
  parallel(Slices(elements, kElementsUnit), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kCompressedBlock) {
      body(first, static_cast<int>(std::min<int64_t>(kCompressedBlock, end - first)), first / kCompressedBlock);
    }
  });
}

}  // namespace

void compress_16(const float* x, uint16_t* y, int64_t elements) {
  parallel(Slices(elements, kElementsUnit), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = nearest_bfloat16(x[i]);
  });
}

void decompress_16(const uint16_t* x, float* y, int64_t elements) {
  parallel(Slices(elements, kElementsUnit), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = widened(x[i]);
  });
}

void compress_8(const float* x, uint8_t* y, int64_t elements) {
  auto* codes = reinterpret_cast<int8_t*>(y);
  auto* scales = reinterpret_cast<float*>(y + scales_at(elements));
  parallel_blocks(elements, [&](int64_t first, int count, int64_t block) {
    scales[block] = encode(x + first, codes + first, count);
  });
}

void decompress_8(const uint8_t* x, float* y, int64_t elements) {
  const auto* codes = reinterpret_cast<const int8_t*>(x);
  const auto* scales = reinterpret_cast<const float*>(x + scales_at(elements));
  parallel_blocks(elements, [&](int64_t first, int count, int64_t block) {
    decode(codes + first, scales[block], y + first, count);
  });
}

}  // namespace tinytl
