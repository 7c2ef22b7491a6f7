// Checks every kernel against a plain double-precision reference, with one thread and with three, which must give the
// same bits; `kernels_test bench [threads]` prints rates instead.
#include "../../runtime/native/kernels/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../runtime/native/kernels/parallel.h"
#include "../../runtime/native/kernels/simd.h"

using namespace tinytl;

namespace {

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

std::mt19937 g_random(7);
int g_cases = 0, g_failures = 0;
std::vector<uint64_t> g_hashes;  // of what was compared

Floats random_floats(int64_t count, float low = -1, float high = 1) {
  std::uniform_real_distribution<float> distribution(low, high);
  Floats values(static_cast<size_t>(count));
  for (float& v : values) v = distribution(g_random);
  return values;
}

void fail(const std::string& name, const char* what, size_t at, double got, double wanted) {
  ++g_failures;
  std::printf("FAIL %s: %s[%zu] = %.9g, not %.9g\n", name.c_str(), what, at, got, wanted);
}

void remember(const Floats& got) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (float value : got) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    hash = (hash ^ bits) * 0x100000001b3u;
  }
  g_hashes.push_back(hash);
}

// `depth`: how many terms a sum has; rounding grows with its square root.
void compare(const std::string& name, const char* what, const Floats& got, const Doubles& wanted, double depth = 1) {
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

float widened_bf16(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

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
      for (int64_t i = 0; i < count; ++i) {
        i8.push_back(static_cast<int8_t>(static_cast<int>(g_random() % 256) - 128));
        values.push_back(double(i8.back()) * double(scale[size_t(i % channels)]));
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
            values[at] = double(i8[at]) * double(scale[size_t(group * columns + o)]);
          }
        }
      }
    }
  }
};

void check_same(const std::string& name, const char* what, const Floats& got, const Floats& wanted) {
  ++g_cases;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (got[i] != wanted[i]) return fail(name, what, i, double(got[i]), double(wanted[i]));
  }
}

double activated(double v, Activation a) {
  if (a == Activation::kNone) return v;
  v = std::max(v, 0.0);
  return a == Activation::kRelu6 ? std::min(v, 6.0) : v;
}

void apply(Doubles& y, const Floats& bias, Activation a) {
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] = activated(y[i] + (bias.empty() ? 0.0 : double(bias[i % bias.size()])), a);
  }
}

// Mask bits must agree with the stored values, and nothing else may be written.
void check_mask(const std::string& name, const Floats& y, Activation a, const std::vector<uint8_t>& mask) {
  ++g_cases;
  for (size_t i = 0; i < 8 * mask.size(); ++i) {
    const bool bit = (mask[i / 8] >> (i % 8)) & 1;
    if (i >= (y.size() + 7) / 8 * 8) {
      if (bit != ((0xa5 >> (i % 8)) & 1)) return fail(name, "beyond the mask", i, bit, 0);
      continue;
    }
    const bool wanted =
        i < y.size() && (a == Activation::kNone || (y[i] > 0 && (a == Activation::kRelu || y[i] < 6)));
    if (bit != wanted) return fail(name, "mask", i, bit, wanted);
  }
}

std::vector<uint8_t> dirty_mask(size_t elements) { return std::vector<uint8_t>((elements + 7) / 8 + 2, 0xa5); }

std::string name_of(const char* kind, std::initializer_list<int> numbers) {
  std::string name = kind;
  for (int n : numbers) name.append(1, ' ').append(std::to_string(n));
  return name;
}

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

const Activation kActivations[] = {Activation::kNone, Activation::kRelu, Activation::kRelu6};

void test_pointwise(int pixels, int in, int out, Form form, int variant) {
  const std::string name = name_of("pointwise", {pixels, in, out, int(form), variant});
  TestWeight w(int64_t(in) * out, out, form);
  const Floats x = random_floats(int64_t(pixels) * in, -2, 2), dy = random_floats(int64_t(pixels) * out);
  const Floats bias = variant % 2 ? random_floats(out) : Floats();
  const Activation a = kActivations[variant % 3];
  Floats y(dy.size(), NAN), dx(x.size(), NAN), dw = random_floats(int64_t(in) * out);
  Doubles ry(y.size()), rdx(x.size()), rdw(dw.begin(), dw.end());
  for (int p = 0; p < pixels; ++p) {
    for (int i = 0; i < in; ++i) {
      for (int o = 0; o < out; ++o) {
        const size_t xi = size_t(p) * size_t(in) + size_t(i), yi = size_t(p) * size_t(out) + size_t(o);
        const size_t wi = size_t(i) * size_t(out) + size_t(o);
        ry[yi] += double(x[xi]) * w.values[wi];
        rdx[xi] += double(dy[yi]) * w.values[wi];
        rdw[wi] += double(x[xi]) * double(dy[yi]);
      }
    }
  }
  Doubles sums = ry;
  apply(ry, bias, a);
  std::vector<uint8_t> mask = dirty_mask(y.size());
  Epilogue epilogue{bias.empty() ? nullptr : bias.data(), a, variant / 6 ? nullptr : mask.data()};
  pointwise_forward(x.data(), y.data(), pixels, in, out, w.weight, epilogue);
  compare(name, "y", y, ry, in);
  if (epilogue.mask) check_mask(name, y, a, mask);
  pointwise_dx(dy.data(), dx.data(), pixels, in, out, w.weight, {});
  compare(name, "dx", dx, rdx, out);
  // Bit for bit, but for one pixel: there the compiler contracts what remains of a row as it likes.
  if (form == Form::kBfloat16 && pixels > 1) {
    Floats same_y(y.size()), same_dx(dx.size());
    pointwise_forward(x.data(), same_y.data(), pixels, in, out, w.widened(), epilogue);
    pointwise_dx(dy.data(), same_dx.data(), pixels, in, out, w.widened(), {});
    check_same(name, "y of bf16", y, same_y);
    check_same(name, "dx of bf16", dx, same_dx);
  }
  check_gradient_epilogue(name, dx, in, true, [&](float* to, const GradientEpilogue& gradient) {
    pointwise_dx(dy.data(), to, pixels, in, out, w.weight, gradient);
  });
  Floats more = random_floats(int64_t(y.size()));
  for (size_t i = 0; i < y.size(); ++i) sums[i] += double(more[i]);
  apply(sums, bias, a);
  epilogue.accumulate = true;
  pointwise_forward(x.data(), more.data(), pixels, in, out, w.weight, epilogue);
  compare(name, "accumulated y", more, sums, in);
  if (epilogue.mask) check_mask(name, more, a, mask);
  pointwise_dw(x.data(), dy.data(), dw.data(), pixels, in, out);
  compare(name, "dw", dw, rdw, pixels);
}

Geometry geometry(int h, int w, int in, int out, int kh, int kw, int sh, int sw, int top, int left, int bottom,
                  int right, int groups) {
  return {h, w, in, (h + top + bottom - kh) / sh + 1, (w + left + right - kw) / sw + 1, out, kh, kw, sh, sw, top, left,
          groups};
}

