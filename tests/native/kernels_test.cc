// Checks every kernel against a plain double-precision reference; `kernels_test bench` prints rates instead.
#include "../../runtime/native/kernels/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <new>
#include <random>
#include <string>
#include <vector>

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

// `depth`: how many terms a sum has; rounding grows with its square root.
void compare(const std::string& name, const char* what, const Floats& got, const Doubles& wanted, double depth = 1) {
  ++g_cases;
  const double tolerance = 4e-6 * std::sqrt(depth + 1);
  if (got.size() != wanted.size()) return fail(name, what, 0, double(got.size()), double(wanted.size()));
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(double(got[i]) - wanted[i]) <= tolerance * (1 + std::abs(wanted[i])))) {
      return fail(name, what, i, double(got[i]), wanted[i]);
    }
  }
}

// A weight in both forms, and its values.
struct TestWeight {
  Floats f32, scale;
  std::vector<int8_t> i8;
  Doubles values;
  Weight weight;
  TestWeight(int64_t count, int channels, bool integer) {
    if (integer) {
      scale = random_floats(channels, 0.002f, 0.01f);
      for (int64_t i = 0; i < count; ++i) {
        i8.push_back(static_cast<int8_t>(static_cast<int>(g_random() % 256) - 128));
        values.push_back(double(i8.back()) * double(scale[size_t(i % channels)]));
      }
      weight.i8 = i8.data();
      weight.scale = scale.data();
    } else {
      f32 = random_floats(count);
      values.assign(f32.begin(), f32.end());
      weight.f32 = f32.data();
    }
  }
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

const Activation kActivations[] = {Activation::kNone, Activation::kRelu, Activation::kRelu6};

void test_pointwise(int pixels, int in, int out, bool integer, int variant) {
  const std::string name = name_of("pointwise", {pixels, in, out, integer, variant});
  TestWeight w(int64_t(in) * out, out, integer);
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
  apply(ry, bias, a);
  std::vector<uint8_t> mask = dirty_mask(y.size());
  Epilogue epilogue{bias.empty() ? nullptr : bias.data(), a, variant / 6 ? nullptr : mask.data()};
  pointwise_forward(x.data(), y.data(), pixels, in, out, w.weight, epilogue);
  compare(name, "y", y, ry, in);
  if (epilogue.mask) check_mask(name, y, a, mask);
  pointwise_dx(dy.data(), dx.data(), pixels, in, out, w.weight);
  compare(name, "dx", dx, rdx, out);
  pointwise_dw(x.data(), dy.data(), dw.data(), pixels, in, out);
  compare(name, "dw", dw, rdw, pixels);
}

Geometry geometry(int h, int w, int in, int out, int kh, int kw, int sh, int sw, int top, int left, int bottom,
                  int right, int groups) {
  return {h, w, in, (h + top + bottom - kh) / sh + 1, (w + left + right - kw) / sw + 1, out, kh, kw, sh, sw, top, left,
          groups};
}

void test_conv(const Geometry& g, bool depthwise, bool integer, int variant) {
  const std::string name =
      name_of(depthwise ? "depthwise" : "conv",
              {g.in_height, g.in_width, g.in_channels, g.out_height, g.out_width, g.out_channels, g.kernel_height,
               g.kernel_width, g.stride_height, g.stride_width, g.pad_top, g.pad_left, g.groups, integer, variant});
  const int groups = depthwise ? g.in_channels : g.groups;
  const int depth = g.in_channels / groups, columns = g.out_channels / groups;
  const int taps = g.kernel_height * g.kernel_width;
  TestWeight w(int64_t(taps) * groups * depth * columns, g.out_channels, integer);
  if (integer && !depthwise) w.regroup(taps, groups, depth, columns);
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
  (depthwise ? depthwise_dx : conv_dx)(dy.data(), dx.data(), g, w.weight);
  compare(name, "dx", dx, rdx, taps * columns);
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
          test_conv(g, true, variant % 2, variant);
          variant = (variant + 1) % 12;
        }
      }
    }
  }
  test_conv(geometry(9, 11, 20, 20, 3, 5, 2, 1, 0, 2, 2, 1, 20), true, true, 5);
  test_conv(geometry(40, 60, 96, 96, 3, 3, 2, 2, 0, 0, 1, 1, 96), true, true, 5);
  test_conv(geometry(56, 56, 48, 48, 3, 3, 1, 1, 1, 1, 1, 1, 48), true, false, 4);
  test_conv(geometry(3, 3, 16, 16, 3, 3, 1, 1, 5, 5, 5, 5, 16), true, true, 5);  // whole windows outside
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
          test_conv(g, false, variant % 2, variant);
          variant = (variant + 1) % 12;
        }
      }
    }
  }
  test_conv(geometry(32, 32, 3, 32, 3, 3, 2, 2, 0, 0, 1, 1, 1), false, true, 5);
  test_conv(geometry(17, 23, 3, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1), false, false, 5);
  test_conv(geometry(3, 4, 2600, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1), false, true, 5);
  test_conv(geometry(3, 4, 9, 2600, 3, 3, 1, 1, 1, 1, 1, 1, 1), false, true, 4);
  test_conv(geometry(5, 4, 600, 40, 3, 2, 1, 2, 1, 0, 1, 1, 2), false, true, 5);
  test_conv(geometry(70, 5, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 2), false, false, 4);
  test_conv(geometry(2, 600, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 2), false, false, 4);
}

