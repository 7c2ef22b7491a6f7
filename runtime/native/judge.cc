#include "judge.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "scaled.h"

namespace tinytl {

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

std::vector<double> Judge::losses_at_best_scale(const std::vector<float>& logits) const {
  std::vector<uint8_t> has(logits.size());
  const auto classes = static_cast<size_t>(program_.classes);
  for (size_t i = 0; i < images_.size(); ++i) {
    uint8_t* own = &has[i * classes];
    if (program_.multi_label)
      std::copy_n(dataset_.marks(images_[i]), classes, own);
    else
      own[dataset_.label(images_[i])] = 1;
  }
  return scaled_losses(logits, has, shares(), program_.multi_label);
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
