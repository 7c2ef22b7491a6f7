// Pools and their gradients.
#include "testing.h"

namespace tinytl {
namespace {

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

void check_average_pool(const Geometry& g, bool include_pad) {
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

template <class Index>
void check_max_pool(const Geometry& g) {
  const std::string name = pool_name("max_pool", g);
  Floats x = random_floats(g.in_height * g.in_width * g.in_channels, -3, -1);
  for (float& v : x) v = std::round(v * 3);  // many equals
  const Floats dy = random_floats(g.out_height * g.out_width * g.out_channels);
  Floats y(dy.size(), NAN), dx(x.size(), NAN);
  std::vector<Index> index(y.size(), 255);
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

}  // namespace

void test_pools() {
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
              for (bool include_pad : {false, true}) check_average_pool(g, include_pad);
              check_max_pool<uint8_t>(g);
            }
          }
        }
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
  check_max_pool<uint16_t>(geometry(20, 18, 5, 5, 17, 18, 1, 1, 4, 3, 4, 3, 1));
}

}  // namespace tinytl
