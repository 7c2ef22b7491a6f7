// The classifier of a program, fitted to images in one forward pass over them.
#pragma once

#include <functional>
#include <string>

#include "../dataset.h"
#include "../execute.h"
#include "../program.h"
#include "../samples.h"
#include "../store.h"
#include "discriminant.h"

namespace tinytl {

struct OnePass {
  int64_t features = 0;
  double shrinkage = 0;
  double loss = 0, accuracy = 0;  // of images that are left out in turn, each class being as important
  int64_t left_out = 0;           // how many images that is
  EpochSums sums;                 // of all images, with the classifier found
};

// Gives the program's classifier its best weights for frozen features. What it needs beside a step's forward pass lies in
// `folder`, or in memory when nothing else does. `done` is called behind every image.
// `smoothing`: of the labels.
OnePass fit_in_one_pass(Program& program, const Dataset& dataset, Samples& samples, Execution& execution,
                        const std::string& folder, double smoothing,
                        const std::function<void(uint32_t)>& done);

}  // namespace tinytl
