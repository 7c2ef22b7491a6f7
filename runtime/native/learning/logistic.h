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

// Of samples, of which the first are of this place, and others of the place that the classifier comes from. All arrays are [samples][classes]: logits, slopes, and the shares that samples have in what rows of the
// classifier gain, which is what a fit looks for.
class Logistic {
 public:
  using Doubles = std::vector<double>;

  struct Places {
    std::vector<int64_t> own, others;  // numbers of rows
    double keep;                       // the share that others have in a mean
  };
  // `room`: bytes of memory that products may be kept in.
  Logistic(const Rows& rows, const Places& places, const Truth& truth, const Linear& before, int64_t room);

  size_t count() const { return products_.samples(); }
  size_t own() const { return own_; }
  size_t classes() const { return classes_; }
  const Products& products() const { return products_; }

  // Of each sample, below `count`: of a place neighbours of a class together, which may be of one scene.
  std::vector<size_t> folds(size_t count) const;
  size_t classes_present() const;  // here; multi-label, 1
  // Of samples in a mean: of a place every class that is there has the same; those in the fold `out` have none.
  Doubles shares(const std::vector<size_t>& folds = {}, size_t out = SIZE_MAX) const;

  // The least mean loss with a pull, from `found` on, or one that is above it by no more than `close`. Returns the logits.
  Doubles fit(const Doubles& shares, double pull, double close, Doubles& found) const;
  Doubles losses(const Doubles& logits) const;  // cross-entropies [samples]; multi-label, means over labels
  // The share of a sample's answers that are right, 0 or 1 where it has one.
  double right(size_t sample, const Doubles& logits) const;
  double surest(size_t sample, const Doubles& logits) const;  // the probability of the likeliest class
  const Doubles& before() const { return before_; }

 private:
  // Calls visit(first, end, share) for each place.
  template <typename Visit>
  void each_place(const Visit& visit) const {
    visit(size_t{0}, own_, own_ < count() ? 1 - keep_ : 1.0);
    visit(own_, count(), keep_);
  }
  size_t label(size_t sample) const;
  const std::vector<bool>& shown(size_t sample) const { return sample < own_ ? shown_here_ : shown_there_; }
  double log_sum(const double* logits, const std::vector<bool>& of) const;
  // Of a sample's loss by its logits; its curvature along a direction of logits, where there is one.
  double slope(size_t sample, const double* logits, const double* along, double* slopes) const;
  void all_slopes(const Doubles& added, const Doubles& shares, Doubles& out) const;
  double best_step(const Doubles& added, const Doubles& along, const Doubles& shares, double slope, double curve) const;

  const bool multi_label_;
  const size_t classes_, own_;
  const double keep_;
  const double parts_;  // labels that a loss is the mean of
  Doubles before_;      // logits
  std::vector<uint8_t> has_;
  std::vector<bool> shown_here_, shown_there_;  // classes of which there are samples; multi-label, all
  const Products products_;
};

}  // namespace tinytl