void test_conv(const Geometry& g, bool depthwise, Form form, int variant) {
  const std::string name =
      name_of(depthwise ? "depthwise" : "conv",
              {g.in_height, g.in_width, g.in_channels, g.out_height, g.out_width, g.out_channels, g.kernel_height,
               g.kernel_width, g.stride_height, g.stride_width, g.pad_top, g.pad_left, g.groups, int(form), variant});
  const int groups = depthwise ? g.in_channels : g.groups;
  const int depth = g.in_channels / groups, columns = g.out_channels / groups;
  const int taps = g.kernel_height * g.kernel_width;
  TestWeight w(int64_t(taps) * groups * depth * columns, g.out_channels, form);
  if (!depthwise) w.regroup(taps, groups, depth, columns);
  const Floats x = random_floats(int64_t(g.in_height) * g.in_width * g.in_channels, -2, 2);
  const Floats dy = random_floats(int64_t(g.out_height) * g.out_width * g.out_channels);
  const Floats bias = variant % 2 ? random_floats(g.out_channels) : Floats();
  const Activation a = kActivations[variant % 3];
  Floats y(dy.size(), NAN), dx(x.size(), NAN), dw = random_floats(int64_t(w.values.size()));
  Doubles ry(y.size()), rdx(x.size()), rdw(dw.begin(), dw.end());
  for (int oy = 0; oy < g.out_height; ++oy) {
    for (int ox = 0; ox < g.out_width; ++ox) {
      for (int tap = 0; tap < taps; ++tap) {
        const int iy = oy * g.stride_height - g.pad_top + tap / g.kernel_width;
        const int ix = ox * g.stride_width - g.pad_left + tap % g.kernel_width;
        if (iy < 0 || iy >= g.in_height || ix < 0 || ix >= g.in_width) continue;
        for (int group = 0; group < groups; ++group) {
          for (int i = 0; i < depth; ++i) {
            for (int o = 0; o < columns; ++o) {
              const size_t xi = size_t((iy * g.in_width + ix) * g.in_channels + group * depth + i);
              const size_t yi = size_t((oy * g.out_width + ox) * g.out_channels + group * columns + o);
              const size_t wi = size_t(((tap * groups + group) * depth + i) * columns + o);
              ry[yi] += double(x[xi]) * w.values[wi];
              rdx[xi] += double(dy[yi]) * w.values[wi];
              rdw[wi] += double(x[xi]) * double(dy[yi]);
            }
          }
        }
      }
    }
  }
  apply(ry, bias, a);
  std::vector<uint8_t> mask = dirty_mask(y.size());
  Epilogue epilogue{bias.empty() ? nullptr : bias.data(), a, variant / 6 ? nullptr : mask.data()};
  (depthwise ? depthwise_forward : conv_forward)(x.data(), y.data(), g, w.weight, epilogue);
  compare(name, "y", y, ry, taps * depth);
  if (epilogue.mask) check_mask(name, y, a, mask);
  (depthwise ? depthwise_dx : conv_dx)(dy.data(), dx.data(), g, w.weight, {});
  compare(name, "dx", dx, rdx, taps * columns);
  if (form == Form::kBfloat16) {
    Floats same_y(y.size()), same_dx(dx.size());
    (depthwise ? depthwise_forward : conv_forward)(x.data(), same_y.data(), g, w.widened(), epilogue);
    (depthwise ? depthwise_dx : conv_dx)(dy.data(), same_dx.data(), g, w.widened(), {});
    check_same(name, "y of bf16", y, same_y);
    check_same(name, "dx of bf16", dx, same_dx);
  }
  check_gradient_epilogue(name, dx, g.in_channels, !depthwise, [&](float* to, const GradientEpilogue& gradient) {
    (depthwise ? depthwise_dx : conv_dx)(dy.data(), to, g, w.weight, gradient);
  });
  (depthwise ? depthwise_dw : conv_dw)(x.data(), dy.data(), dw.data(), g);
  compare(name, "dw", dw, rdw, g.out_height * g.out_width);
}

void test_convolutions() {
  int variant = 0;
  for (int channels : {1, 3, 4, 7, 8, 12, 16, 20, 31, 32, 37, 48, 67}) {
    for (int size : {1, 2, 5, 7, 8, 14, 15, 29}) {
      for (int kernel : {1, 2, 3, 5, 7, 9}) {
        for (int stride : {1, 2, 3}) {
          if ((channels + size + kernel + stride) % 3 != 0) continue;  // a third is plenty
          const int pad = kernel / 2, skew = (channels + kernel) % 2 && pad ? 1 : 0;
          if (size + 2 * pad - skew < kernel) continue;
          const int wide = size + (kernel % 2 ? 3 : 0);
          const Geometry g = geometry(size, wide, channels, channels, kernel, kernel, stride, stride, pad - skew, pad,
                                      pad, pad - skew, channels);
          test_conv(g, true, Form(variant % 3), variant / 3 % 12);
          ++variant;
        }
      }
    }
  }
  test_conv(geometry(9, 11, 20, 20, 3, 5, 2, 1, 0, 2, 2, 1, 20), true, Form::kInt8, 5);
  test_conv(geometry(40, 60, 96, 96, 3, 3, 2, 2, 0, 0, 1, 1, 96), true, Form::kInt8, 5);
  test_conv(geometry(56, 56, 48, 48, 3, 3, 1, 1, 1, 1, 1, 1, 48), true, Form::kFloat32, 4);
  test_conv(geometry(3, 3, 16, 16, 3, 3, 1, 1, 5, 5, 5, 5, 16), true, Form::kInt8, 5);  // whole windows outside
  const int shapes[][3] = {{3, 32, 1},  {3, 5, 1},    {4, 4, 2},   {6, 9, 3},   {24, 24, 2},
                           {20, 44, 4}, {37, 41, 1}, {64, 66, 2}, {1, 1, 1},   {10, 10, 10}};
  for (const auto& shape : shapes) {
    for (int size : {1, 4, 7, 8, 13}) {
      for (int kernel : {1, 2, 3, 5, 9}) {
        for (int stride : {1, 2, 3}) {
          if ((shape[0] + size + kernel + stride) % 2) continue;
          const int pad = kernel / 2, skew = (shape[1] + kernel) % 2 && pad ? 1 : 0;
          if (size + 2 * pad - skew < kernel) continue;
          const Geometry g = geometry(size, size + 2, shape[0], shape[1], kernel, kernel, stride, stride, pad - skew,
                                      pad, pad, pad - skew, shape[2]);
          test_conv(g, false, Form(variant % 3), variant / 3 % 12);
          ++variant;
        }
      }
    }
  }
  test_conv(geometry(32, 32, 3, 32, 3, 3, 2, 2, 0, 0, 1, 1, 1), false, Form::kInt8, 5);
  test_conv(geometry(17, 23, 3, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1), false, Form::kFloat32, 5);
  test_conv(geometry(3, 4, 2600, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1), false, Form::kInt8, 5);
  test_conv(geometry(3, 4, 9, 2600, 3, 3, 1, 1, 1, 1, 1, 1, 1), false, Form::kInt8, 4);
  test_conv(geometry(5, 4, 600, 40, 3, 2, 1, 2, 1, 0, 1, 1, 2), false, Form::kInt8, 5);
  test_conv(geometry(70, 5, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 2), false, Form::kFloat32, 4);
  test_conv(geometry(2, 600, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 2), false, Form::kFloat32, 4);
}