void test_pointwise_all() {
  int variant = 0;
  for (int pixels : {1, 2, 3, 6, 7, 8, 13, 14, 15, 49, 61, 130}) {
    for (int in : {1, 2, 3, 5, 8, 14, 16, 17, 24, 33, 48, 71}) {
      for (int out : {1, 2, 4, 7, 8, 9, 16, 24, 25, 32, 40, 63, 64, 101}) {
        test_pointwise(pixels, in, out, variant % 2, variant / 2 % 12);
        variant += 5;
      }
    }
  }
  for (int pixels : {1, 20}) {
    for (bool integer : {false, true}) {
      test_pointwise(pixels, 1280, 10, integer, 1);
      test_pointwise(pixels, 2570, 37, integer, 5);
      test_pointwise(pixels, 37, 2570, integer, 5);
      test_pointwise(pixels, 300, 400, integer, 4);
    }
  }
  test_pointwise(1000, 24, 144, true, 5);
  test_pointwise(1531, 70, 45, false, 5);
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

// A linear map and its transpose must agree: <dy, y> = <dx, x>; the forward map is checked against the reference.
void check_transpose(const std::string& name, const Floats& x, const Floats& y, const Floats& dy, const Floats& dx) {
  ++g_cases;
  double left = 0, right = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) left += double(y[i]) * double(dy[i]), size += std::abs(double(dy[i]));
  for (size_t i = 0; i < x.size(); ++i) right += double(x[i]) * double(dx[i]);
  if (!(std::abs(left - right) <= 1e-5 * (size + 1))) fail(name, "<dx, x>", 0, right, left);
}

