// Brings samples of a dataset into an execution: pixels, targets, dropout masks.
#pragma once

#include <cstdint>

#include "dataset.h"
#include "execute.h"
#include "program.h"
#include "sampling.h"

namespace tinytl {

// The class of the highest logit, the first where several are as high.
int32_t likeliest(const float* logits, int classes);

class Samples {
 public:
  // Fails (exit code 4) where the dataset does not fit the program.
  Samples(const Program& program, const Dataset& dataset);

  uint32_t count() const { return dataset_.count(); }
  int32_t label(uint32_t index) const { return dataset_.label(index); }
  // Multi-label: does it have this class?
  bool has(uint32_t index, int of_class) const { return dataset_.multi_label() && dataset_.marks(index)[of_class] != 0; }

  // Of how many answers about an image logits are right: the likeliest class is one answer; multi-label,
  // each class is one.
  int answers() const { return program_.multi_label ? program_.classes : 1; }
  int right_answers(uint32_t index, const float* logits) const;

  // Writes the cropped and normalised image, and soft targets: 1 - smoothing at the label and smoothing / classes
  // everywhere, or multi-label 1 - smoothing / 2 and smoothing / 2; all zero without a label.
  void fill(uint32_t index, const Crop& crop, double smoothing, Execution& execution);
  // The same with an image that is none of the dataset's: see draw_junk. No targets.
  void fill_junk(int number, Execution& execution);

 private:
  void take(const Crop& crop, Execution& execution) const;

  const Program& program_;
  const Dataset& dataset_;
};

}  // namespace tinytl