void test_pointwise_all() {
  int variant = 0;
  for (int pixels : {1, 2, 3, 6, 7, 8, 13, 14, 15, 49, 61, 130}) {
    for (int in : {1, 2, 3, 5, 8, 14, 16, 17, 24, 33, 48, 71}) {
      for (int out : {1, 2, 4, 7, 8, 9, 16, 24, 25, 32, 40, 63, 64, 101}) {
        test_pointwise(pixels, in, out, Form(variant % 3), variant / 3 % 12);
        variant += 5;
      }
    }
  }
  for (int pixels : {1, 20}) {
    for (Form form : {Form::kFloat32, Form::kInt8, Form::kBfloat16}) {
      test_pointwise(pixels, 1280, 10, form, 1);
      test_pointwise(pixels, 2570, 37, form, 5);
      test_pointwise(pixels, 37, 2570, form, 5);
      test_pointwise(pixels, 300, 400, form, 4);
    }
  }
  test_pointwise(1000, 24, 144, Form::kInt8, 5);
  test_pointwise(1531, 70, 45, Form::kFloat32, 5);
}

void test_elementwise() {
  for (int count : {0, 1, 7, 8, 9, 63, 64, 65, 4095, 4096, 4103, 9001}) {
    const size_t n = size_t(count);
    const Floats x = random_floats(count, -8, 14), other = random_floats(count);
    for (Activation a : kActivations) {
      const std::string name = name_of("activate", {count, int(a)});
      for (bool in_place : {false, true}) {
        Floats y = in_place ? x : Floats(n, NAN);
        std::vector<uint8_t> mask = dirty_mask(n);
        activate(in_place ? y.data() : x.data(), y.data(), count, a, mask.data());
        Doubles wanted(x.begin(), x.end());
        apply(wanted, {}, a);
        compare(name, "y", y, wanted, 0);
        check_mask(name, y, a, mask);
        Floats gradient = other, dx(n, NAN);
        float* to = in_place ? gradient.data() : dx.data();
        mask_gradient(gradient.data(), to, mask.data(), count);
        Doubles rdx(n);
        for (size_t i = 0; i < n; ++i) rdx[i] = (mask[i / 8] >> (i % 8)) & 1 ? double(other[i]) : 0.0;
        compare(name, "masked", in_place ? gradient : dx, rdx, 0);
      }
    }
    activate(x.data(), Floats(n).data(), count, Activation::kRelu6, nullptr);
    Floats sum = x;
    add(sum.data(), other.data(), sum.data(), count);
    Doubles wanted(n);
    for (size_t i = 0; i < n; ++i) wanted[i] = double(x[i]) + double(other[i]);
    compare(name_of("add", {count}), "y", sum, wanted);
  }
  for (int pixels : {1, 3, 4, 9}) {
    for (int channels : {1, 7, 33}) {
      const Floats dy = random_floats(pixels * channels);
      Floats db = random_floats(channels);
      Doubles wanted(db.begin(), db.end());
      for (size_t i = 0; i < dy.size(); ++i) wanted[i % size_t(channels)] += double(dy[i]);
      bias_gradient(dy.data(), db.data(), pixels, channels);
      compare(name_of("bias_gradient", {pixels, channels}), "db", db, wanted, pixels);
    }
  }
}

const Activation kCurves[] = {Activation::kHardSwish, Activation::kHardSigmoid, Activation::kSigmoid,
                              Activation::kSilu};

double curve(double x, Activation a) {
  const double gate = a == Activation::kHardSwish || a == Activation::kHardSigmoid ? std::clamp(x + 3, 0.0, 6.0) / 6
                                                                                   : 1 / (1 + std::exp(-x));
  return a == Activation::kHardSwish || a == Activation::kSilu ? x * gate : gate;
}

double slope(double x, Activation a) {
  const double step = 1e-5 * std::max(1.0, std::abs(x));
  return (curve(x + step, a) - curve(x - step, a)) / (2 * step);
}

void test_curves() {
  for (Activation a : kCurves) {
    for (int count : {0, 1, 3, 7, 8, 15, 16, 17, 64, 1003}) {
      const std::string name = name_of("curve", {count, int(a)});
      const size_t n = size_t(count);
      Floats x = random_floats(count, -12, 12), dy = random_floats(count);
      for (float& v : x) v = std::abs(std::abs(v) - 3) < 1e-3f ? 1 : v;  // finite differences want no kinks
      Floats y(n, NAN), dx(n, NAN), in_place = x, gradient = dy;
      Doubles ry(n), rdx(n);
      for (size_t i = 0; i < n; ++i) ry[i] = curve(double(x[i]), a), rdx[i] = slope(double(x[i]), a) * double(dy[i]);
      activate(x.data(), y.data(), count, a, nullptr);
      activation_dx(x.data(), dy.data(), dx.data(), count, a);
      activate(in_place.data(), in_place.data(), count, a, nullptr);
      activation_dx(x.data(), gradient.data(), gradient.data(), count, a);
      compare(name, "y", y, ry);
      compare(name, "dx", dx, rdx);
      compare(name, "y in place", in_place, ry);
      compare(name, "dx in place", gradient, rdx);
    }
    // Far out, at the kinks (with PyTorch's slopes there), and where nothing may get lost.
    const bool hard = a == Activation::kHardSwish || a == Activation::kHardSigmoid;
    const bool grows = a == Activation::kHardSwish || a == Activation::kSilu;
    const Floats x{-1e30f, -1e4f, -104, -88, 88, 104, 1e4f, 1e30f, -3, 3, 0};
    Floats y(x.size()), dx(x.size());
    const Floats dy(x.size(), 1);
    Doubles ry, rdx;
    for (float v : x) {
      const bool above = v > 10;
      ry.push_back(v < -10 ? 0.0 : above ? (grows ? double(v) : 1.0) : curve(double(v), a));
      rdx.push_back(v < -10 || (v == -3 && hard) ? 0.0
                    : above || (v == 3 && hard)  ? (grows ? 1.0 : 0.0)
                                                 : slope(double(v), a));
    }
    activate(x.data(), y.data(), int64_t(x.size()), a, nullptr);
    activation_dx(x.data(), dy.data(), dx.data(), int64_t(x.size()), a);
    compare(name_of("curve", {int(a)}), "far", y, ry);
    compare(name_of("curve", {int(a)}), "far dx", dx, rdx);
    const Floats unknown(5, NAN);
    activate(unknown.data(), y.data(), 5, a, nullptr);
    for (size_t i = 0; i < 5; ++i) {
      ++g_cases;
      if (!std::isnan(y[i])) fail(name_of("curve", {int(a)}), "NaN", i, double(y[i]), NAN);
    }
  }
  // Small results keep their relative precision: 5e-7 covers rounding x itself in the exponent.
  for (float x = -86; x < 0; x += 0.0137f) {
    float y, dx, dy = 1;
    activate(&x, &y, 1, Activation::kSigmoid, nullptr);
    activation_dx(&x, &dy, &dx, 1, Activation::kSigmoid);
    const double gate = curve(double(x), Activation::kSigmoid), wanted[] = {gate, gate * (1 - gate)};
    ++g_cases;
    if (std::abs(double(y) / wanted[0] - 1) > 5e-7) fail("sigmoid", "relative", 0, double(y), wanted[0]);
    if (std::abs(double(dx) / wanted[1] - 1) > 8e-7) fail("sigmoid", "relative dx", 0, double(dx), wanted[1]);
  }
}

