// Runs a program's operators on one sample, or on a few of which each has a region of the arena of its own.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "program.h"

namespace tinytl {

// What one sample is to its batch and to the optimizer.
struct Sample {
  float scale = 1;        // of its loss: 1 / batch size
  bool ends_batch = true; // updates follow
  double schedule = 1;  // of the highest learning rates
  int64_t step = 1;       // counts from 1
  uint64_t seed = 0;      // of stochastic rounding
};

using OperatorTimes = std::array<double, kOpcodes>;  // seconds by opcode

// The arena and what one sample brings to it.
class Execution {
 public:
  // `threads` compute; there is one execution in a process.
  Execution(Program& program, int64_t threads);
  ~Execution();
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  // What is asked for and done is of the sample in this place, from 0 to program.together - 1; at first, 0.
  void turn_to(int32_t place) { place_ = place; }
  uint8_t* stored_image() { return address(program_.stored_image); }  // [stored_image_bytes], before the image is made
  float* image() { return at(program_.image); }      // [height, width, channels]
  float* targets() { return at(program_.targets); }  // [outputs]
  float* logits() { return at(program_.logits); }    // [outputs]

  // Fills a dropout's mask: (place, layer, elements, destination).
  using MaskFiller = std::function<void(int32_t, int32_t, int64_t, float*)>;

  // The forward pass; without masks, dropout passes everything on.
  void forward(const MaskFiller* masks);
  // The loss and the backward pass, after a forward pass with masks, and the updates where the batch ends with this
  // sample. Returns the loss; where it is no number, nothing was updated.
  float backward(const Sample& sample);

  // The same for several samples, in places from 0 on: of each, its image and forward_alone; then forward_jointly; then
  // backward_jointly; then backward_alone of each, which returns its loss. Where a loss is no number backward_jointly
  // returns false, and nothing was updated. What is done jointly turns to place 0.
  void forward_alone(const MaskFiller* masks);
  void forward_jointly(int32_t count, const MaskFiller* masks);
  bool backward_jointly(const std::vector<Sample>& samples);
  float backward_alone(const Sample& sample);

  // Gives the arena's memory back until it is written again; what lies in it is lost.
  void give_back();

  // From now on, called in front of each update and behind every other operator: (number, operator, arena).
  using Observer = std::function<void(size_t, const Record&, const uint8_t*)>;
  void observe(Observer observer) { observer_ = std::move(observer); }
  // From now on, adds each operator's time to `times`.
  void time_operators(OperatorTimes* times) { times_ = times; }

 private:
  uint8_t* address(int32_t offset) {
    return arena_ + offset + (offset >= program_.shared_bytes ? place_ * program_.bytes_a_sample() : 0);
  }
  float* at(int32_t offset) { return offset < 0 ? nullptr : reinterpret_cast<float*>(address(offset)); }
  void run_range(int32_t begin, int32_t end, const MaskFiller* masks);
  void run_jointly(const Record& op, int32_t count, const std::vector<Sample>* samples, const MaskFiller* masks);
  void run(const Record& op, const MaskFiller* masks);
  void execute(const Record& op, const MaskFiller* masks);
  void update_part(const Record& op);

  Program& program_;
  uint8_t* arena_;
  int32_t place_ = 0;
  int32_t rows_ = 1;  // samples of a linear layer that runs for several at once
  Sample sample_;
  std::vector<float> losses_;  // by place
  OperatorTimes* times_ = nullptr;
  Observer observer_;
};

}  // namespace tinytl
