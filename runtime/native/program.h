// A step program: what export/step/program.py writes, loaded and checked.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "safetensors.h"

namespace tinytl {

// Kernels by number, and the words of a record; export/step/program.py is where they are defined.
enum class Opcode : int32_t {
  kPointwise = 1,
  kPointwiseDx,
  kPointwiseDw,
  kDepthwise,
  kDepthwiseDx,
  kDepthwiseDw,
  kConv,
  kConvDx,
  kConvDw,
  kActivate,
  kMaskGradient,
  kBiasGradient,
  kAdd,
  kAveragePool,
  kAveragePoolDx,
  kGlobalPool,
  kGlobalPoolDx,
  kUpsample,
  kUpsampleDx,
  kGroupNorm,
  kGroupNormBackward,
  kAffine,
  kAffineBackward,
  kDropout,
  kDropoutDx,
  kLoss,
};

// Places are byte offsets in the arena, parameters are indices; -1 is none.
struct Record {
  int32_t opcode, x, other, dy, mask, statistics, y, dx;
  int32_t weight, bias, train_weight, train_bias;
  int32_t activation, number, epsilon_bits;
  Geometry geometry;
};
constexpr int kWords = 28;
static_assert(sizeof(Record) == kWords * sizeof(int32_t), "a record is the file's words");

enum class Layout { kConv, kDepthwise, kLinear, kVector };

// A weight or bias. `value` is null where it is quantised; `gradient` and `state` where it is frozen.
struct Parameter {
  std::string name;
  std::string group;  // of learning rates; empty where it is frozen
  std::vector<int64_t> shape;  // in PyTorch
  Layout layout = Layout::kVector;
  int groups = 1;
  int64_t elements = 0;
  Weight weight;
  float* value = nullptr;
  float* gradient = nullptr;
  std::array<float*, 2> state = {nullptr, nullptr};  // Adam: m and v; momentum: velocity

  bool trains() const { return !group.empty(); }
};

enum class Optimizer { kSgd, kMomentum, kAdam };

struct DropoutLayer {
  int64_t elements;
  double rate;
};

struct Program {
  std::string backbone, method;
  int classes = 0;
  int resolution = 0;
  std::array<float, 3> mean{}, std{};
  Optimizer optimizer = Optimizer::kSgd;
  std::vector<DropoutLayer> dropouts;
  int64_t arena_bytes = 0;
  int32_t image = 0, targets = 0, logits = 0;  // places
  int32_t forward_ops = 0;
  std::vector<Record> ops;
  std::vector<Parameter> parameters;

  // Reads and checks a program; for_training also makes room for gradients and optimizer state.
  // Throws Failure (exit code 3) where anything in the file does not fit together.
  static std::unique_ptr<Program> load(const std::string& path, bool for_training);

  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

 private:
  const void* map(const TensorFile& file, const TensorEntry& entry);
  float* room(int64_t elements);

  std::vector<std::unique_ptr<float[]>> owned_;
  std::vector<std::unique_ptr<MappedTensor>> mapped_;
};

// Throws Failure where an operator would touch anything outside of the arena or a parameter.
void check_program(const Program& program, const std::string& path);

}  // namespace tinytl
