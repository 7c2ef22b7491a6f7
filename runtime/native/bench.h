// Measures a program on this machine.
#pragma once

#include "events.h"
#include "job.h"

namespace tinytl {

// Runs `steps` training steps of `batch_size` samples of noise, and as many evaluations of one; says their times, the
// time of a sample by kind of operator, and what this core can do at most. tinytl_edge/benchmark_worker.py does the same
// steps in other runtimes.
void bench(const Job& job, Events& events);

}  // namespace tinytl
