// Logistic regression of samples that a classifier has logits of already.
#pragma once

#include <cstdint>
#include <vector>

#include "../unknown.h"
#include "linear.h"
#include "marks.h"
#include "products.h"

namespace tinytl {

// What samples are: of one class each, or with marks (multi-label).
struct Truth {
  bool has(int64_t sample, size_t label) const {
    return marks ? marks->has(sample, label) : (*labels)[static_cast<size_t>(sample)] == static_cast<int32_t>(label);
  }

  const std::vector<int32_t>* labels;
  const Marks* marks;
};

// Of the samples chosen. All arrays are [samples][classes]: logits, slopes, and the shares that samples have in what rows of the
// classifier gain, which is what a fit looks for.
class Logistic {
 public:
  using Doubles = std::vector<double>;

  // `room`: bytes of memory that products may be kept in.
  Logistic(const Rows& rows, const std::vector<int64_t>& chosen, const Truth& truth, const Linear& before, int64_t room);

  size_t count() const { return products_.samples(); }
  size_t classes() const { return classes_; }
  const Products& products() const { return products_; }

  // Of each sample, below `count`, neighbours of a class together; multi-label, neighbours.
  std::vector<size_t> folds(size_t count) const;
  size_t classes_present() const;  // multi-label, 1
  // Of samples in a mean: every class that is there has the same; those in the fold `out` have none.
  Doubles shares(const std::vector<size_t>& folds = {}, size_t out = SIZE_MAX) const;

  // The least mean loss with a pull, from `found` on, or one that is above it by no more than `close`. Returns the logits.
  Doubles fit(const Doubles& shares, double pull, double close, Doubles& found) const;
  Doubles losses(const Doubles& logits) const;  // cross-entropies [samples]; multi-label, means over labels
  // The share of right answers; these themselves, where there is one a sample.
  double accuracy(const Doubles& logits, const Doubles& shares, std::vector<Sure>& answers) const;

 private:
  size_t label(size_t sample) const;
  // Of a sample's loss by its logits; its curvature along a direction of logits, where there is one.
  double slope(size_t sample, const double* logits, const double* along, double* slopes) const;
  void all_slopes(const Doubles& added, const Doubles& shares, Doubles& out) const;
  double best_step(const Doubles& added, const Doubles& along, const Doubles& shares, double slope, double curve) const;

  const bool multi_label_;
  const size_t classes_;
  const double parts_;  // labels that a loss is the mean of
  Doubles before_;      // logits
  std::vector<uint8_t> has_;
  const Products products_;
};

}  // namespace tinytl
