// Brings samples of a dataset into an execution: pixels, targets, dropout masks.
#pragma once

#include <cstdint>
#include <vector>

#include "dataset.h"
#include "execute.h"
#include "program.h"
#include "sampling.h"

namespace tinytl {

class Samples {
 public:
  // Fails (exit code 4) where the dataset does not fit the program.
  Samples(const Program& program, const Dataset& dataset);

  uint32_t count() const { return dataset_.count(); }
  int32_t label(uint32_t index) const { return dataset_.label(index); }

  // Writes the cropped and normalised picture, and soft targets: 1 - smoothing at the label and smoothing / classes
  // everywhere; all zero without a label.
  void fill(uint32_t index, const Crop& crop, double smoothing, Execution& execution);

 private:
  const Program& program_;
  const Dataset& dataset_;
  std::vector<uint8_t> pixels_;
};

}  // namespace tinytl
