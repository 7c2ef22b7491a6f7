// Channels that move: shuffles, and runs of channels from one map to another.
#include "testing.h"

namespace tinytl {
namespace {

void check_shuffle(int pixels, int width, int groups) {
  const int channels = width * groups;
  const Floats x = random_floats(pixels * channels);
  Floats y(x.size(), NAN), back(x.size(), NAN);
  Doubles wanted(x.size());
  for (int p = 0; p < pixels; ++p) {
    for (int group = 0; group < groups; ++group) {
      for (int i = 0; i < width; ++i) {
        wanted[size_t(p * channels + i * groups + group)] = double(x[size_t(p * channels + group * width + i)]);
      }
    }
  }
  const std::string name = name_of("shuffle", {pixels, width, groups});
  shuffle(x.data(), y.data(), pixels, channels, groups);
  compare(name, "y", y, wanted, 0);
  shuffle(y.data(), back.data(), pixels, channels, width);  // its inverse
  check_same(name, "back", back, x);
}

void check_copy(int pixels, int x_channels, int y_channels, int count, bool accumulate) {
  const Floats x = random_floats(pixels * x_channels), before = random_floats(pixels * y_channels);
  const int from = x_channels - count, to = (y_channels - count) / 2;
  Floats y = before;
  Doubles wanted(before.begin(), before.end());
  for (int p = 0; p < pixels; ++p) {
    for (int c = 0; c < count; ++c) {
      double& at = wanted[size_t(p * y_channels + to + c)];
      at = double(x[size_t(p * x_channels + from + c)]) + (accumulate ? at : 0.0);
    }
  }
  copy_channels(x.data() + from, x_channels, y.data() + to, y_channels, pixels, count, accumulate);
  compare(name_of("copy_channels", {pixels, x_channels, y_channels, count, accumulate}), "y", y, wanted, 1);
}

}  // namespace

void test_channels() {
  for (int pixels : {1, 5, 400}) {
    for (int width : {1, 4, 19}) {
      for (int groups : {1, 2, 3, 8}) check_shuffle(pixels, width, groups);
    }
    for (int count : {1, 7, 24}) {
      for (bool accumulate : {false, true}) {
        check_copy(pixels, count, count, count, accumulate);
        check_copy(pixels, 30, 41, count, accumulate);
        check_copy(pixels, 41, 30, count, accumulate);
      }
    }
  }
}

}  // namespace tinytl
