// How a classifier would judge each sample if it had been fitted without it.
#pragma once

#include <cstdint>
#include <vector>

#include "../unknown.h"
#include "labelled_rows.h"

namespace tinytl {

// Scores of samples left out, [sample][class], which times a scale are logits. Every class has an equal share of
// whatever is a mean.
class LeftOut {
 public:
  // Of samples whose class has others, or of all where none has; not of all of them, where these are more than
  // `most` scores.
  LeftOut(const LabelledRows& samples, int64_t most);

  const std::vector<int64_t>& samples() const { return chosen_; }
  float* scores(size_t number) { return &scores_[number * present_.size()]; }

  double loss(double scale, double smoothing) const { return at(scale, smoothing).loss; }  // cross-entropy
  double accuracy() const;
  // How sure each answer is, at a scale.
  std::vector<Sure> answers(double scale) const;
  // The scale of the lowest loss.
  double best_scale(double smoothing) const;
  // The scale by which the right class has a probability of `sure`.
  double scale_of(double sure) const;
  // Where all are right, no scale would be large enough; as if one more were wrong.
  double least_smoothing() const { return 1 / static_cast<double>(chosen_.size() + 1); }

 private:
  struct Mean {
    double loss = 0, slope = 0, sure = 0;  // slope: of the loss by the scale
  };
  Mean at(double scale, double smoothing) const;

  std::vector<bool> present_;
  double classes_present_ = 0;
  std::vector<int64_t> chosen_;
  std::vector<size_t> labels_;
  std::vector<double> shares_;
  std::vector<float> scores_;
};

}  // namespace tinytl
