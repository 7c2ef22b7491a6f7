#include "head.h"

#include "../errors.h"
#include "../layout.h"

namespace tinytl {

Head::Head(const Program& program) {
  for (const Parameter& parameter : program.parameters) {
    if (parameter.group != "classifier") continue;
    (parameter.layout == Layout::kVector ? bias_ : weight_) = &parameter;
  }
  if (weight_) features_ = weight_->elements / weight_->shape[0];
  if (weight_ && weight_->layout == Layout::kConv) taps_ = weight_->shape[2] * weight_->shape[3];
  const auto is_weight = [&](int32_t number) {
    if (number < 0 || !weight_) return false;
    const Part& part = program.parts[static_cast<size_t>(number)];
    return &program.parameters[static_cast<size_t>(part.parameter)] == weight_;
  };
  int64_t covered = 0;
  for (int32_t i = 0; i < program.forward_ops; ++i) {
    const Record& op = program.ops[static_cast<size_t>(i)];
    if (!is_weight(op.weight) || op.x < 0) continue;
    const Part& part = program.parts[static_cast<size_t>(op.weight)];
    if (part.axis == 0 && part.first != 0) continue;  // in chunks of outputs all read the same
    const Reader reader = part.axis == 1 ? Reader{static_cast<size_t>(i), part.first, part.count}
                                         : Reader{static_cast<size_t>(i), 0, features_ / taps_};
    const Geometry& g = op.geometry;
    if (g.in_height * g.in_width != 1 || g.in_channels != reader.channels * taps_) break;
    readers_.push_back(reader);
    covered += reader.channels * taps_;
  }
  if (!weight_ || !bias_ || weight_->groups != 1 || covered != features_ || weight_->shape[0] != program.outputs ||
      bias_->elements != program.outputs)
    fail(kDamaged, "The program does not end in a linear layer with a bias: no classifier to fit in one pass.");
}

void Head::observe(size_t number, const Record& op, const uint8_t* arena, float* features) const {
  for (const Reader& reader : readers_) {
    if (reader.number != number) continue;
    const auto* x = reinterpret_cast<const float*>(arena + op.x);  // [taps][channels]
    float* to = features + reader.first * taps_;                  // [channels][taps]
    for (int64_t tap = 0; tap < taps_; ++tap)
      for (int64_t c = 0; c < reader.channels; ++c) to[c * taps_ + tap] = x[tap * reader.channels + c];
  }
}

Linear Head::rows(const Program& program) const {
  const auto classes = static_cast<size_t>(program.classes);
  Linear linear{features_, std::vector<float>(classes * static_cast<size_t>(features_)), std::vector<float>(classes)};
  for (size_t c = 0; c < classes; ++c) {
    get_row(program, *weight_, static_cast<int64_t>(c), linear.row(c));
    get_row(program, *bias_, static_cast<int64_t>(c), &linear.bias[c]);
  }
  return linear;
}

void Head::set(Program& program, size_t label, const float* weight, float bias) const {
  set_row(program, *weight_, static_cast<int64_t>(label), weight);
  set_bias(program, label, bias);
}

void Head::set_bias(Program& program, size_t label, float bias) const {
  set_row(program, *bias_, static_cast<int64_t>(label), &bias);
}

}  // namespace tinytl
