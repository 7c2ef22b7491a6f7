// Convolutions and their gradients: 1x1, depthwise, grouped and whole, dilated, with weights in all forms.
#include "weights.h"

namespace tinytl {
namespace {

void check_pointwise(int pixels, int in, int out, Form form, int variant) {
  const std::string name = name_of("pointwise", {pixels, in, out, int(form), variant});
  TestWeight w(int64_t(in) * out, out, form);
  const Floats x = random_floats(int64_t(pixels) * in, -2, 2), dy = random_floats(int64_t(pixels) * out);
  const Floats bias = variant % 2 ? random_floats(out) : Floats();
  const Bounds bounds = kBounds[variant % 4];
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
  apply(ry, bias, bounds);
  std::vector<uint8_t> mask = dirty_mask(y.size());
  Epilogue epilogue{bias.empty() ? nullptr : bias.data(), bounds, variant / 6 ? nullptr : mask.data()};
  pointwise_forward(x.data(), y.data(), pixels, in, out, w.weight, epilogue);
  compare(name, "y", y, ry, in);
  if (epilogue.mask) check_mask(name, y, bounds, mask);
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
  apply(sums, bias, bounds);
  epilogue.accumulate = true;
  pointwise_forward(x.data(), more.data(), pixels, in, out, w.weight, epilogue);
  compare(name, "accumulated y", more, sums, in);
  if (epilogue.mask) check_mask(name, more, bounds, mask);
  pointwise_dw(x.data(), dy.data(), dw.data(), pixels, in, out);
  compare(name, "dw", dw, rdw, pixels);
}

// Several samples at once, each as if it were alone, but for rounding; nothing between them is touched.
void check_linear(int rows, int in, int out, Form form, int variant) {
  const std::string name = name_of("linear", {rows, in, out, int(form), variant});
  TestWeight w(int64_t(in) * out, out, form);
  const int64_t stride = std::max(in, out) + 16 + (std::max(in, out) + 7) / 8, total = rows * stride;
  const Floats x = random_floats(total, -2, 2), before = random_floats(total), bias = random_floats(out);
  const Bounds bounds = kBounds[variant % 4];
  Floats sums(in, 0.5f), sums_alone = sums;
  for (const bool adds : {false, true}) {
    Floats y = before, dx = before, y_alone = before, dx_alone = before;
    std::vector<uint8_t> mask = dirty_mask(size_t(total) * 32), mask_alone = mask;
    linear_forward({x.data(), y.data(), rows, stride}, in, out, w.weight, {bias.data(), bounds, mask.data(), adds});
    linear_dx({x.data(), dx.data(), rows, stride}, in, out, w.weight, {mask.data(), sums.data(), adds});
    for (int row = 0; row < rows; ++row) {
      const int64_t at = row * stride;
      uint8_t* bits = mask_alone.data() + at * 4;
      pointwise_forward(&x[size_t(at)], &y_alone[size_t(at)], 1, in, out, w.weight, {bias.data(), bounds, bits, adds});
      pointwise_dx(&x[size_t(at)], &dx_alone[size_t(at)], 1, in, out, w.weight, {bits, sums_alone.data(), adds});
    }
    compare(name, "y", y, Doubles(y_alone.begin(), y_alone.end()), in);
    compare(name, "dx", dx, Doubles(dx_alone.begin(), dx_alone.end()), out);
    compare(name, "db", sums, Doubles(sums_alone.begin(), sums_alone.end()), rows * out);
    for (int64_t i = 0; i < total * 4; ++i) {
      const bool written = i % (stride * 4) < (out + 7) / 8;
      if (!written && mask[size_t(i)] != 0xa5) return fail(name, "beyond the mask", size_t(i), mask[size_t(i)], 0xa5);
    }
    for (int row = 0; row < rows; ++row) {
      const auto bits_at = mask.begin() + row * stride * 4;
      const std::vector<uint8_t> bits(bits_at, bits_at + (out + 7) / 8);
      check_mask(name, Floats(y.begin() + row * stride, y.begin() + row * stride + out), bounds, bits);
    }
  }
}

void check_conv(const Geometry& g, bool depthwise, Form form, int variant) {
  const std::string name =
      name_of(depthwise ? "depthwise" : "conv",
              {g.in_height, g.in_width, g.in_channels, g.out_height, g.out_width, g.out_channels, g.kernel_height,
               g.kernel_width, g.stride_height, g.stride_width, g.pad_top, g.pad_left, g.dilation_height,
               g.groups, int(form), variant});
  const int groups = depthwise ? g.in_channels : g.groups;
  const int depth = g.in_channels / groups, columns = g.out_channels / groups;
  const int taps = g.kernel_height * g.kernel_width;
  TestWeight w(int64_t(taps) * groups * depth * columns, g.out_channels, form);
  if (!depthwise) w.regroup(taps, groups, depth, columns);
  const Floats x = random_floats(int64_t(g.in_height) * g.in_width * g.in_channels, -2, 2);
  const Floats dy = random_floats(int64_t(g.out_height) * g.out_width * g.out_channels);
  const Floats bias = variant % 2 ? random_floats(g.out_channels) : Floats();
  const Bounds bounds = kBounds[variant % 4];
  Floats y(dy.size(), NAN), dx(x.size(), NAN), dw = random_floats(int64_t(w.values.size()));
  Doubles ry(y.size()), rdx(x.size()), rdw(dw.begin(), dw.end());
  for (int oy = 0; oy < g.out_height; ++oy) {
    for (int ox = 0; ox < g.out_width; ++ox) {
      for (int tap = 0; tap < taps; ++tap) {
        const int iy = oy * g.stride_height - g.pad_top + tap / g.kernel_width * g.dilation_height;
        const int ix = ox * g.stride_width - g.pad_left + tap % g.kernel_width * g.dilation_width;
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
  apply(ry, bias, bounds);
  std::vector<uint8_t> mask = dirty_mask(y.size());
  Epilogue epilogue{bias.empty() ? nullptr : bias.data(), bounds, variant / 6 ? nullptr : mask.data()};
  (depthwise ? depthwise_forward : conv_forward)(x.data(), y.data(), g, w.weight, epilogue);
  compare(name, "y", y, ry, taps * depth);
  if (epilogue.mask) check_mask(name, y, bounds, mask);
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

}  // namespace

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
          check_conv(g, true, Form(variant % 3), variant / 3 % 12);
          ++variant;
        }
      }
    }
  }
  check_conv(geometry(9, 11, 20, 20, 3, 5, 2, 1, 0, 2, 2, 1, 20), true, Form::kInt8, 5);
  check_conv(geometry(40, 60, 96, 96, 3, 3, 2, 2, 0, 0, 1, 1, 96), true, Form::kInt8, 5);
  check_conv(geometry(56, 56, 48, 48, 3, 3, 1, 1, 1, 1, 1, 1, 48), true, Form::kFloat32, 4);
  check_conv(geometry(3, 3, 16, 16, 3, 3, 1, 1, 5, 5, 5, 5, 16), true, Form::kInt8, 5);  // whole windows outside
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
          check_conv(g, false, Form(variant % 3), variant / 3 % 12);
          ++variant;
        }
      }
    }
  }
  check_conv(geometry(32, 32, 3, 32, 3, 3, 2, 2, 0, 0, 1, 1, 1), false, Form::kInt8, 5);
  check_conv(geometry(17, 23, 3, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1), false, Form::kFloat32, 5);
  check_conv(geometry(3, 4, 2600, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1), false, Form::kInt8, 5);
  check_conv(geometry(3, 4, 9, 2600, 3, 3, 1, 1, 1, 1, 1, 1, 1), false, Form::kInt8, 4);
  check_conv(geometry(5, 4, 600, 40, 3, 2, 1, 2, 1, 0, 1, 1, 2), false, Form::kInt8, 5);
  check_conv(geometry(70, 5, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 2), false, Form::kFloat32, 4);
  check_conv(geometry(2, 600, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 2), false, Form::kFloat32, 4);
  // Kernels of any size, and dilated.
  check_conv(geometry(200, 2, 3, 4, 200, 1, 1, 1, 0, 0, 0, 0, 1), false, Form::kFloat32, 5);
  check_conv(geometry(4, 300, 4, 4, 1, 260, 1, 2, 0, 7, 0, 7, 2), false, Form::kInt8, 5);
  check_conv(geometry(70, 1, 5, 5, 65, 1, 1, 1, 3, 0, 3, 0, 5), true, Form::kInt8, 4);
  for (int dilation : {2, 3}) {
    for (bool depthwise : {false, true}) {
      Geometry g = geometry(11, 13, 12, 12, 3, 3, 1, 2, 0, 0, 0, 0, depthwise ? 12 : 2);
      g.dilation_height = dilation, g.dilation_width = 5 - dilation;
      g.out_height = 11 + 2 - 2 * dilation - 1 + 1, g.out_width = (13 + 4 - 2 * (5 - dilation) - 1) / 2 + 1;
      g.pad_top = 1, g.pad_left = 2;
      for (Form form : {Form::kFloat32, Form::kInt8, Form::kBfloat16}) check_conv(g, depthwise, form, dilation);
    }
  }
}

