// The classifier of a program, fitted to images in one forward pass over them.
#pragma once

#include <functional>
#include <string>

#include "../dataset.h"
#include "../execute.h"
#include "../program.h"
#include "../samples.h"
#include "discriminant.h"

namespace tinytl {

// Gives the program's classifier its best weights for frozen features of those `images` of the dataset.
// `smoothing`: of the labels; `folder`: for what need not be in memory; `most`: bytes of the whole process. `done` is called
// behind every image.
Discriminant fit_in_one_pass(Program& program, const Dataset& dataset, Samples& samples, Execution& execution,
                             const std::vector<uint32_t>& images, const std::string& folder, double smoothing, int64_t most,
                             const std::function<void(uint32_t)>& done);

}  // namespace tinytl