void test_multiply() {
  for (int pixels : {1, 2, 4, 5, 6, 9, 50}) {
    for (int channels : {1, 3, 8, 37, 130}) {
      const std::string name = name_of("multiply", {pixels, channels});
      const Floats x = random_floats(pixels * channels), other = random_floats(channels);
      const Floats dy = random_floats(pixels * channels);
      Floats y(x.size(), NAN), in_place = x, dother(other.size(), NAN);
      Doubles wanted(x.size()), rdother(other.size());
      for (size_t i = 0; i < x.size(); ++i) {
        wanted[i] = double(x[i]) * double(other[i % other.size()]);
        rdother[i % other.size()] += double(dy[i]) * double(x[i]);
      }
      multiply(x.data(), other.data(), y.data(), pixels, channels);
      multiply(in_place.data(), other.data(), in_place.data(), pixels, channels);
      multiply_dother(dy.data(), x.data(), dother.data(), pixels, channels);
      compare(name, "y", y, wanted);
      compare(name, "y in place", in_place, wanted);
      compare(name, "dother", dother, rdother, pixels);
    }
  }
}

// A linear map and its transpose must agree: <dy, y> = <dx, x>; the forward map is checked against the reference.
void check_transpose(const std::string& name, const Floats& x, const Floats& y, const Floats& dy, const Floats& dx) {
  ++g_cases;
  double left = 0, right = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) left += double(y[i]) * double(dy[i]), size += std::abs(double(dy[i]));
  for (size_t i = 0; i < x.size(); ++i) right += double(x[i]) * double(dx[i]);
  if (!(std::abs(left - right) <= 1e-5 * (size + 1))) fail(name, "<dx, x>", 0, right, left);
}

// body(input element, output element, number in the window) for each tap of a pooling that lies in the input.
template <class Body>
void each_tap(const Geometry& g, Body body) {
  for (int yi = 0; yi < g.out_height * g.out_width * g.out_channels; ++yi) {
    const int c = yi % g.out_channels, ox = yi / g.out_channels % g.out_width, oy = yi / g.out_channels / g.out_width;
    for (int tap = 0; tap < g.kernel_height * g.kernel_width; ++tap) {
      const int iy = oy * g.stride_height - g.pad_top + tap / g.kernel_width;
      const int ix = ox * g.stride_width - g.pad_left + tap % g.kernel_width;
      const bool within = iy >= 0 && iy < g.in_height && ix >= 0 && ix < g.in_width;
      const bool in_padding = iy < g.in_height + g.pad_top && ix < g.in_width + g.pad_left;
      body(within ? (iy * g.in_width + ix) * g.in_channels + c : in_padding ? -1 : -2, size_t(yi), tap);
    }
  }
}

std::string pool_name(const char* kind, const Geometry& g) {
  return name_of(kind, {g.in_height, g.in_width, g.in_channels, g.out_height, g.out_width, g.kernel_height,
                        g.kernel_width, g.stride_height, g.pad_top});
}

void test_average_pool(const Geometry& g, bool include_pad) {
  const std::string name = pool_name(include_pad ? "average_pool padded" : "average_pool", g);
  const Floats x = random_floats(g.in_height * g.in_width * g.in_channels);
  const Floats dy = random_floats(g.out_height * g.out_width * g.out_channels);
  Floats y(dy.size(), NAN), dx(x.size(), NAN);
  Doubles wanted(y.size()), rdx(x.size()), counted(y.size());
  each_tap(g, [&](int xi, size_t yi, int) { counted[yi] += xi >= 0 || (include_pad && xi == -1); });
  each_tap(g, [&](int xi, size_t yi, int) {
    if (xi < 0) return;
    wanted[yi] += double(x[size_t(xi)]) / counted[yi];
    rdx[size_t(xi)] += double(dy[yi]) / counted[yi];
  });
  average_pool_forward(x.data(), y.data(), g, include_pad);
  average_pool_dx(dy.data(), dx.data(), g, include_pad);
  compare(name, "y", y, wanted);
  compare(name, "dx", dx, rdx);
}

void test_max_pool(const Geometry& g) {
  const std::string name = pool_name("max_pool", g);
  Floats x = random_floats(g.in_height * g.in_width * g.in_channels, -3, -1);
  for (float& v : x) v = std::round(v * 3);  // many equals
  const Floats dy = random_floats(g.out_height * g.out_width * g.out_channels);
  Floats y(dy.size(), NAN), dx(x.size(), NAN);
  std::vector<uint8_t> index(y.size(), 255);
  std::vector<int> from(y.size(), -1), number(y.size());
  each_tap(g, [&](int xi, size_t yi, int tap) {
    if (xi < 0 || (from[yi] >= 0 && x[size_t(xi)] <= x[size_t(from[yi])])) return;
    from[yi] = xi;
    number[yi] = tap;
  });
  Doubles wanted, rdx(x.size());
  for (size_t i = 0; i < y.size(); ++i) {
    wanted.push_back(double(x[size_t(from[i])]));
    rdx[size_t(from[i])] += double(dy[i]);
  }
  max_pool_forward(x.data(), y.data(), index.data(), g);
  max_pool_dx(dy.data(), index.data(), dx.data(), g);
  compare(name, "y", y, wanted, 0);
  compare(name, "dx", dx, rdx, 9);
  ++g_cases;
  for (size_t i = 0; i < index.size(); ++i) {
    if (index[i] != number[i]) return fail(name, "index", i, index[i], number[i]);
  }
  Floats alone(y.size(), NAN);
  max_pool_forward(x.data(), alone.data(), nullptr, g);
  compare(name, "y alone", alone, wanted, 0);
  x[size_t(from[0])] = NAN;
  max_pool_forward(x.data(), y.data(), index.data(), g);
  ++g_cases;
  if (!std::isnan(y[0])) fail(name, "NaN", 0, double(y[0]), NAN);
}

void test_resampling() {
  for (int channels : {1, 5, 16, 19}) {
    for (int size : {1, 4, 7, 8}) {
      for (int kernel : {1, 2, 3, 5}) {
        for (int stride : {1, 2, 3}) {
          for (int pad = 0; pad <= kernel / 2; ++pad) {
            for (int ceil = 0; ceil < stride; ++ceil) {  // windows may reach this far past the padding
              if (kernel > size + 2 * pad) continue;
              const Geometry g = geometry(size, size + 1, channels, channels, kernel, kernel + 1, stride, stride, pad,
                                          pad, pad + ceil, pad + ceil, 1);
              if ((g.out_height - 1) * stride >= size + pad || (g.out_width - 1) * stride >= size + 1 + pad) continue;
              for (bool include_pad : {false, true}) test_average_pool(g, include_pad);
              test_max_pool(g);
            }
          }
        }
      }
      for (int out : {1, 3, 8, 14, 15}) {
        const Geometry g{size, size + 1, channels, out, out + 2, channels, 1, 1, 1, 1, 0, 0, 1};
        const std::string name = name_of("upsample", {channels, size, out});
        const Floats x = random_floats(size * (size + 1) * channels), dy = random_floats(out * (out + 2) * channels);
        Floats y(dy.size(), NAN), dx(x.size(), NAN);
        Doubles wanted(y.size());
        for (size_t i = 0; i < y.size(); ++i) {
          const int c = int(i) % channels, ox = int(i) / channels % (out + 2), oy = int(i) / channels / (out + 2);
          auto weight = [](int at, int outs, int from, int ins) {
            const double position = std::clamp((at + 0.5) * ins / outs - 0.5, 0.0, ins - 1.0);
            return std::max(0.0, 1 - std::abs(position - from));
          };
          for (int iy = 0; iy < size; ++iy) {
            for (int ix = 0; ix <= size; ++ix) {
              wanted[i] += weight(oy, out, iy, size) * weight(ox, out + 2, ix, size + 1) *
                           double(x[size_t((iy * (size + 1) + ix) * channels + c)]);
            }
          }
        }
        upsample_forward(x.data(), y.data(), g);
        upsample_dx(dy.data(), dx.data(), g);
        compare(name, "y", y, wanted, 4);
        check_transpose(name, x, y, dy, dx);
      }
      const int pixels = size * size;
      const Floats x = random_floats(pixels * channels), dy = random_floats(channels);
      Floats y(size_t(channels), NAN), dx(x.size(), NAN);
      Doubles wanted(y.size()), rdx(x.size());
      for (size_t i = 0; i < x.size(); ++i) {
        wanted[i % size_t(channels)] += double(x[i]) / pixels;
        rdx[i] = double(dy[i % size_t(channels)]) / pixels;
      }
      global_pool_forward(x.data(), y.data(), pixels, channels);
      global_pool_dx(dy.data(), dx.data(), pixels, channels);
      compare(name_of("global_pool", {pixels, channels}), "y", y, wanted);
      compare(name_of("global_pool", {pixels, channels}), "dx", dx, rdx);
    }
  }
}

