// What the kernels share about activations: their bounds and their mask bits.
#pragma once

#include "kernels.h"

namespace tinytl {

// The activations are all clamps.
struct Bounds {
  float low = -__builtin_inff();
  float high = __builtin_inff();
};

inline Bounds bounds_of(Activation activation) {
  Bounds bounds;
  if (activation != Activation::kNone) bounds.low = 0;
  if (activation == Activation::kRelu6) bounds.high = 6;
  return bounds;
}

// Writes the mask bits of elements [first, first + count), whose activated values lie at y; a clamped value is
// strictly inside the range exactly when the value before was. Ranges must be written in ascending order: the bits of a
// byte above the last element are zeroed, those below the first are kept.
void store_mask(const float* y, int64_t first, int64_t count, Activation activation, uint8_t* mask);

}  // namespace tinytl
