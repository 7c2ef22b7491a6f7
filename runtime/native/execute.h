// Runs a program's operators on one sample.
#pragma once

#include <cstdint>
#include <functional>

#include "program.h"

namespace tinytl {

// The arena and what one sample brings to it.
class Execution {
 public:
  explicit Execution(const Program& program);
  ~Execution();
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  float* image() { return at(program_.image); }      // [resolution, resolution, 3]
  float* targets() { return at(program_.targets); }  // [classes]
  float* logits() { return at(program_.logits); }    // [classes]

  // Fills a dropout's mask: (layer, elements, destination).
  using MaskFiller = std::function<void(int32_t, int64_t, float*)>;

  // The forward pass; without masks, dropout passes everything on.
  void forward(const MaskFiller* masks);
  // The loss and the backward pass, after a forward pass with masks; adds to the parameters' gradients the sample's
  // gradient times `scale`. Returns the loss.
  float backward(float scale);

 private:
  float* at(int32_t place) { return place < 0 ? nullptr : reinterpret_cast<float*>(arena_ + place); }
  void run(const Record& op, const MaskFiller* masks);

  const Program& program_;
  uint8_t* arena_;
  float scale_ = 1;
  float loss_ = 0;
};

}  // namespace tinytl