void test_norm() {
  const int shapes[][3] = {{1, 4, 2}, {5, 6, 3}, {49, 24, 8}, {13, 35, 5}, {9, 7, 1}, {16, 8, 8}};
  for (const auto& shape : shapes) {
    for (float offset : {0.0f, 300.0f}) {
      const int pixels = shape[0], channels = shape[1], groups = shape[2], width = channels / groups;
      const std::string name = name_of("group_norm", {pixels, channels, groups, int(offset)});
      const Floats x = random_floats(pixels * channels, offset - 1, offset + 1);
      const Floats dy = random_floats(pixels * channels);
      const Floats weight = random_floats(channels), bias = random_floats(channels);
      Floats y(x.size(), NAN), dx(x.size(), NAN), statistics(size_t(2 * groups), NAN);
      Floats dweight = random_floats(channels), dbias = random_floats(channels);
      Doubles ry(x.size()), rdx(x.size()), rdw(dweight.begin(), dweight.end()), rdb(dbias.begin(), dbias.end());
      for (int group = 0; group < groups; ++group) {
        double mean = 0, variance = 0, sum = 0, slope = 0;
        auto each = [&](auto body) {
          for (int p = 0; p < pixels; ++p) {
            for (int c = group * width; c < (group + 1) * width; ++c) body(size_t(p * channels + c), size_t(c));
          }
        };
        const double count = pixels * width;
        each([&](size_t i, size_t) { mean += double(x[i]) / count; });
        each([&](size_t i, size_t) { variance += (double(x[i]) - mean) * (double(x[i]) - mean) / count; });
        const double inverse = 1 / std::sqrt(variance + 1e-5);
        auto normal = [&](size_t i) { return (double(x[i]) - mean) * inverse; };
        each([&](size_t i, size_t c) {
          ry[i] = normal(i) * double(weight[c]) + double(bias[c]);
          rdw[c] += double(dy[i]) * normal(i);
          rdb[c] += double(dy[i]);
          sum += double(dy[i]) * double(weight[c]) / count;
          slope += double(dy[i]) * double(weight[c]) * normal(i) / count;
        });
        each([&](size_t i, size_t c) {
          rdx[i] = (double(dy[i]) * double(weight[c]) - sum - normal(i) * slope) * inverse;
        });
      }
      const double depth = 100 + double(offset) * 300;  // the mean is kept in float32
      group_norm_forward(x.data(), y.data(), pixels, channels, groups, 1e-5f, weight.data(), bias.data(),
                         statistics.data());
      group_norm_backward(x.data(), dy.data(), dx.data(), pixels, channels, groups, weight.data(), statistics.data(),
                          dweight.data(), dbias.data());
      compare(name, "y", y, ry, depth);
      compare(name, "dx", dx, rdx, depth);
      compare(name, "dweight", dweight, rdw, depth);
      compare(name, "dbias", dbias, rdb, depth);

      affine_forward(x.data(), y.data(), pixels, channels, weight.data(), bias.data());
      Floats gradient = dy;
      rdw.assign(dweight.begin(), dweight.end());
      rdb.assign(dbias.begin(), dbias.end());
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t c = i % size_t(channels);
        ry[i] = double(x[i]) * double(weight[c]) + double(bias[c]);
        rdx[i] = double(dy[i]) * double(weight[c]);
        rdw[c] += double(dy[i]) * double(x[i]);
        rdb[c] += double(dy[i]);
      }
      affine_backward(x.data(), gradient.data(), gradient.data(), pixels, channels, weight.data(), dweight.data(),
                      dbias.data());
      compare("affine " + name, "y", y, ry);
      compare("affine " + name, "dx", gradient, rdx);
      compare("affine " + name, "dweight", dweight, rdw, depth);
      compare("affine " + name, "dbias", dbias, rdb, depth);
      affine_backward(x.data(), dy.data(), dx.data(), pixels, channels, weight.data(), nullptr, nullptr);
    }
  }
}

void test_loss_of_several_labels() {
  for (int classes : {1, 2, 37}) {
    Floats logits = random_floats(classes, -30, 30), targets = random_floats(classes, 0, 1);
    for (float far : {0.0f, 1e30f, -1e30f}) {
      if (far != 0) logits[0] = far, targets[0] = far > 0 ? 1.0f : 0.0f;
      Floats dlogits(logits.size(), NAN);
      double loss = 0;
      Doubles wanted;
      for (size_t i = 0; i < logits.size(); ++i) {
        const double x = double(logits[i]), t = double(targets[i]), gate = 1 / (1 + std::exp(-x));
        if (std::abs(x) < 1e4) loss -= (t * std::log(gate) + (1 - t) * -std::log1p(std::exp(x))) / classes;
        wanted.push_back((gate - t) / classes * 0.125);
      }
      const float got = sigmoid_cross_entropy(logits.data(), targets.data(), dlogits.data(), classes, 0.125f);
      compare(name_of("sigmoid loss", {classes}), "loss", {got}, {loss});
      compare(name_of("sigmoid loss", {classes}), "dlogits", dlogits, wanted);
      compare(name_of("sigmoid loss", {classes}), "loss alone",
              {sigmoid_cross_entropy(logits.data(), targets.data(), nullptr, classes, 1)}, {loss});
    }
  }
}

void test_loss() {
  for (int classes : {1, 2, 10, 101}) {
    for (float scale : {1.0f, 0.125f}) {
      const Floats logits = random_floats(classes, -30, 90), targets = random_floats(classes, 0, 1);
      Floats dlogits(size_t(classes), NAN);
      double sum = 0, total = 0, loss = 0;
      for (float logit : logits) sum += std::exp(double(logit));
      for (float target : targets) total += double(target);
      Doubles wanted;
      for (size_t i = 0; i < logits.size(); ++i) {
        loss -= double(targets[i]) * (double(logits[i]) - std::log(sum));
        wanted.push_back((std::exp(double(logits[i])) / sum * total - double(targets[i])) * double(scale));
      }
      const float got = softmax_cross_entropy(logits.data(), targets.data(), dlogits.data(), classes, scale);
      compare(name_of("loss", {classes}), "loss", {got}, {loss}, 10);
      compare(name_of("loss", {classes}), "dlogits", dlogits, wanted, 10);
    }
  }
}

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

const Optimizer kOptimizers[] = {Optimizer::kSgd, Optimizer::kMomentum, Optimizer::kAdam};

