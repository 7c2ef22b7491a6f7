// Samples of known classes: their classes' means, and what is left of them without.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../kernels/triangle.h"
#include "rows.h"

namespace tinytl {

class LabelledRows {
 public:
  static constexpr int64_t kBatch = 64;  // samples in memory at a time

  LabelledRows(const Rows& rows, const std::vector<int32_t>& labels, size_t classes);

  int64_t count() const { return rows_.count(); }
  int64_t width() const { return rows_.width(); }
  size_t classes() const { return counts_.size(); }
  size_t label(int64_t sample) const { return static_cast<size_t>(labels_[static_cast<size_t>(sample)]); }
  int64_t of_class(size_t label) const { return counts_[label]; }
  bool has_pairs() const { return has_pairs_; }  // is there a class with two samples?
  double scatter() const { return scatter_; }    // the sum of all squares of residuals
  const float* centre() const { return centre_.data(); }  // the mean of the classes' means
  const float* mean(size_t label) const { return &means_[label * centre_.size()]; }  // less the centre

  void read(int64_t first, int64_t count, float* batch) const { rows_.read(first, count, batch); }
  // Leaves of samples what their class's mean does not tell; without pairs, what the centre does not.
  void take_means_off(int64_t first, int64_t count, float* batch) const;

  // Makes `factor` that of (1 - shrinkage) S + shrinkage each I, where S is the residuals' covariance.
  void factor_shrunk(double shrinkage, double each, Triangle* factor) const;

  // Calls visit(first, count, rows) for all samples.
  template <typename Visit>
  void each_batch(Visit visit) const {
    std::vector<float> batch(static_cast<size_t>(std::min(kBatch, count()) * width()));
    for (int64_t first = 0; first < count(); first += kBatch) {
      const int64_t size = std::min(kBatch, count() - first);
      read(first, size, batch.data());
      visit(first, size, batch.data());
    }
  }

 private:
  const Rows& rows_;
  const std::vector<int32_t>& labels_;
  std::vector<int64_t> counts_;
  std::vector<float> means_, centre_;
  double scatter_ = 0;
  bool has_pairs_ = false;
};

double dot(const float* a, const float* b, int64_t count);

}  // namespace tinytl
