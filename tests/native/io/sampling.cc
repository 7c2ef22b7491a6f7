// Sampling: crops, flips and dropout, for a comparison with Python's.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstring>

#include "dataset.h"
#include "sampling.h"
#include "testing.h"

namespace tinytl {
namespace {

// A crop of just the input's size is copied exactly; the evaluation's is one.
void test_exact_copy(Size input, int32_t channels, bool margin) {
  const Size size = stored_size(input, margin);
  const auto at = [channels](const Size& image, int32_t y, int32_t x, int32_t channel) {
    return static_cast<size_t>(channels * (y * image.width + x) + channel);
  };
  std::vector<uint8_t> image(at(size, size.height, 0, 0));
  for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<uint8_t>(draw(4, i));
  Crop crop = centre_crop(size, input);
  CHECK(crop.height == input.height && crop.width == input.width);
  CHECK(crop.height == (margin ? 7 * size.height / 8 : size.height));
  std::vector<float> plain(at(input, input.height, 0, 0)), mirrored(plain.size());
  const float zero[3] = {0, 0, 0}, one[3] = {1, 1, 1};
  resample(image.data(), size, crop, input, channels, zero, one, plain.data());
  crop.flip = true;
  resample(image.data(), size, crop, input, channels, zero, one, mirrored.data());
  for (int32_t y = 0; y < input.height; ++y) {
    for (int32_t x = 0; x < input.width; ++x) {
      for (int32_t channel = 0; channel < channels; ++channel) {
        const float expected = image[at(size, crop.top + y, crop.left + x, channel)];
        CHECK(plain[at(input, y, x, channel)] == expected);
        CHECK(mirrored[at(input, y, input.width - 1 - x, channel)] == expected);
      }
    }
  }
}

void print_crop(const char* name, uint64_t position, const Crop& crop) {
  std::printf("%s %" PRIu64 " %d %d %d %d %d\n", name, position, crop.top, crop.left, crop.height, crop.width,
              static_cast<int>(crop.flip));
}

void print_floats(const char* name, uint64_t position, const std::vector<float>& values) {
  std::printf("%s %" PRIu64 " %08" PRIx32, name, position, crc32(0, values.data(), values.size() * sizeof(float)));
  for (size_t i = 0; i < std::min<size_t>(values.size(), 4); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    std::printf(" %08" PRIx32, bits);
  }
  std::printf("\n");
}

}  // namespace

void test_sampling() {
  const uint64_t published[] = {0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC};
  for (uint64_t i = 0; i < 4; ++i) CHECK(draw(0, i) == published[i]);
  CHECK(draw(1234567, 0) == 6457827717110365317u);
  CHECK(key({0}) == published[0] && mix(0) == 0);

  for (const uint32_t count : {0u, 1u, 2u, 17u, 1000u}) {
    std::vector<uint32_t> order(count), sorted(count);
    epoch_order(3, 1, count, order.data());
    std::sort(order.begin(), order.end());
    for (uint32_t i = 0; i < count; ++i) sorted[i] = i;
    CHECK(order == sorted);
  }
  for (int32_t height = 1; height < 300; ++height) {
    for (uint64_t position = 0; position < 30; ++position) {
      const Size size{height, 1 + static_cast<int32_t>(draw(6, position) % 300)};
      const Crop crop = random_crop(5, 2, position, size, kMinArea, true);
      CHECK(crop.height >= 1 && crop.width >= 1 && crop.top >= 0 && crop.left >= 0);
      CHECK(crop.top + crop.height <= size.height && crop.left + crop.width <= size.width);
    }
  }
  for (const int32_t side : {1, 5, 7, 64, 65, 97, 128}) {
    test_exact_copy({side, (3 * side + 1) / 2}, 3, true);
    test_exact_copy({2 * side, side}, 1, side != 64);
  }
  float mask[1000];
  dropout_mask(1, 2, 3, 4, 8, 125, 0.25, mask);
  CHECK(std::count(mask, mask + 1000, 0.0f) > 180 && std::count(mask, mask + 1000, 0.0f) < 320);
  CHECK(std::count(mask, mask + 1000, static_cast<float>(1 / 0.75)) + std::count(mask, mask + 1000, 0.0f) == 1000);
}

int print_sample(char** arguments) {
  const uint64_t seed = arguments[0][0] == '-' ? static_cast<uint64_t>(std::strtoll(arguments[0], nullptr, 10))
                                               : std::strtoull(arguments[0], nullptr, 10);
  const uint64_t epoch = std::strtoull(arguments[1], nullptr, 10);
  const uint32_t count = static_cast<uint32_t>(std::strtoul(arguments[2], nullptr, 10));
  const Size size{std::atoi(arguments[3]), std::atoi(arguments[4])};
  const Size input{std::atoi(arguments[5]), std::atoi(arguments[6])};
  const int32_t channels = std::atoi(arguments[7]);

  std::vector<uint32_t> order(count);
  epoch_order(seed, epoch, count, order.data());
  std::printf("order");
  for (const uint32_t index : order) std::printf(" %" PRIu32, index);
  std::printf("\n");

  // The image: one draw a byte, of a stream that the comparing test knows too.
  std::vector<uint8_t> image(static_cast<size_t>(channels * size.height * size.width));
  for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<uint8_t>(draw(seed, i) >> 56);
  const float mean[3] = {123.675f, 116.28f, 103.53f}, deviation[3] = {58.395f, 57.12f, 57.375f};
  std::vector<float> pixels(static_cast<size_t>(channels * input.height * input.width));
  const auto print_pixels = [&](uint64_t position, const Crop& crop) {
    resample(image.data(), size, crop, input, channels, mean, deviation, pixels.data());
    print_floats("pixels", position, pixels);
  };
  for (uint64_t position = 0; position < std::min<uint32_t>(count, 40); ++position) {
    const Crop crop = random_crop(seed, epoch, position, size, kMinArea, true);
    print_crop("crop", position, crop);
    if (position < 6) print_pixels(position, crop);
    print_crop("narrow", position, random_crop(seed, epoch, position, size, 0.9, false));
  }
  if (input.height <= size.height && input.width <= size.width) {
    print_crop("centre", 0, centre_crop(size, input));
    print_pixels(count, centre_crop(size, input));
  }
  for (size_t layer = 0; layer < 3; ++layer) {
    const double rates[] = {0.2, 0.5, 0.0};
    const size_t pixels = 1 + 2 * layer, channels = 100 + 7 * layer;
    std::vector<float> mask(pixels * channels);
    dropout_mask(seed, epoch, count, layer, pixels, channels, rates[layer], mask.data());
    print_floats("mask", layer, mask);
  }
  return 0;
}

}  // namespace tinytl
