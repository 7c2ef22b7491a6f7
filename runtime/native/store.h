// What a run keeps: the adapter, and the checkpoint from which it goes on as if nothing had happened.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

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

// Writes the trainables as PyTorch has them; `bundle` is the bundle's identity.
void write_adapter(const std::string& path, const Program& program, const std::string& bundle,
                   const std::vector<std::string>& classes, int64_t steps, const EpochSums& sums);
// Fills the trainables from an adapter.
void read_adapter(const std::string& path, Program& program);
// Brings the trainables to start + share (trainables - start), where an adapter says what they were at the start, and
// widens the range of the logits by its own.
void blend(const std::string& path, double share, Program& program, EpochSums& sums);

// Trainables and optimizer state in the engine's layout, and where the run stands.
void write_checkpoint(const std::string& path, const Program& program, int64_t step, const EpochSums& sums);
int64_t read_checkpoint(const std::string& path, Program& program, EpochSums& sums);

}  // namespace tinytl
