// The learning rates of a run.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace tinytl {

using Rates = std::map<std::string, double>;  // by parameter group, the highest

// The share of the learning rate at `step` of `total`: a tenth of warm-up, and a cosine, as in runtime/options.py.
double schedule(int64_t step, int64_t total);

}  // namespace tinytl
