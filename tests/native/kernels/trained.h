// A parameter that trains, in each of its forms.
#pragma once

#include "testing.h"

namespace tinytl {

// A parameter in one of the forms that the optimizers know, its values and moments.
struct TestTrained {
  Floats f32, first, second, scales;
  std::vector<uint16_t> bf16;
  std::vector<uint8_t> codes;
  Trained trained;
  TestTrained(const Floats& start, bool short_values, bool short_moments) : f32(start) {
    const size_t count = start.size(), blocks = (count + kMomentBlock - 1) / kMomentBlock;
    trained.elements = int64_t(count);
    trained.f32 = f32.data();
    if (short_values) {
      for (float v : start) {
        uint32_t bits;
        std::memcpy(&bits, &v, sizeof(bits));
        bf16.push_back(static_cast<uint16_t>(bits >> 16));
      }
      trained.f32 = nullptr;
      trained.bf16 = bf16.data();
    }
    if (short_moments) {
      codes.resize(2 * count);
      scales.resize(2 * blocks);
      trained.first = {.codes = codes.data(), .scales = scales.data()};
      trained.second = {.codes = codes.data() + count, .scales = scales.data() + blocks};
    } else {
      first.resize(count);
      second.resize(count);
      trained.first = {.f32 = first.data()};
      trained.second = {.f32 = second.data()};
    }
  }
  Floats values() const {
    if (!trained.bf16) return f32;
    Floats wide;
    for (uint16_t v : bf16) wide.push_back(widened_bf16(v));
    return wide;
  }
};

}  // namespace tinytl
