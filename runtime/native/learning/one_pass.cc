#include "one_pass.h"

#include <algorithm>

#include "../footprint.h"
#include "head.h"

namespace tinytl {

OnePass fit_in_one_pass(Program& program, const Dataset& dataset, Samples& samples, Execution& execution,
                        const std::string& folder, double smoothing,
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
    for (uint32_t i = 0; i < dataset.count(); ++i) {
      samples.fill(i, crop, 0, execution);
      execution.forward(nullptr);
      rows.append(features.data());
      labels.push_back(dataset.label(i));
      done(i + 1);
    }
    execution.observe(nullptr);
  }
  execution.give_back();
  give_back_unused();
  OnePass result;
  {
    const Discriminant found = fit_discriminant(rows, labels, program.classes, head.features(), smoothing);
    head.set(program, found.weight.data(), rows.width(), found.bias.data());
    result.features = head.features();
    result.shrinkage = found.shrinkage;
    result.loss = found.loss;
    result.accuracy = found.accuracy;
    result.left_out = found.left_out;
    std::vector<float> row(static_cast<size_t>(rows.width())), logits(static_cast<size_t>(program.classes)), targets(logits.size());
    for (int64_t i = 0; i < rows.count(); ++i) {
      rows.read(i, 1, row.data());
      for (size_t c = 0; c < logits.size(); ++c) {
        const float* weight = &found.weight[c * row.size()];
        float sum = found.bias[c];
        for (size_t k = 0; k < row.size(); ++k) sum += weight[k] * row[k];
        logits[c] = sum;
      }
      std::fill(targets.begin(), targets.end(), 0.0f);
      targets[static_cast<size_t>(labels[static_cast<size_t>(i)])] = 1;
      result.sums.losses += static_cast<double>(
          softmax_cross_entropy(logits.data(), targets.data(), nullptr, program.classes, 1));
      result.sums.correct += samples.right_answers(static_cast<uint32_t>(i), logits.data());
      result.sums.add_range(logits.data(), program.classes);
      ++result.sums.seen;
    }
  }
  give_back_unused();
  return result;
}

}  // namespace tinytl
