// Runs a program's operators on one sample.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <utility>

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

  uint8_t* stored_image() { return arena_ + program_.stored_image; }  // [stored_image_bytes], before the image is made
  float* image() { return at(program_.image); }      // [height, width, channels]
  float* targets() { return at(program_.targets); }  // [outputs]
  float* logits() { return at(program_.logits); }    // [outputs]

  // Fills a dropout's mask: (layer, elements, destination).
  using MaskFiller = std::function<void(int32_t, int64_t, float*)>;

  // The forward pass; without masks, dropout passes everything on.
  void forward(const MaskFiller* masks);
  // The loss and the backward pass, after a forward pass with masks, and the updates where the batch ends with this
  // sample. Returns the loss; where it is no number, nothing was updated.
  float backward(const Sample& sample);

  // Gives the arena's memory back until it is written again; what lies in it is lost.
  void give_back();

  // From now on, called in front of each update and behind every other operator: (number, operator, arena).
  using Observer = std::function<void(size_t, const Record&, const uint8_t*)>;
  void observe(Observer observer) { observer_ = std::move(observer); }
  // From now on, adds each operator's time to `times`.
  void time_operators(OperatorTimes* times) { times_ = times; }

 private:
  float* at(int32_t place) { return place < 0 ? nullptr : reinterpret_cast<float*>(arena_ + place); }
  void run(const Record& op, const MaskFiller* masks);
  void execute(const Record& op, const MaskFiller* masks);
  void update_part(const Record& op);

  Program& program_;
  uint8_t* arena_;
  Sample sample_;
  float loss_ = 0;
  OperatorTimes* times_ = nullptr;
  Observer observer_;
};

}  // namespace tinytl
