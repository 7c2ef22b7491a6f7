// What works on each number by itself: clamps, masks, sums, products.
#include "testing.h"

namespace tinytl {
namespace {

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

}  // namespace

void test_elementwise() {
  test_multiply();
  for (int count : {0, 1, 7, 8, 9, 63, 64, 65, 4095, 4096, 4103, 9001}) {
    const size_t n = size_t(count);
    const Floats x = random_floats(count, -8, 14), other = random_floats(count);
    for (const Bounds& bounds : kBounds) {
      const std::string name = name_of("clamp", {count, int(bounds.low), int(std::min(bounds.high, 9.0f))});
      for (bool in_place : {false, true}) {
        Floats y = in_place ? x : Floats(n, NAN);
        std::vector<uint8_t> mask = dirty_mask(n);
        clamp_map(in_place ? y.data() : x.data(), y.data(), count, bounds, mask.data());
        Doubles wanted(x.begin(), x.end());
        apply(wanted, {}, bounds);
        compare(name, "y", y, wanted, 0);
        check_mask(name, y, bounds, mask);
        Floats gradient = other, dx(n, NAN);
        float* to = in_place ? gradient.data() : dx.data();
        mask_gradient(gradient.data(), to, mask.data(), count);
        Doubles rdx(n);
        for (size_t i = 0; i < n; ++i) rdx[i] = (mask[i / 8] >> (i % 8)) & 1 ? double(other[i]) : 0.0;
        compare(name, "masked", in_place ? gradient : dx, rdx, 0);
      }
    }
    clamp_map(x.data(), Floats(n).data(), count, kBounds[2], nullptr);
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

}  // namespace tinytl
