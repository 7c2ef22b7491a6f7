// Features of images that are not at hand: what stands for them where a classifier is fitted. The counterpart of
// runtime/files/features.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../safetensors.h"
#include "rows.h"

namespace tinytl {

class KeptFeatures {
 public:
  // Fails (exit code 3) where the file is damaged, or not of so many features and of these classes at most.
  static KeptFeatures open(const std::string& path, int64_t features, int classes);

  int64_t count() const { return static_cast<int64_t>(labels_.size()); }
  int32_t label(int64_t index) const { return labels_[static_cast<size_t>(index)]; }
  // Reads one image's to features[features].
  void read(int64_t index, float* features) const;

 private:
  explicit KeptFeatures(TensorFile file) : file_(std::move(file)) {}

  TensorFile file_;
  std::vector<int32_t> labels_;
  int64_t length_ = 0;
};

// Writes rows of `length` numbers as features in bfloat16, atomically.
void write_features(const std::string& path, const Rows& rows, int64_t length, const std::vector<int32_t>& labels,
                    const std::vector<std::string>& classes);

}  // namespace tinytl
