// How good a program is on labelled images that it does not learn from.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "dataset.h"
#include "execute.h"
#include "json.h"
#include "program.h"
#include "samples.h"
#include "unknown.h"

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

// Of the images that are judged, how many are right but mirrored wrong, or the other way round.
struct Mirrored {
  int64_t lost = 0, gained = 0, images = 0;
  // Are classes each other's mirror image? So many more are lost than chance would have it (McNemar 1947).
  bool harms() const {
    const auto more = static_cast<double>(lost - gained);
    return more > 2 * std::sqrt(static_cast<double>(lost + gained)) && more > 0.1 * static_cast<double>(images);
  }
};

class Judge {
 public:
  // Of the dataset, which outlives it, `images` are looked at.
  Judge(const Program& program, const Dataset& dataset, std::vector<uint32_t> images);

  int64_t images() const { return static_cast<int64_t>(images_.size()); }
  // Of the parameters as they are; `between` is called behind each image.
  // What is not null takes how sure each answer was, and the logits [images][classes].
  Score measure(Execution& execution, const std::function<void()>& between, std::vector<Sure>* answers = nullptr,
                std::vector<float>* logits = nullptr);
  // Of images in a mean over classes; multi-label, over images.
  std::vector<double> shares() const;
  // Of each image, by its logits: some classifiers are as good as others and not as sure.
  std::vector<double> losses_at_best_scale(const std::vector<float>& logits) const;
  Mirrored mirrored(Execution& execution, const std::function<void()>& between);

 private:
  const Program& program_;
  const Dataset& dataset_;
  Samples samples_;
  std::vector<uint32_t> images_;
};

}  // namespace tinytl
