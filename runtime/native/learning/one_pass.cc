#include "one_pass.h"

#include <algorithm>

#include "../footprint.h"
#include "head.h"

namespace tinytl {
namespace {

constexpr int64_t kCode = 300'000;  // bytes that come back with the code that runs

}  // namespace

Discriminant fit_in_one_pass(Program& program, const Dataset& dataset, Samples& samples, Execution& execution,
                             const std::vector<uint32_t>& images, const std::string& folder, double smoothing, int64_t most,
                             const std::function<void(uint32_t)>& done) {
  const Head head(program);
  RowFile rows(folder, head.features());
  std::vector<int32_t> labels;
  {
    std::vector<float> features(static_cast<size_t>(head.features()));
    execution.observe([&](size_t number, const Record& op, const uint8_t* arena) {
      head.observe(number, op, arena, features.data());
    });
    const Crop crop = centre_crop(dataset.stored(), dataset.input());
    for (const uint32_t index : images) {
      samples.fill(index, crop, 0, execution);
      execution.forward(nullptr);
      rows.append(features.data());
      labels.push_back(dataset.label(index));
      done(static_cast<uint32_t>(labels.size()));
    }
    execution.observe(nullptr);
  }
  execution.give_back();
  give_back_unused();
  const Terms terms{head.features(), smoothing, std::max<int64_t>(most - resident() - kCode, 0), folder};
  const Discriminant found = fit_discriminant(
      rows, labels, program.classes, terms,
      [&](size_t label, const float* weight, float bias) { head.set(program, label, weight, bias); });
  give_back_unused();
  return found;
}

}  // namespace tinytl
