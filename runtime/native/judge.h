// How good a program is on labelled images that it does not learn from.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dataset.h"
#include "execute.h"
#include "json.h"
#include "program.h"
#include "samples.h"

namespace tinytl {

// Means over images, and over classes (of a class's images), which multi-label are the same. Over classes only those
// count of which there are images.
struct Score {
  double loss = 0, accuracy = 0;
  double class_loss = 0, class_accuracy = 0;
};

// As a member of an object: [loss, accuracy, class_loss, class_accuracy].
void write_score(json::Writer& out, const char* name, const Score& score);
Score read_score(const json::Value& object, const char* name);

// The loss of a sample behind its forward pass.
double loss_of(Execution& execution, const Program& program);
// Of so many samples the share of right answers.
double share_of(int64_t right, int64_t samples, int answers);

// Where the accuracy on all images is likely (95 %) to lie: Wilson's score interval (1927).
struct Interval {
  double low, high;
};
Interval interval(double accuracy, int64_t images);

class Judge {
 public:
  // Of the dataset, which outlives it, `images` are looked at.
  Judge(const Program& program, const Dataset& dataset, std::vector<uint32_t> images);

  int64_t images() const { return static_cast<int64_t>(images_.size()); }
  // Of the parameters as they are; `between` is called behind each image.
  Score measure(Execution& execution, const std::function<void()>& between);

 private:
  const Program& program_;
  const Dataset& dataset_;
  Samples samples_;
  std::vector<uint32_t> images_;
};

}  // namespace tinytl
