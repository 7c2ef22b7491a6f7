// What the kernels share about activations: their bounds and their mask bits.
#pragma once

#include "kernels.h"

namespace tinytl {

// What an epilogue takes in are clamps.
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

// What happens to finished pixels of a map while they are in the cache: their mask is written, or a gradient is masked
// and summed by channel. Pixels must come in ascending order, since they may share bytes of a mask.
class Finish {
 public:
  explicit Finish(const Epilogue& e) : activation_(e.activation), written_mask_(e.mask) {}
  explicit Finish(const GradientEpilogue& e) : mask_(e.mask), db_(e.db) {}
  // Pixels [first, first + count) of a map.
  void operator()(float* map, int64_t first, int64_t count, int32_t channels) const;

 private:
  Activation activation_ = Activation::kNone;
  uint8_t* written_mask_ = nullptr;
  const uint8_t* mask_ = nullptr;
  float* db_ = nullptr;
};

}  // namespace tinytl
