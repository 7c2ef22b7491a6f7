// Maps of other sizes: bilinear upsampling, and linear maps of rows and columns.
#include "testing.h"

namespace tinytl {
namespace {

// A linear map and its transpose must agree: <dy, y> = <dx, x>; the forward map is checked against the reference.
void check_transpose(const std::string& name, const Floats& x, const Floats& y, const Floats& dy, const Floats& dx) {
  ++g_cases;
  double left = 0, right = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) left += double(y[i]) * double(dy[i]), size += std::abs(double(dy[i]));
  for (size_t i = 0; i < x.size(); ++i) right += double(x[i]) * double(dx[i]);
  if (!(std::abs(left - right) <= 1e-5 * (size + 1))) fail(name, "<dx, x>", 0, right, left);
}

Geometry resized(int height, int width, int new_height, int new_width, int channels) {
  return {height, width, channels, new_height, new_width, channels, 1, 1, 1, 1, 0, 0, 1, 1, 1};
}

void check_upsampling(int channels, int size) {
  for (int out : {1, 3, 8, 14, 15}) {
    const Geometry g = resized(size, size + 1, out, out + 2, channels);
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
}

// Bands at random: for each of `results` the first of `taps` inputs, and their weights, of which some are 0.
Floats random_bands(int results, int taps, int inputs) {
  Floats values;
  for (int result = 0; result < results; ++result) {
    values.push_back(float(g_random() % unsigned(inputs - taps + 1)));
    for (float weight : random_floats(taps)) values.push_back(g_random() % 4 ? weight : 0.0f);
  }
  return values;
}

void check_resampling(int height, int width, int new_height, int new_width, int channels, int taps) {
  const std::string name = name_of("resample", {height, width, new_height, new_width, channels, taps});
  const Geometry g = resized(height, width, new_height, new_width, channels);
  const int row_taps = std::min(taps, height), column_taps = std::min(taps + 1, width);
  const Floats down = random_bands(new_height, row_taps, height), across = random_bands(new_width, column_taps, width);
  const Bands rows{down.data(), row_taps}, columns{across.data(), column_taps};
  const Floats x = random_floats(height * width * channels), dy = random_floats(new_height * new_width * channels);
  Floats y(dy.size(), NAN), dx(x.size(), NAN);
  Doubles wanted(y.size());
  for (size_t i = 0; i < y.size(); ++i) {
    const int c = int(i) % channels, column = int(i) / channels % new_width, row = int(i) / channels / new_width;
    const float *a = &down[size_t(row * (1 + row_taps))], *b = &across[size_t(column * (1 + column_taps))];
    for (int j = 0; j < row_taps; ++j) {
      for (int k = 0; k < column_taps; ++k) {
        const int pixel = (int(a[0]) + j) * width + int(b[0]) + k;
        wanted[i] += double(a[1 + j]) * double(b[1 + k]) * double(x[size_t(pixel * channels + c)]);
      }
    }
  }
  resample_forward(x.data(), y.data(), g, rows, columns);
  resample_dx(dy.data(), dx.data(), g, rows, columns);
  compare(name, "y", y, wanted, taps * taps);
  check_transpose(name, x, y, dy, dx);
}

}  // namespace

void test_resampling() {
  for (int channels : {1, 5, 16, 19}) {
    for (int size : {1, 4, 7, 8}) check_upsampling(channels, size);
    for (int taps : {1, 2, 5}) {
      check_resampling(7, 9, 7, 9, channels, taps);
      check_resampling(3, 4, 10, 2, channels, taps);
      check_resampling(1, 12, 1, 1, channels, taps);
    }
  }
}

}  // namespace tinytl
