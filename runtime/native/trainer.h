// The trainer's commands; each says its events and returns when done, or throws Failure.
#pragma once

#include "events.h"
#include "job.h"

namespace tinytl {

void train(const Job& job, Events& events);
void evaluate(const Job& job, Events& events);
void predict(const Job& job, Events& events);

// Set by SIGINT and SIGTERM: training ends between two steps.
extern volatile int stop_asked;

// The kernel's VmHWM of this process in bytes, or 0.
int64_t peak_rss();

}  // namespace tinytl