// The update as the books say, in double.
struct ReferenceUpdate {
  Doubles values, m, v;
  explicit ReferenceUpdate(const Floats& start) : values(start.begin(), start.end()), m(start.size()), v(m) {}
  void step(Optimizer optimizer, const Floats& gradient, double rate, int step) {
    for (size_t i = 0; i < values.size(); ++i) {
      const double g = double(gradient[i]);
      if (optimizer == Optimizer::kAdam) {
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.999 * v[i] + 0.001 * g * g;
        values[i] -= rate * (m[i] / (1 - std::pow(0.9, step))) / (std::sqrt(v[i] / (1 - std::pow(0.999, step))) + 1e-8);
      } else {
        m[i] = (optimizer == Optimizer::kMomentum ? 0.9 * m[i] : 0) + g;
        values[i] -= rate * m[i];
      }
    }
  }
};

void test_optimizers() {
  for (int count : {1, 5, 16, 127, 128, 129, 1003}) {
    for (Optimizer optimizer : kOptimizers) {
      const std::string name = name_of("update", {count, int(optimizer)});
      const Floats start = random_floats(count);
      TestTrained plain(start, false, false), moved(start, false, false);
      ReferenceUpdate reference(start);
      for (int step = 1; step <= 5; ++step) {
        Floats gradient = random_floats(count);
        std::vector<uint16_t> bf16;
        for (float& g : gradient) {
          uint32_t bits;
          std::memcpy(&bits, &g, sizeof(bits));
          bf16.push_back(static_cast<uint16_t>(bits >> 16));
          g = widened_bf16(bf16.back());
        }
        update(plain.trained, {.f32 = gradient.data()}, {optimizer, 0.01f, step, 1});
        update(moved.trained, {.bf16 = bf16.data()}, {optimizer, 0.01f, step, 2});
        reference.step(optimizer, gradient, double(0.01f), step);
      }
      compare(name, "values", plain.values(), reference.values, 5);
      check_same(name, "values of a bf16 gradient", moved.values(), plain.values());
      if (optimizer != Optimizer::kSgd) compare(name, "first moment", plain.first, reference.m, 5);
      if (optimizer == Optimizer::kAdam) compare(name, "second moment", plain.second, reference.v, 5);
    }
  }
}

// The moments that codes stand for: see optimizer.cc.
double magnitude(int code, int largest) {
  auto upper_bits = [&](int above) {
    const uint32_t bits = uint32_t(0x3f8 - largest + above) << 20;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return double(value);
  };
  return (upper_bits(code) - upper_bits(0)) / (1 - upper_bits(0));
}
double first_moment(const TestTrained& t, size_t i) {
  const int code = static_cast<int8_t>(t.trained.first.codes[i]);
  return double(t.trained.first.scales[i / kMomentBlock]) * magnitude(std::abs(code), 127) * (code < 0 ? -1 : 1);
}
double second_moment(const TestTrained& t, size_t i) {
  return double(t.trained.second.scales[i / kMomentBlock]) * magnitude(t.trained.second.codes[i], 255);
}

void expect(const std::string& name, const char* what, size_t at, double got, double wanted, double tolerance) {
  ++g_cases;
  if (!(std::abs(got - wanted) <= tolerance)) fail(name, what, at, got, wanted);
}

// Over many seeds the mean of what is stored is what was computed.
void test_rounding() {
  constexpr int kSeeds = 4000;
  const double deviations = 5 / std::sqrt(double(kSeeds));
  for (int count : {1, 130, 257}) {
    const std::string name = name_of("rounding", {count});
    const Floats start(size_t(count), 1.0f);
    Floats gradient = random_floats(count, -1, 1);
    Floats largest(3, 0.0f);
    for (size_t i = 0; i < gradient.size(); ++i) {
      gradient[i] = std::pow(gradient[i], 5.0f);
      largest[i / kMomentBlock] = std::max(largest[i / kMomentBlock], std::abs(gradient[i]));
    }
    Doubles value(start.size()), sum(start.size()), m(start.size()), v(start.size());
    ReferenceUpdate wanted(start);
    wanted.step(Optimizer::kAdam, gradient, 1e-3, 1);
    for (int seed = 0; seed < kSeeds; ++seed) {
      TestTrained t(start, true, true), same(start, true, true);
      update(t.trained, {.f32 = gradient.data()}, {Optimizer::kAdam, 1e-3f, 1, uint64_t(seed)});
      std::vector<uint16_t> sums(start.size(), 0x3f80);
      add_rounded(gradient.data(), sums.data(), count, uint64_t(seed));
      for (size_t i = 0; i < start.size(); ++i) {
        value[i] += double(t.values()[i]) / kSeeds;
        sum[i] += double(widened_bf16(sums[i])) / kSeeds;
        m[i] += first_moment(t, i) / kSeeds;
        v[i] += second_moment(t, i) / kSeeds;
      }
      if (seed > 10) continue;
      update(same.trained, {.f32 = gradient.data()}, {Optimizer::kAdam, 1e-3f, 1, uint64_t(seed)});
      ++g_cases;
      if (t.bf16 != same.bf16 || t.codes != same.codes) fail(name, "another result of the same seed", 0, 0, 0);
    }
    for (size_t i = 0; i < start.size(); ++i) {
      // Half a gap between two representable numbers is the largest deviation that a rounding can have.
      const double g = double(gradient[i]), m_scale = double(largest[i / kMomentBlock]) * 0.1;
      const double v_scale = m_scale * m_scale * 0.1;
      expect(name, "value", i, value[i], wanted.values[i], deviations / 256);
      expect(name, "sum", i, sum[i], 1 + g, deviations / 128);
      expect(name, "first moment", i, m[i], wanted.m[i], deviations * (std::abs(wanted.m[i]) / 16 + 2e-6 * m_scale));
      expect(name, "second moment", i, v[i], wanted.v[i], deviations * wanted.v[i] / 16 + 4e-11 * v_scale);
    }
  }
}

// Adam in few bits ends where Adam in float32 does: near the minimum of a noisy quadratic of very unlike curvatures.
void test_low_precision_training() {
  constexpr int kCount = 700, kSteps = 300;
  const Floats start = random_floats(kCount), goal = random_floats(kCount);
  Floats steepness(start.size());
  for (size_t i = 0; i < start.size(); ++i) steepness[i] = std::pow(10.0f, float(int(i % 5)) - 3);
  for (Optimizer optimizer : {Optimizer::kMomentum, Optimizer::kAdam}) {
    double ends[4];
    for (int form = 0; form < 4; ++form) {
      TestTrained t(start, form & 1, form & 2);
      std::mt19937 random(11);
      std::normal_distribution<float> noise(0, 0.3f);
      for (int step = 1; step <= kSteps; ++step) {
        const Floats values = t.values();
        Floats gradient(start.size());
        for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = steepness[i] * (values[i] - goal[i] + noise(random));
        const float share = 1 - float(step - 1) / kSteps, rate = optimizer == Optimizer::kAdam ? 0.02f : 0.01f;
        update(t.trained, {.f32 = gradient.data()}, {optimizer, rate * share, step, 5});
        for (size_t i = 0; form & 2 && optimizer == Optimizer::kAdam && i < start.size(); ++i) {
          if (t.trained.first.codes[i] && !t.trained.second.codes[i]) {
            return fail("low precision", "second moment of 0 beside a first of", i, first_moment(t, i), 0);
          }
        }
      }
      double loss = 0;
      const Floats values = t.values();
      for (size_t i = 0; i < values.size(); ++i) loss += std::pow(double(values[i] - goal[i]), 2) / kCount;
      ends[form] = loss;
    }
    for (int form = 1; form < 4; ++form) {
      expect(name_of("low precision", {int(optimizer), form}), "distance", 0, ends[form], ends[0],
             (form & 1 ? 0.25 : 0.1) * ends[0]);
    }
  }
}

