// What the trainer learns from: dataset.safetensors, one image at a time; the counterpart of runtime/images/dataset.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "safetensors.h"
#include "sampling.h"

namespace tinytl {

constexpr int32_t kUnlabelled = -1;

// What is stored of an image for an input of this size: with a margin, ceil(8 / 7) of each side; or just as much.
constexpr Size stored_size(Size input, bool margin) {
  return margin ? Size{(8 * input.height + 6) / 7, (8 * input.width + 6) / 7} : input;
}

// An open dataset: labels in memory, images on the medium until one is asked for; never mapped. The file stays open,
// so that replacing it does not mix two datasets. All faults are Failures of kDamaged.
class Dataset {
 public:
  static Dataset open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  uint32_t count() const { return count_; }  // at least 1
  std::vector<uint32_t> all() const;         // the numbers of all images
  Size input() const { return input_; }    // what the images are packed for
  Size stored() const { return stored_; }  // of an image in the file
  int32_t channels() const { return channels_; }       // 3 (RGB) or 1 (grey)
  size_t image_bytes() const { return image_bytes_; }  // of a stored one
  const std::vector<std::string>& classes() const { return classes_; }
  bool multi_label() const { return multi_label_; }  // told by marks(); otherwise by label()
  int32_t label(uint32_t index) const { return labels_[index]; }  // 0 .. classes - 1, or kUnlabelled without classes
  const uint8_t* marks(uint32_t index) const { return marks_.data() + index * classes_.size(); }  // [classes], 0 or 1

  // Reads one image, U8 [stored height, stored width, channels], to `out`; `index` < count().
  void read_image(uint32_t index, uint8_t* out) const;

 private:
  TensorFile file_;
  const TensorEntry* images_ = nullptr;  // stays where it is when the dataset is moved: it is on the heap
  uint32_t count_ = 0;
  bool multi_label_ = false;
  std::vector<int32_t> labels_;
  std::vector<uint8_t> marks_;
  std::vector<std::string> classes_;
  Size input_{}, stored_{};
  int32_t channels_ = 0;
  size_t image_bytes_ = 0;
};

}  // namespace tinytl
