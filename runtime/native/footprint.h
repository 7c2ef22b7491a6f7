// The process besides what the plan counts.
#pragma once

#include <cstdint>
#include <string>

namespace tinytl {

// The kernel's high-water mark of this process in bytes (VmHWM), or 0.
int64_t peak_rss();

// Of now, in bytes (VmRSS), or 0.
int64_t resident();

// The name of the executable that runs: which of those for different processors.
std::string executable_name();

// Gives back free heap, and the pages of code that ran so far: between two phases, of which each needs other code.
// Those that run again come back when they are touched.
void give_back_unused();

}  // namespace tinytl
