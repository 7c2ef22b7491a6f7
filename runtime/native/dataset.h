// What the trainer learns from: dataset.safetensors, one image at a time; the counterpart of runtime/dataset.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "safetensors.h"

namespace tinytl {

constexpr int32_t kUnlabelled = -1;

// Side in pixels of the square that is kept of a photograph: ceil(resolution / 0.875), in integers.
constexpr int32_t stored_size(int32_t resolution) { return (8 * resolution + 6) / 7; }

// An open dataset: labels in memory, images on the medium until one is asked for; never mapped. The file stays open,
// so that replacing it does not mix two datasets. All faults are Failures of kDamaged.
class Dataset {
 public:
  static Dataset open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  uint32_t count() const { return count_; }  // at least 1
  int32_t resolution() const { return resolution_; }
  int32_t size() const { return stored_size(resolution_); }  // side of a stored image
  size_t image_bytes() const { return image_bytes_; }        // size * size * 3
  const std::vector<std::string>& classes() const { return classes_; }
  bool several() const { return several_; }  // labels a photograph, told by marks(); otherwise one, told by label()
  int32_t label(uint32_t index) const { return labels_[index]; }  // 0 .. classes - 1, or kUnlabelled without classes
  const uint8_t* marks(uint32_t index) const { return marks_.data() + index * classes_.size(); }  // [classes], 0 or 1

  // Reads one image, U8 [size, size, 3], RGB, to `out`; `index` < count().
  void read_image(uint32_t index, uint8_t* out) const;

 private:
  TensorFile file_;
  const TensorEntry* images_ = nullptr;  // stays where it is when the dataset is moved: it is on the heap
  uint32_t count_ = 0;
  bool several_ = false;
  std::vector<int32_t> labels_;
  std::vector<uint8_t> marks_;
  std::vector<std::string> classes_;
  int32_t resolution_ = 0;
  size_t image_bytes_ = 0;
};

}  // namespace tinytl
