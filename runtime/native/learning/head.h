// The classifier of a program: the linear layer at its end.
#pragma once

#include <cstdint>
#include <vector>

#include "../execute.h"
#include "../program.h"
#include "linear.h"

namespace tinytl {

class Head {
 public:
  // Fails (exit code 3) where the program ends in no linear layer with a bias that trains.
  explicit Head(const Program& program);

  int64_t features() const { return features_; }
  // Behind every operator of a forward pass: copies what the classifier reads of it to features[features()], in PyTorch's
  // order, as the rows of its weight are.
  void observe(size_t number, const Record& op, const uint8_t* arena, float* features) const;
  // The rows of the program's classes.
  Linear rows(const Program& program) const;
  // Gives a class its row: weight [features()], and bias.
  void set(Program& program, size_t label, const float* weight, float bias) const;
  void set_bias(Program& program, size_t label, float bias) const;

 private:
  struct Reader {
    size_t number;  // of an operator
    int64_t first, channels;
  };
  std::vector<Reader> readers_;
  const Parameter* weight_ = nullptr;
  const Parameter* bias_ = nullptr;
  int64_t features_ = 0, taps_ = 1;  // pixels of a map that is flattened, for each of its channels
};

}  // namespace tinytl
