// A weight in each of its forms, and what an input gradient's epilogue does.
#pragma once

#include "testing.h"

namespace tinytl {

enum class Form { kFloat32, kInt8, kBfloat16 };

// A weight in one of its forms, and its values.
struct TestWeight {
  Floats f32, scale;
  std::vector<int8_t> i8;
  std::vector<uint16_t> bf16;
  Doubles values;
  Weight weight;
  TestWeight(int64_t count, int channels, Form form) {
    if (form == Form::kInt8) {
      scale = random_floats(channels, 0.002f, 0.01f);
      weight.zero = g_random() % 2 ? float(int(g_random() % 256) - 128) : 0.0f;  // a file's weights may have one
      for (int64_t i = 0; i < count; ++i) {
        i8.push_back(static_cast<int8_t>(static_cast<int>(g_random() % 256) - 128));
        values.push_back((double(i8.back()) - double(weight.zero)) * double(scale[size_t(i % channels)]));
      }
      weight.i8 = i8.data();
      weight.scale = scale.data();
      return;
    }
    f32 = random_floats(count);
    if (form == Form::kBfloat16) {
      for (float& v : f32) {
        uint32_t bits;
        std::memcpy(&bits, &v, sizeof(bits));
        bf16.push_back(static_cast<uint16_t>(bits >> 16));
        v = widened_bf16(bf16.back());
      }
      weight.bf16 = bf16.data();
    } else {
      weight.f32 = f32.data();
    }
    values.assign(f32.begin(), f32.end());
  }
  // The same values as float32, of a weight that is not int8.
  Weight widened() const { return {.f32 = f32.data()}; }
  // For grouped layouts the last dimension is only a part of the channels: scale them per group.
  void regroup(int taps, int groups, int depth, int columns) {
    if (!weight.i8) return;
    size_t at = 0;
    for (int tap = 0; tap < taps; ++tap) {
      for (int group = 0; group < groups; ++group) {
        for (int i = 0; i < depth; ++i) {
          for (int o = 0; o < columns; ++o, ++at) {
            values[at] = (double(i8[at]) - double(weight.zero)) * double(scale[size_t(group * columns + o)]);
          }
        }
      }
    }
  }
};

// What an input gradient's epilogue does, to a gradient that is already checked: `run` computes it anew.
template <class Run>
void check_gradient_epilogue(const std::string& name, const Floats& plain, int channels, bool accumulates, Run run) {
  std::vector<uint8_t> mask((plain.size() + 7) / 8);
  for (uint8_t& byte : mask) byte = static_cast<uint8_t>(g_random());
  const Floats before = random_floats(int64_t(plain.size())), sums = random_floats(channels);
  for (int parts = 0; parts < (accumulates ? 8 : 4); ++parts) {
    Floats dx = before, db = sums;
    Doubles wanted(plain.begin(), plain.end()), wanted_db(sums.begin(), sums.end());
    for (size_t i = 0; i < plain.size(); ++i) {
      if (parts & 4) wanted[i] += double(before[i]);
      if (parts & 1 && !((mask[i / 8] >> (i % 8)) & 1)) wanted[i] = 0;
      wanted_db[i % size_t(channels)] += wanted[i];
    }
    run(dx.data(), GradientEpilogue{parts & 1 ? mask.data() : nullptr, parts & 2 ? db.data() : nullptr,
                                    (parts & 4) != 0});
    compare(name + " parts " + std::to_string(parts), "dx", dx, wanted);
    if (parts & 2) compare(name, "db", db, wanted_db, double(plain.size()) / channels);
  }
}

}  // namespace tinytl
