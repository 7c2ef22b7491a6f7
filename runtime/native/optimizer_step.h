// The learning rates of a run, and the update of all trainables behind a batch.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "program.h"

namespace tinytl {

using Rates = std::map<std::string, double>;  // by parameter group

// The share of the learning rate at `step` of `total`: (1 + cos(pi * step / total)) / 2, as in runtime/options.py.
double cosine(int64_t step, int64_t total);

// Applies the gathered gradients at the rates times `share`, and sets the gradients to zero. `step` counts from 1.
void update_parameters(Program& program, const Rates& rates, double share, int64_t step);

}  // namespace tinytl
