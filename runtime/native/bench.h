// Measures a program on this machine.
#pragma once

#include "events.h"
#include "job.h"

namespace tinytl {

// Runs `steps` training steps on noise; says their times, the time by kind of operator, that of the forward pass alone,
// and what this core can do at most.
void bench(const Job& job, Events& events);

}  // namespace tinytl