// With gradients of zero a second moment decays as it should, though each step is far below the distance of two codes.
void test_decay() {
  const int count = 512;
  TestTrained t(Floats(size_t(count)), false, true);
  Floats gradient(size_t(count), 1.0f);
  for (int i = 1; i < count; i += 2) gradient[size_t(i)] = 0.25f;
  for (int step = 1; step <= 2000; ++step) {
    update(t.trained, {.f32 = gradient.data()}, {Optimizer::kAdam, 0.0f, step, 3});
    if (step == 1000) {
      for (int i = 1; i < count; i += 2) gradient[size_t(i)] = 0;
    }
  }
  double even = 0, odd = 0;
  for (int i = 0; i < count; i += 2) {
    even += second_moment(t, size_t(i)) / (count / 2);
    odd += second_moment(t, size_t(i + 1)) / (count / 2);
  }
  expect("decay", "second moment", 0, even, 1 - std::pow(0.999, 2000), 0.02);
  const double wanted = 0.0625 * (1 - std::pow(0.999, 1000)) * std::pow(0.999, 1000);
  expect("decay", "second moment", 1, odd, wanted, 0.06 * wanted);
}

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// The tenth percentile of many runs: what else runs on the machine slows some of them, and its clock may jump.
template <class Body>
double seconds(Body body) {
  std::vector<double> times;
  for (double total = 0; times.size() < 40 || total < 0.05; total += times.back()) {
    const double start = cpu_seconds();
    body();
    times.push_back(cpu_seconds() - start);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 10];
}

constexpr int kChains = 12, kSteps = 100000;

// Independent chains of multiply-adds. A volatile end keeps the compiler from moving them out of the timing.
__attribute__((noinline)) void run_chains(volatile float* result) {
  const Vector factor = broadcast<Vector>(*result), term = broadcast<Vector>(0.001f);
  Vector sums[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sums[i] = broadcast<Vector>(static_cast<float>(i));
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
  }
  float total = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) total += sum_of<Vector>(sums[i]);
  *result = total > 0 ? 0.999f : 0.998f;
}

double peak() {
  volatile float result = 0.999f;
  const double best = seconds([&] { run_chains(&result); });
  return 2.0 * kChains * kSteps * kLanes / best * 1e-9;
}

void print_rate(const std::string& name, double flop, double time, double best) {
  std::printf("%-44s %8.3f ms %7.1f GFLOP/s %5.1f %%\n", name.c_str(), time * 1e3, flop / time * 1e-9,
              flop / time * 1e-9 / best * 100);
}

void bench() {
  const double best = peak();
  std::printf("peak multiply-add: %.1f GFLOP/s, vectors of %d floats\n", best, kLanes);
  // Strips and chunks of maps, as a step runs them: an expansion (more channels out than in) is activated and masked,
  // and the gradient of what a projection reads is masked and summed.
  const int shapes[][3] = {{1792, 32, 16}, {1792, 16, 96}, {448, 96, 24},  {784, 24, 144},  {784, 144, 24},
                           {784, 32, 64},  {784, 64, 32},  {196, 96, 288}, {196, 288, 96},  {196, 64, 384},
                           {196, 384, 64}, {49, 160, 960}, {49, 960, 160}, {49, 320, 1280}, {1, 1280, 100}};
  for (const auto& s : shapes) {
    const int pixels = s[0], in = s[1], out = s[2];
    TestWeight w(int64_t(in) * out, out, Form::kInt8);
    const Floats x = random_floats(int64_t(pixels) * in), dy = random_floats(int64_t(pixels) * out);
    const Floats bias(size_t(out), 0.1f);
    Floats y(dy.size()), dx(x.size()), dw(size_t(in * out)), db(x.size());
    std::vector<uint8_t> mask(std::max(x.size(), dy.size()) / 8 + 1, 0x5a);
    const double flop = 2.0 * pixels * in * out;
    const Epilogue wide{bias.data(), Activation::kRelu6, mask.data()}, narrow{bias.data(), Activation::kNone, nullptr};
    const GradientEpilogue masked{mask.data(), db.data()};
    print_rate(name_of("pointwise forward int8", {pixels, in, out}), flop, seconds([&] {
                 pointwise_forward(x.data(), y.data(), pixels, in, out, w.weight, out > in ? wide : narrow);
               }), best);
    print_rate(name_of("pointwise dx int8", {pixels, in, out}), flop, seconds([&] {
                 pointwise_dx(dy.data(), dx.data(), pixels, in, out, w.weight, out > in ? GradientEpilogue{} : masked);
               }), best);
    print_rate(name_of("pointwise dw", {pixels, in, out}), flop,
               seconds([&] { pointwise_dw(x.data(), dy.data(), dw.data(), pixels, in, out); }), best);
  }
  auto bench_conv = [&](const char* kind, const Geometry& g, bool depthwise) {
    const int groups = depthwise ? g.in_channels : g.groups;
    const int64_t taps = g.kernel_height * g.kernel_width, depth = g.in_channels / groups;
    TestWeight w(taps * depth * g.out_channels, g.out_channels,
                 depthwise || groups == 1 ? Form::kInt8 : Form::kFloat32);
    const Floats x = random_floats(int64_t(g.in_height) * g.in_width * g.in_channels);
    const Floats dy = random_floats(int64_t(g.out_height) * g.out_width * g.out_channels), bias(size_t(g.out_channels));
    Floats y(dy.size()), dx(x.size()), dw(w.values.size()), db(size_t(g.in_channels));
    std::vector<uint8_t> mask(std::max(x.size(), dy.size()) / 8 + 1, 0x5a);
    const double flop = 2.0 * double(dy.size()) * double(taps * depth);
    const Epilogue epilogue{bias.data(), Activation::kRelu6, mask.data()};
    const GradientEpilogue masked{mask.data(), db.data()};
    const std::string shape =
        name_of(kind, {g.in_height, g.in_width, g.in_channels, g.kernel_height, g.stride_height, g.groups});
    print_rate(shape + " forward", flop, seconds([&] {
                 (depthwise ? depthwise_forward : conv_forward)(x.data(), y.data(), g, w.weight, epilogue);
               }), best);
    print_rate(shape + " dx", flop, seconds([&] {
                 (depthwise ? depthwise_dx : conv_dx)(dy.data(), dx.data(), g, w.weight, masked);
               }), best);
    print_rate(shape + " dw", flop, seconds([&] {
                 (depthwise ? depthwise_dw : conv_dw)(x.data(), dy.data(), dw.data(), g);
               }), best);
  };
  const int depthwise[][5] = {{16, 112, 32, 3, 1}, {16, 112, 96, 3, 2}, {28, 28, 64, 3, 1},  {28, 28, 96, 3, 2},
                              {14, 14, 288, 3, 1}, {14, 14, 288, 3, 2}, {7, 7, 960, 3, 1},   {28, 28, 64, 5, 1},
                              {28, 28, 96, 5, 2},  {14, 14, 288, 5, 1}, {14, 14, 288, 5, 2}, {7, 7, 960, 5, 1},
                              {28, 28, 64, 7, 1},  {28, 28, 96, 7, 2},  {14, 14, 288, 7, 1}, {14, 14, 288, 7, 2},
                              {7, 7, 960, 7, 1}};
  for (const auto& d : depthwise) {
    const int pad = d[3] / 2;
    bench_conv("depthwise", geometry(d[0], d[1], d[2], d[2], d[3], d[3], d[4], d[4], pad, pad, pad, pad, d[2]), true);
  }
  for (int channels : {24, 48, 96, 160}) {
    const int size = channels == 24 ? 28 : channels == 48 ? 14 : 7;
    bench_conv("grouped", geometry(size, size, channels, channels, 5, 5, 1, 1, 2, 2, 2, 2, 2), false);
  }
  bench_conv("stem", geometry(32, 224, 3, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1), false);
  Floats big = random_floats(1204224), bias(96);
  std::vector<uint8_t> mask(big.size() / 8);
  auto print_speed = [&](const char* name, double time) {
    std::printf("%-44s %8.3f ms %7.2f elements/ns\n", name, time * 1e3, double(big.size()) / time * 1e-9);
  };
  print_speed("activate + mask, 1.2 M", seconds([&] {
                activate(big.data(), big.data(), int64_t(big.size()), Activation::kRelu6, mask.data());
              }));
  const char* curves[] = {"hard-swish", "hard-sigmoid", "sigmoid", "SiLU"};
  for (int i = 0; i < 4; ++i) {
    Floats y(big.size());
    print_speed(curves[i], seconds([&] { activate(big.data(), y.data(), int64_t(big.size()), kCurves[i], nullptr); }));
    print_speed((std::string(curves[i]) + " dx").c_str(), seconds([&] {
                  activation_dx(big.data(), y.data(), y.data(), int64_t(big.size()), kCurves[i]);
                }));
  }
  print_speed("multiply by channel factors, in place", seconds([&] {
                multiply(big.data(), bias.data(), big.data(), 12544, 96);
              }));
  print_speed("multiply_dother", seconds([&] {
                multiply_dother(big.data(), big.data(), bias.data(), 12544, 96);
              }));
  const Geometry halved = geometry(112, 112, 96, 96, 3, 3, 2, 2, 1, 1, 1, 1, 1);
  Floats half(big.size() / 4);
  std::vector<uint8_t> index(half.size());
  print_speed("max_pool 3x3/2", seconds([&] { max_pool_forward(big.data(), half.data(), index.data(), halved); }));
  print_speed("max_pool_dx", seconds([&] { max_pool_dx(half.data(), index.data(), big.data(), halved); }));
  print_speed("average_pool 3x3/2", seconds([&] { average_pool_forward(big.data(), half.data(), halved); }));
  print_speed("average_pool_dx", seconds([&] { average_pool_dx(half.data(), big.data(), halved); }));
  big = random_floats(int64_t(big.size()));
  print_speed("mask_gradient", seconds([&] {
                mask_gradient(big.data(), big.data(), mask.data(), int64_t(big.size()));
              }));
  const Floats gradient = random_floats(int64_t(big.size()));
  for (Optimizer optimizer : kOptimizers) {
    for (int form = 0; form < (optimizer == Optimizer::kSgd ? 2 : 4); ++form) {
      TestTrained t(big, form & 1, form & 2);
      if (optimizer != Optimizer::kAdam) t.trained.second = {};
      print_speed(name_of("update: optimizer, 16-bit, 8-bit", {int(optimizer), form & 1, form >> 1}).c_str(),
                  seconds([&] { update(t.trained, {.f32 = gradient.data()}, {optimizer, 1e-3f, 1, 1}); }));
    }
  }
  std::vector<uint16_t> sums(big.size());
  print_speed("add_rounded", seconds([&] { add_rounded(gradient.data(), sums.data(), int64_t(big.size()), 1); }));
  print_speed("bias_gradient", seconds([&] { bias_gradient(big.data(), bias.data(), 12544, 96); }));
}

}  // namespace

