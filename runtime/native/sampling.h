// Batch order, augmentation and dropout: bit for bit what runtime/sampling.py specifies and computes.
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

// A rectangle of a stored image in pixels, and whether to mirror it left to right.
struct Crop {
  int32_t top, left, height, width;
  bool flip;
};

// Training's crop of a `size` x `size` image; 0 < min_area <= 1.
Crop random_crop(uint64_t seed, uint64_t epoch, uint64_t position, int32_t size, double min_area, bool flip);
// Evaluation's: the centre square of 7/8 of the side; size >= 2, as every stored_size is.
Crop centre_crop(int32_t size);

// Scales the crop of image[size][size][3] to out[resolution][resolution][3] and normalises each channel:
// (pixel - mean) / deviation, pixels being 0 to 255. The crop lies inside the image.
void resample(const uint8_t* image, int32_t size, const Crop& crop, int32_t resolution, const float mean[3],
              const float deviation[3], float* out);

// What dropout multiplies `elements` activations of one sample by: 0, or 1 / (1 - rate) where kept; 0 <= rate < 1.
void dropout_mask(uint64_t seed, uint64_t epoch, uint64_t position, uint64_t layer, size_t elements, double rate,
                  float* out);

}  // namespace tinytl
