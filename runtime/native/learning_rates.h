// The learning rates of a run.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace tinytl {

using Rates = std::map<std::string, double>;  // by parameter group, at the first step

// The share of the learning rate at `step` of `total`: (1 + cos(pi * step / total)) / 2, as in runtime/options.py.
double cosine(int64_t step, int64_t total);

}  // namespace tinytl