// Rounding to the nearest, the sizes around a block, and what is no number.
void test_compression() {
  for (int64_t count : {1, 3, 63, 64, 65, 4096, 9001}) {
    const std::string name = "compress " + std::to_string(count);
    const auto size = size_t(count);
    Floats x = random_floats(count, -3, 3);
    x[size / 2] = 0;
    Floats y(size);
    std::vector<uint16_t> halves(size);
    compress_16(x.data(), halves.data(), count);
    decompress_16(halves.data(), y.data(), count);
    remember(y);
    for (size_t i = 0; i < size; ++i) {
      ++g_cases;
      if (!(std::abs(y[i] - x[i]) <= std::abs(x[i]) / 256)) fail(name, "bfloat16", i, double(y[i]), double(x[i]));
    }
    const size_t blocks = (size + kCompressedBlock - 1) / kCompressedBlock, bytes = (size + 3) / 4 * 4 + 4 * blocks;
    std::vector<uint8_t, Aligned<uint8_t>> codes(bytes + 1, 0x5a);
    compress_8(x.data(), codes.data(), count);
    decompress_8(codes.data(), y.data(), count);
    remember(y);
    ++g_cases;
    if (codes[bytes] != 0x5a) fail(name, "beyond", bytes, codes[bytes], 0x5a);
    for (size_t block = 0; block < blocks; ++block) {
      const size_t end = std::min(size, (block + 1) * kCompressedBlock);
      float largest = 0;
      for (size_t i = block * kCompressedBlock; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
      for (size_t i = block * kCompressedBlock; i < end; ++i) {
        ++g_cases;
        if (!(std::abs(y[i] - x[i]) <= largest / 254 * 1.0001f)) fail(name, "8 bits", i, double(y[i]), double(x[i]));
      }
    }
    x[0] = NAN;
    compress_16(x.data(), halves.data(), count);
    decompress_16(halves.data(), y.data(), count);
    ++g_cases;
    if (y[0] == y[0]) fail(name, "NaN in bfloat16", 0, double(y[0]), NAN);
    compress_8(x.data(), codes.data(), count);
    decompress_8(codes.data(), y.data(), count);
    ++g_cases;
    if (y[0] == y[0]) fail(name, "NaN in 8 bits", 0, double(y[0]), NAN);
  }
}

void test_all() {
  g_random.seed(7);
  test_pointwise_all();
  test_convolutions();
  test_elementwise();
  test_curves();
  test_multiply();
  test_resampling();
  test_norm();
  test_loss();
  test_loss_of_several_labels();
  test_optimizers();
  test_rounding();
  test_compression();
  test_low_precision_training();
  test_decay();
}

// A failure on any thread reaches the caller, and the next job runs.
void test_failing_work() {
  for (int failing = 0; failing < 3; ++failing) {
    ++g_cases;
    bool caught = false;
    try {
      parallel(3, [&](int slice) {
        if (slice == failing) throw failing;
      });
    } catch (int number) {
      caught = number == failing;
    }
    if (!caught) fail("failing work", "slice", size_t(failing), 0, 1);
  }
}

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "bench") == 0) {
    start_threads(argc > 2 ? std::atoi(argv[2]) : 1);
    bench();
    return 0;
  }
  test_all();
  const std::vector<uint64_t> alone = std::exchange(g_hashes, {});
  start_threads(3);
  test_all();
  test_failing_work();
  for (size_t i = 0; i < alone.size(); ++i) {
    if (g_hashes[i] != alone[i]) fail("three threads", "comparison", i, double(g_hashes[i]), double(alone[i]));
  }
  std::printf("%d checks, %d failures\n", g_cases, g_failures);
  return g_failures ? 1 : 0;
}
