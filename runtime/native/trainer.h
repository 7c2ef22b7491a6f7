// The trainer's commands; each says its events and returns when done, or throws Failure.
#pragma once

#include "events.h"
#include "job.h"

namespace tinytl {

void train(const Job& job, Events& events);
// Aligns the classifier with images that have no labels.
void align(const Job& job, Events& events);
void evaluate(const Job& job, Events& events);
void predict(const Job& job, Events& events);
// Loads a program, which checks all of it, and says what it is.
void verify(const Job& job, Events& events);

// Set by SIGINT and SIGTERM: training ends between two steps.
extern volatile int stop_asked;

}  // namespace tinytl
