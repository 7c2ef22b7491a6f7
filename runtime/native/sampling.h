// Batch order, augmentation and dropout: bit for bit what runtime/images/sampling.py specifies and computes.
//
// Everything random is a pure function of (seed, epoch, position). A seed below zero is cast to uint64_t. Nothing
// here allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace tinytl {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
constexpr double kMinArea = 0.22;

uint64_t mix(uint64_t z);
uint64_t key(std::initializer_list<uint64_t> words);
uint64_t draw(uint64_t k, uint64_t i);
double uniform(uint64_t k, uint64_t i);  // in [0, 1), a multiple of 2^-24

// Writes the samples 0 .. count - 1 to order[count], as `epoch` visits them.
void epoch_order(uint64_t seed, uint64_t epoch, uint32_t count, uint32_t* order);

// Of an image, in pixels.
struct Size {
  int32_t height, width;
};

// A rectangle of a stored image in pixels, and whether to mirror it left to right.
struct Crop {
  int32_t top, left, height, width;
  bool flip;
};

// Training's crop of an image; 0 < min_area <= 1.
Crop random_crop(uint64_t seed, uint64_t epoch, uint64_t position, Size image, double min_area, bool flip);
// Evaluation's: the centre of a stored image, of the input's size, which is no larger.
Crop centre_crop(Size stored, Size input);

// Scales the crop of image[stored.height][stored.width][channels] to out[input.height][input.width][channels] and
// normalises each channel: (pixel - mean) / deviation, pixels being 0 to 255. The crop lies inside the image.
void resample(const uint8_t* image, Size stored, const Crop& crop, Size input, int32_t channels, const float* mean,
              const float* deviation, float* out);

// What dropout multiplies the activations [pixels, channels] of one sample by: 0, or 1 / (1 - rate) where kept;
// 0 <= rate < 1. The mask's shape is [channels, pixels].
void dropout_mask(uint64_t seed, uint64_t epoch, uint64_t position, uint64_t layer, size_t pixels, size_t channels,
                  double rate, float* out);

}  // namespace tinytl