void test_pointwise() {
  int variant = 0;
  for (int pixels : {1, 2, 3, 6, 7, 8, 13, 14, 15, 49, 61, 130}) {
    for (int in : {1, 2, 3, 5, 8, 14, 16, 17, 24, 33, 48, 71}) {
      for (int out : {1, 2, 4, 7, 8, 9, 16, 24, 25, 32, 40, 63, 64, 101}) {
        check_pointwise(pixels, in, out, Form(variant % 3), variant / 3 % 12);
        variant += 5;
      }
    }
  }
  for (int pixels : {1, 20}) {
    for (Form form : {Form::kFloat32, Form::kInt8, Form::kBfloat16}) {
      check_pointwise(pixels, 1280, 10, form, 1);
      check_pointwise(pixels, 2570, 37, form, 5);
      check_pointwise(pixels, 37, 2570, form, 5);
      check_pointwise(pixels, 300, 400, form, 4);
    }
  }
  for (Form form : {Form::kFloat32, Form::kInt8, Form::kBfloat16}) {
    for (int rows : {1, 2, 3, 4, 7, 16}) {
      for (const auto& [in, out] : {std::pair{600, 523}, {37, 130}, {1280, 10}, {9, 1100}})
        check_linear(rows, in, out, form, rows + in % 3);
    }
  }
  check_pointwise(1000, 24, 144, Form::kInt8, 5);
  check_pointwise(1531, 70, 45, Form::kFloat32, 5);
}

}  // namespace tinytl
