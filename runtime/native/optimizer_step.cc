#include "optimizer_step.h"

#include <cmath>
#include <cstring>
#include <numbers>

namespace tinytl {

double cosine(int64_t step, int64_t total) {
  return 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(step) / static_cast<double>(total)));
}

void update_parameters(Program& program, const Rates& rates, double share, int64_t step) {
  for (Parameter& parameter : program.parameters) {
    if (!parameter.trains()) continue;
    const auto rate = static_cast<float>(rates.at(parameter.group) * share);
    switch (program.optimizer) {
      case Optimizer::kSgd:
        sgd_update(parameter.value, parameter.gradient, parameter.elements, rate);
        break;
      case Optimizer::kMomentum:
        momentum_update(parameter.value, parameter.gradient, parameter.state[0], parameter.elements, rate, 0.9f);
        break;
      case Optimizer::kAdam:
        adam_update(parameter.value, parameter.gradient, parameter.state[0], parameter.state[1], parameter.elements,
                    rate, step);
        break;
    }
    std::memset(parameter.gradient, 0, static_cast<size_t>(parameter.elements) * sizeof(float));
  }
}

}  // namespace tinytl
