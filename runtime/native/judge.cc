#include "judge.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "learning/marks.h"

namespace tinytl {
namespace {

constexpr double kLeastScale = 0.05, kMostScale = 20;  // of logits
constexpr int kHalvings = 30;

}  // namespace

void write_score(json::Writer& out, const char* name, const Score& score) {
  out.begin_array(name);
  for (const double value : {score.loss, score.accuracy, score.class_loss, score.class_accuracy}) out.number(value);
  out.end_array();
}

Score read_score(const json::Value& object, const char* name) {
  const json::Value* value = object.find(name);
  if (!value || value->size() != 4) return {};
  const auto at = [&](size_t i) { return (*value)[i].is_number() ? (*value)[i].number() : NAN; };
  return {at(0), at(1), at(2), at(3)};
}

double loss_of(Execution& execution, const Program& program) {
  const auto loss = program.multi_label ? sigmoid_cross_entropy : softmax_cross_entropy;
  return static_cast<double>(loss(execution.logits(), execution.targets(), nullptr, program.classes, 1));
}

double share_of(int64_t right, int64_t samples, int answers) {
  return static_cast<double>(right) / (static_cast<double>(samples) * answers);
}

Interval interval(double accuracy, int64_t images) {
  const double z = 1.959964, n = static_cast<double>(images), spread = z * z / n;
  const double middle = accuracy + spread / 2, width = z * std::sqrt((accuracy * (1 - accuracy) + spread / 4) / n);
  return {(middle - width) / (1 + spread), (middle + width) / (1 + spread)};
}

Judge::Judge(const Program& program, const Dataset& dataset, std::vector<uint32_t> images)
    : program_(program), dataset_(dataset), samples_(program, dataset), images_(std::move(images)) {}

std::vector<double> Judge::shares() const {
  std::vector<double> counts(static_cast<size_t>(program_.classes)), found;
  const auto own = [&](uint32_t index) { return program_.multi_label ? 0 : static_cast<size_t>(dataset_.label(index)); };
  double classes = 0;
  for (const uint32_t index : images_) ++counts[own(index)];
  for (const double count : counts) classes += count > 0;
  for (const uint32_t index : images_) found.push_back(1 / (counts[own(index)] * classes));
  return found;
}

std::vector<double> Judge::scaled_losses(const std::vector<float>& logits) const {
  const auto classes = static_cast<size_t>(program_.classes);
  const std::vector<double> shares = this->shares();
  std::vector<double> losses(images_.size());
  // Returns the slope of the mean by the scale.
  const auto at = [&](double scale) {
    double slope = 0;
    for (size_t i = 0; i < images_.size(); ++i) {
      const float* own = &logits[i * classes];
      const double most = static_cast<double>(*std::max_element(own, own + classes));
      double sum = 0, mean = 0, own_slope = 0;
      losses[i] = 0;
      for (size_t c = 0; c < classes; ++c) {
        const auto logit = static_cast<double>(own[c]);
        const double power = std::exp(scale * (logit - most));
        sum += power;
        mean += power * logit;
        if (program_.multi_label) {
          const bool has = dataset_.marks(images_[i])[c] != 0;
          losses[i] += softplus(has ? -scale * logit : scale * logit) / static_cast<double>(classes);
          own_slope += logit * (1 / (1 + std::exp(-scale * logit)) - has) / static_cast<double>(classes);
        }
      }
      if (!program_.multi_label) {
        const auto right = static_cast<double>(own[dataset_.label(images_[i])]);
        losses[i] = std::log(sum) + scale * (most - right);
        own_slope = mean / sum - right;
      }
      slope += shares[i] * own_slope;
    }
    return slope;
  };
  double low = std::log(kLeastScale), high = std::log(kMostScale);
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = 0.5 * (low + high);
    (at(std::exp(middle)) > 0 ? high : low) = middle;
  }
  at(std::exp(0.5 * (low + high)));
  return losses;
}

Score Judge::measure(Execution& execution, const std::function<void()>& between, std::vector<Sure>* answers,
                     std::vector<float>* logits) {
  struct OfClass {
    int64_t images = 0, right = 0;
    double losses = 0;
  };
  std::vector<OfClass> classes(program_.multi_label ? 1 : static_cast<size_t>(program_.classes));
  const Crop crop = centre_crop(dataset_.stored(), dataset_.input());
  for (const uint32_t index : images_) {
    samples_.fill(index, crop, 0, execution);
    execution.forward(nullptr);
    OfClass& own = classes[program_.multi_label ? 0 : static_cast<size_t>(samples_.label(index))];
    ++own.images;
    const int right = samples_.right_answers(index, execution.logits());
    own.right += right;
    if (answers) answers->push_back({static_cast<float>(surest(execution.logits(), program_.classes)), right > 0});
    own.losses += loss_of(execution, program_);
    if (logits) logits->insert(logits->end(), execution.logits(), execution.logits() + program_.classes);
    between();
  }
  Score score;
  int64_t right = 0, seen = 0;
  for (const OfClass& own : classes) {
    if (!own.images) continue;
    ++seen;
    right += own.right;
    score.loss += own.losses;
    score.class_loss += own.losses / static_cast<double>(own.images);
    score.class_accuracy += share_of(own.right, own.images, samples_.answers());
  }
  score.loss /= static_cast<double>(images());
  score.accuracy = share_of(right, images(), samples_.answers());
  score.class_loss /= static_cast<double>(seen);
  score.class_accuracy /= static_cast<double>(seen);
  return score;
}

Mirrored Judge::mirrored(Execution& execution, const std::function<void()>& between) {
  Mirrored found;
  for (const uint32_t index : images_) {
    Crop crop = centre_crop(dataset_.stored(), dataset_.input());
    bool right[2];
    for (const bool turned : {false, true}) {
      crop.flip = turned;
      samples_.fill(index, crop, 0, execution);
      execution.forward(nullptr);
      right[turned] = samples_.right_answers(index, execution.logits()) == samples_.answers();
      between();
    }
    found.lost += right[0] && !right[1];
    found.gained += right[1] && !right[0];
    ++found.images;
  }
  return found;
}

}  // namespace tinytl
