// The course of a training: stages, each over images of its own, none of which goes on from the one before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "job.h"

namespace tinytl {

struct Stage {
  std::vector<uint32_t> images;
  bool with_held_out;  // all of them, then
  std::string start;  // an adapter's file; empty: where the training began
  int64_t first_epoch, epochs;
  int64_t first_step, steps_an_epoch;

  int64_t steps() const { return epochs * steps_an_epoch; }
  int64_t end() const { return first_step + steps(); }
  // Behind a step, counted from the course's beginning.
  int64_t epoch_of(int64_t step) const { return first_epoch + (step - first_step) / steps_an_epoch; }
  bool ends_epoch(int64_t step) const { return (step - first_step) % steps_an_epoch == 0; }
};

struct Course {
  // From a job's `held_out` (numbers of images) and `course` ([{"epochs", "with_held_out", "start"}]), over `count` images in
  // batches of `batch_size`.
  static Course of(const Job& job, uint32_t count, int64_t batch_size);

  std::vector<uint32_t> held_out, others;
  std::vector<Stage> stages;

  int64_t steps() const { return stages.empty() ? 0 : stages.back().end(); }
  int64_t epochs() const { return stages.empty() ? 0 : stages.back().first_epoch + stages.back().epochs; }
};

}  // namespace tinytl
