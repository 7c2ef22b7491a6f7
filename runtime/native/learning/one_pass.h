// The classifier of a program, fitted to images in one forward pass over them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "../dataset.h"
#include "../execute.h"
#include "../job.h"
#include "../program.h"
#include "../samples.h"
#include "features.h"
#include "linear.h"
#include "linear_fit.h"

namespace tinytl {

// What a fit begins with: how many of the first classes the classifier knows already (0: none, all rows are new), or the
// rows that it is pulled towards as they are in the program, biases behind the weights (kept in `folder`); and what stands in
// for images that are not at hand. Of a classifier that is pulled those that are numbered are of the place where it comes
// from, and have the share `keep`.
struct FirstPass {
  static FirstPass of(const Job& job, const Program& program, const std::string& folder);

  int known = 0;
  std::shared_ptr<const Rows> towards;
  StandIns stand_ins;
  double keep = 0;
};

struct Fitted {
  LinearFit fit;
  int64_t samples = 0, stood_in = 0;  // in all, and of them features without an image
  Seen seen;                          // of all samples, by the classifier that came out
  int64_t known = 0;                  // samples of known classes; how many were right before, and are now
  int64_t known_right_before = 0, known_right = 0;
  double accuracy_before = NAN;  // of all samples, where the classifier knew them all
};

// Gives the program's classifier its best weights for frozen features of those `images` of the dataset.
// `smoothing`: of the labels; `folder`: for what need not be in memory; `most`: bytes of the whole process. `done` is called
// behind every image.
Fitted fit_in_one_pass(Program& program, const Dataset& dataset, Samples& samples, Execution& execution,
                       const std::vector<uint32_t>& images, const FirstPass& begin, const std::string& folder, double smoothing,
                       int64_t most, const std::function<void(uint32_t)>& done);

// Writes the features of `images`, as the classifier reads them now, to a file; behind them those that stand in.
void keep_features(const Program& program, const Dataset& dataset, Samples& samples, Execution& execution,
                   const std::vector<uint32_t>& images, const StandIns& stand_ins, const std::string& folder,
                   const std::string& path, const std::vector<std::string>& classes, const std::function<void(uint32_t)>& done);

}  // namespace tinytl
