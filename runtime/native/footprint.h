// The process besides what the plan counts.
#pragma once

#include <cstdint>
#include <string>

namespace tinytl {

// The kernel's high-water mark of this process in bytes (VmHWM), or 0.
int64_t peak_rss();

// Of now, in bytes (VmRSS), or 0.
int64_t resident();

// How many bytes the process may still take, of `most` in all; not those of code that comes back where it runs again.
int64_t room_in(int64_t most);

// The name of the executable that runs: which of those for different processors.
std::string executable_name();

// Gives back free heap, and the pages of code that ran so far: between two phases, of which each needs other code.
// Those that run again come back when they are touched.
void give_back_unused();

}  // namespace tinytl