void test_resampling() {
  for (int channels : {1, 5, 16, 19}) {
    for (int size : {1, 4, 7, 8}) {
      for (int kernel : {1, 2, 3}) {
        if (kernel > size) continue;
        for (int stride : {1, 2, 3}) {
          const Geometry g =
              geometry(size, size + 1, channels, channels, kernel, kernel, stride, stride, 0, 0, 0, 0, 1);
          const std::string name = name_of("average_pool", {channels, size, kernel, stride});
          const Floats x = random_floats(size * (size + 1) * channels);
          const Floats dy = random_floats(g.out_height * g.out_width * channels);
          Floats y(dy.size(), NAN), dx(x.size(), NAN);
          Doubles wanted(y.size()), rdx(x.size());
          for (int oy = 0; oy < g.out_height; ++oy) {
            for (int ox = 0; ox < g.out_width; ++ox) {
              for (int i = 0; i < kernel * kernel; ++i) {
                for (int c = 0; c < channels; ++c) {
                  const int pixel = (oy * stride + i / kernel) * (size + 1) + ox * stride + i % kernel;
                  const size_t xi = size_t(pixel * channels + c);
                  const size_t yi = size_t((oy * g.out_width + ox) * channels + c);
                  wanted[yi] += double(x[xi]) / (kernel * kernel);
                  rdx[xi] += double(dy[yi]) / (kernel * kernel);
                }
              }
            }
          }
          average_pool_forward(x.data(), y.data(), g);
          average_pool_dx(dy.data(), dx.data(), g);
          compare(name, "y", y, wanted);
          compare(name, "dx", dx, rdx);
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

void test_loss_and_optimizers() {
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
  for (int count : {1, 5, 16, 1003}) {
    const Floats start = random_floats(count), gradient = random_floats(count);
    Floats sgd = start, heavy = start, adam = start, velocity(start.size()), m(start.size()), v(start.size());
    Doubles rs(start.begin(), start.end()), rh = rs, ra = rs, rv(rs.size()), rm(rs.size()), rr(rs.size());
    for (int step = 1; step <= 5; ++step) {
      sgd_update(sgd.data(), gradient.data(), count, 0.1f);
      momentum_update(heavy.data(), gradient.data(), velocity.data(), count, 0.1f, 0.9f);
      adam_update(adam.data(), gradient.data(), m.data(), v.data(), count, 0.01f, step);
      for (size_t i = 0; i < rs.size(); ++i) {
        const double g = double(gradient[i]);
        rs[i] -= 0.1 * g;
        rv[i] = 0.9 * rv[i] + g;
        rh[i] -= 0.1 * rv[i];
        rm[i] = 0.9 * rm[i] + 0.1 * g;
        rr[i] = 0.999 * rr[i] + 0.001 * g * g;
        ra[i] -= 0.01 * (rm[i] / (1 - std::pow(0.9, step))) / (std::sqrt(rr[i] / (1 - std::pow(0.999, step))) + 1e-8);
      }
    }
    compare(name_of("sgd", {count}), "parameter", sgd, rs, 5);
    compare(name_of("momentum", {count}), "parameter", heavy, rh, 5);
    compare(name_of("adam", {count}), "parameter", adam, ra, 5);
  }
}

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// The fastest of many runs.
template <class Body>
double seconds(Body body) {
  double best = 1e9;
  for (int round = 0; round < 40; ++round) {
    const double start = cpu_seconds();
    body();
    best = std::min(best, cpu_seconds() - start);
  }
  return best;
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
  const int shapes[][3] = {{12544, 32, 16}, {12544, 16, 96}, {3136, 24, 144}, {3136, 144, 24}, {784, 32, 192},
                           {784, 192, 32},  {196, 64, 384},  {196, 384, 64},  {196, 96, 576},  {196, 576, 96},
                           {49, 160, 960},  {49, 960, 160},  {49, 320, 1280}, {1, 1280, 100}};
  for (const auto& s : shapes) {
    const int pixels = s[0], in = s[1], out = s[2];
    TestWeight w(int64_t(in) * out, out, true);
    const Floats x = random_floats(int64_t(pixels) * in), dy = random_floats(int64_t(pixels) * out);
    const Floats bias(size_t(out), 0.1f);
    Floats y(dy.size()), dx(x.size()), dw(size_t(in * out));
    std::vector<uint8_t> mask(dy.size() / 8 + 1);
    const double flop = 2.0 * pixels * in * out;
    const Epilogue wide{bias.data(), Activation::kRelu6, mask.data()}, narrow{bias.data(), Activation::kNone, nullptr};
    print_rate(name_of("pointwise forward int8", {pixels, in, out}), flop, seconds([&] {
                 pointwise_forward(x.data(), y.data(), pixels, in, out, w.weight, out > in ? wide : narrow);
               }), best);
    print_rate(name_of("pointwise dx int8", {pixels, in, out}), flop,
               seconds([&] { pointwise_dx(dy.data(), dx.data(), pixels, in, out, w.weight); }), best);
    print_rate(name_of("pointwise dw", {pixels, in, out}), flop,
               seconds([&] { pointwise_dw(x.data(), dy.data(), dw.data(), pixels, in, out); }), best);
  }
  auto bench_conv = [&](const char* kind, const Geometry& g, bool depthwise) {
    const int groups = depthwise ? g.in_channels : g.groups;
    const int64_t taps = g.kernel_height * g.kernel_width, depth = g.in_channels / groups;
    TestWeight w(taps * depth * g.out_channels, g.out_channels, depthwise || groups == 1);
    const Floats x = random_floats(int64_t(g.in_height) * g.in_width * g.in_channels);
    const Floats dy = random_floats(int64_t(g.out_height) * g.out_width * g.out_channels), bias(size_t(g.out_channels));
    Floats y(dy.size()), dx(x.size()), dw(w.values.size());
    std::vector<uint8_t> mask(dy.size() / 8 + 1);
    const double flop = 2.0 * double(dy.size()) * double(taps * depth);
    const Epilogue epilogue{bias.data(), Activation::kRelu6, mask.data()};
    const std::string shape = name_of(kind, {g.in_height, g.in_channels, g.kernel_height, g.stride_height});
    print_rate(shape + " forward", flop, seconds([&] {
                 (depthwise ? depthwise_forward : conv_forward)(x.data(), y.data(), g, w.weight, epilogue);
               }), best);
    print_rate(shape + " dx", flop, seconds([&] {
                 (depthwise ? depthwise_dx : conv_dx)(dy.data(), dx.data(), g, w.weight);
               }), best);
    print_rate(shape + " dw", flop, seconds([&] {
                 (depthwise ? depthwise_dw : conv_dw)(x.data(), dy.data(), dw.data(), g);
               }), best);
  };
  const int depthwise[][4] = {{112, 32, 3, 1}, {112, 96, 3, 2}, {56, 144, 3, 1}, {56, 144, 3, 2}, {28, 192, 3, 1},
                              {28, 192, 3, 2}, {14, 384, 3, 1}, {14, 576, 3, 2}, {7, 960, 3, 1},  {14, 480, 5, 1},
                              {7, 960, 7, 1}};
  for (const auto& d : depthwise) {
    const int pad = d[2] / 2;
    bench_conv("depthwise", geometry(d[0], d[0], d[1], d[1], d[2], d[2], d[3], d[3], pad, pad, pad, pad, d[1]), true);
  }
  for (int channels : {24, 48, 96, 160}) {
    const int size = channels == 24 ? 28 : channels == 48 ? 14 : 7;
    bench_conv("grouped", geometry(size, size, channels, channels, 5, 5, 1, 1, 2, 2, 2, 2, 2), false);
  }
  bench_conv("stem", geometry(224, 224, 3, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1), false);
  Floats big = random_floats(1204224), bias(96);
  std::vector<uint8_t> mask(big.size() / 8);
  auto print_speed = [&](const char* name, double time) {
    std::printf("%-44s %8.3f ms %7.2f elements/ns\n", name, time * 1e3, double(big.size()) / time * 1e-9);
  };
  print_speed("activate + mask, 1.2 M", seconds([&] {
                activate(big.data(), big.data(), int64_t(big.size()), Activation::kRelu6, mask.data());
              }));
  print_speed("mask_gradient", seconds([&] {
                mask_gradient(big.data(), big.data(), mask.data(), int64_t(big.size()));
              }));
  print_speed("bias_gradient", seconds([&] { bias_gradient(big.data(), bias.data(), 12544, 96); }));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "bench") == 0) {
    bench();
    return 0;
  }
  test_pointwise_all();
  test_convolutions();
  test_elementwise();
  test_resampling();
  test_norm();
  test_loss_and_optimizers();
  std::printf("%d checks, %d failures\n", g_cases, g_failures);
  return g_failures ? 1 : 0;
}
