// What the kernels share about clamps and their gradients: mask bits, and sums of channels.
#pragma once

#include "kernels.h"
#include "parallel.h"

namespace tinytl {

// What happens to finished pixels of a map while they are in the cache: their mask is written, or a gradient is masked
// and summed by channel. Pixels must come in ascending order, since they may share bytes of a mask.
class Finish {
 public:
  explicit Finish(const Epilogue& e) : bounds_(e.bounds), written_mask_(e.mask) {}
  explicit Finish(const GradientEpilogue& e) : mask_(e.mask), db_(e.db) {}
  // Pixels [first, first + count) of a map.
  void operator()(float* map, int64_t first, int64_t count, int32_t channels) const;
  // Their channels [begin, end), of which both are multiples of 8, as their number is.
  void columns(float* map, int64_t first, int64_t count, int32_t channels, int32_t begin, int32_t end) const;

 private:
  friend class SlicedFinish;
  Bounds bounds_;
  uint8_t* written_mask_ = nullptr;
  const uint8_t* mask_ = nullptr;
  float* db_ = nullptr;
};

// The same for pixels that come in slices: each slice has its own sums of db, which are joined at the end.
class SlicedFinish {
 public:
  // Of a map's items, which have `pixels` pixels each, as in Slices.
  SlicedFinish(const Finish& finish, int32_t channels, int64_t pixels, int64_t items, int64_t unit, int min_items = 1);
  ~SlicedFinish();
  SlicedFinish(const SlicedFinish&) = delete;
  const Slices& slices() const { return slices_; }
  // Items [begin, end) of a slice, in ascending order.
  void operator()(int slice, float* map, int64_t begin, int64_t end) const;

 private:
  const Finish& finish_;
  const int32_t channels_;
  const int64_t pixels_;
  const Slices slices_;
};

}  // namespace tinytl
