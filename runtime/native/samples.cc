#include "samples.h"

#include <algorithm>

#include "errors.h"
#include "unknown.h"

namespace tinytl {

int32_t likeliest(const float* logits, int classes) {
  return static_cast<int32_t>(std::max_element(logits, logits + classes) - logits);
}

Samples::Samples(const Program& program, const Dataset& dataset)
    : program_(program), dataset_(dataset) {
  const Size input = dataset.input();
  if (input.height != program.height || input.width != program.width || dataset.channels() != program.channels ||
      static_cast<int64_t>(dataset.image_bytes()) > program.stored_image_bytes)
    fail(kData, "%s is packed for %d x %d px of %d channels, the program takes %d x %d of %d: pack it with --bundle.",
         dataset.path().c_str(), input.height, input.width, dataset.channels(), program.height, program.width,
         program.channels);
  if (dataset.classes().empty()) return;  // unlabelled
  if (dataset.multi_label() != program.multi_label)
    fail(kData, "%s has %s, the program takes %s: pack the images with --bundle.",
         dataset.path().c_str(), dataset.multi_label() ? "multi-label images" : "single-label images",
         program.multi_label ? "multi-label images" : "single-label images");
  const auto classes = static_cast<size_t>(program.classes);
  if (dataset.multi_label() && dataset.classes().size() != classes)
    fail(kData, "%s has %zu classes, the program %zu.", dataset.path().c_str(), dataset.classes().size(), classes);
  for (uint32_t i = 0; i < dataset.count() && !dataset.multi_label(); ++i)
    if (dataset.label(i) >= program.classes)
      fail(kData, "%s has more classes than the program.", dataset.path().c_str());
}

int Samples::right_answers(uint32_t index, const float* logits) const {
  if (!program_.multi_label) return likeliest(logits, program_.classes) == label(index);
  int right = 0;
  for (int i = 0; i < program_.classes; ++i) right += (logits[i] > 0) == has(index, i);
  return right;
}

void Samples::fill(uint32_t index, const Crop& crop, double smoothing, Execution& execution) {
  dataset_.read_image(index, execution.stored_image());
  take(crop, execution);
  float* targets = execution.targets();
  if (dataset_.multi_label()) {
    const auto absent = static_cast<float>(smoothing / 2), present = static_cast<float>(1 - smoothing / 2);
    for (int i = 0; i < program_.classes; ++i) targets[i] = has(index, i) ? present : absent;
    return;
  }
  const int32_t label = dataset_.label(index);
  const float rest = label < 0 ? 0 : static_cast<float>(smoothing / program_.classes);
  std::fill(targets, targets + program_.classes, rest);
  std::fill(targets + program_.classes, targets + program_.outputs, 0.0f);
  if (label >= 0) targets[label] += static_cast<float>(1 - smoothing);
}

void Samples::fill_junk(int number, Execution& execution) {
  draw_junk(number, dataset_.image_bytes(), execution.stored_image());
  take(centre_crop(dataset_.stored(), dataset_.input()), execution);
}

void Samples::take(const Crop& crop, Execution& execution) const {
  resample(execution.stored_image(), dataset_.stored(), crop, dataset_.input(), dataset_.channels(), program_.mean.data(),
           program_.std.data(), execution.image());
}

}  // namespace tinytl
