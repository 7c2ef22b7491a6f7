// What a step computes, for tests: see tests/test_real_gradients.py.
#pragma once

#include "events.h"
#include "job.h"

namespace tinytl {

// Runs one step on one sample and writes what it made, by the number N of the operator that made it, as a safetensors
// file: mask/N (bits), gradient/N (of the part that operator N updates), and loss.
void trace(const Job& job, Events& events);

}  // namespace tinytl
