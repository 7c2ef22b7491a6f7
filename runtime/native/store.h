// What a run keeps: the adapter, and the checkpoint from which it goes on as if nothing had happened.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "judge.h"
#include "program.h"

namespace tinytl {

// Of the epoch under way, so that a resumed one reports the same.
struct EpochSums {
  double losses = 0;
  int64_t correct = 0;
  int64_t seen = 0;
  double low = 0, high = 0;  // of all logits

  void add_range(const float* logits, int classes) {
    for (int i = 0; i < classes; ++i) {
      low = std::min(low, static_cast<double>(logits[i]));
      high = std::max(high, static_cast<double>(logits[i]));
    }
  }
};

// Where a training stands.
struct Standing {
  int64_t step = 0;
  EpochSums sums;
  Score start, score;  // of the judge: where training began, and of the last epoch, or what was chosen
  Score best;  // of the best epoch, with the step behind it
  int64_t best_step = 0;  // 0: none yet
  int64_t ended = 0;  // the step behind the last epoch that was ended
  double share = NAN;  // that was chosen
  bool flips = true;  // images may be mirrored
  double left_out = NAN;  // accuracy of the one pass, each image left out in turn
  double kept_before = NAN, kept = NAN;  // accuracy where the classifier comes from, before and now
  Unknown unknown;
};

// Writes the trainables as PyTorch has them; `bundle` is the bundle's identity.
void write_adapter(const std::string& path, const Program& program, const std::string& bundle,
                   const std::vector<std::string>& classes, const Standing& at);
// Fills the trainables from an adapter.
void read_adapter(const std::string& path, Program& program);
// Brings the trainables to start + share (trainables - start), where an adapter says what they were at the start.
void blend(const std::string& path, double share, Program& program);
// Widens the range of the logits by that of an adapter.
void add_range(const std::string& path, EpochSums& sums);

// Brings the optimizer's state back to what it is before the first step.
void forget_moments(const Program& program);

// Trainables and optimizer state in the engine's layout, and where the run stands.
void write_checkpoint(const std::string& path, const Program& program, const Standing& at);
Standing read_checkpoint(const std::string& path, Program& program);

}  // namespace tinytl
