#include "samples.h"

#include "errors.h"

namespace tinytl {

Samples::Samples(const Program& program, const Dataset& dataset)
    : program_(program), dataset_(dataset), pixels_(dataset.image_bytes()) {
  if (dataset.resolution() != program.resolution)
    fail(kData, "%s is packed for %d px, the program takes %d.", dataset.path().c_str(), dataset.resolution(),
         program.resolution);
  for (const int32_t label : dataset.labels())
    if (label >= program.classes) fail(kData, "%s has more classes than the program.", dataset.path().c_str());
}

void Samples::fill(uint32_t index, const Crop& crop, double smoothing, Execution& execution) {
  dataset_.read_image(index, pixels_.data());
  resample(pixels_.data(), dataset_.size(), crop, program_.resolution, program_.mean.data(), program_.std.data(),
           execution.image());
  const int32_t label = dataset_.label(index);
  float* targets = execution.targets();
  const float rest = label < 0 ? 0 : static_cast<float>(smoothing / program_.classes);
  for (int i = 0; i < program_.classes; ++i) targets[i] = rest;
  if (label >= 0) targets[label] += static_cast<float>(1 - smoothing);
}

}  // namespace tinytl
