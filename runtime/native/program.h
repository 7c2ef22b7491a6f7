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

// What the table of operators says of a place that one reads or writes, of a part of a parameter, and of an attribute;
// export/step/operators.py explains it.
enum Use : uint8_t { kRead = 1, kWrite = 2, kOptional = 4, kInPlace = 8, kMayAdd = 16 };
enum class Word : uint8_t;
enum class Extent : uint8_t;
enum class PartKind : uint8_t;
enum class AttributeType : uint8_t;
enum class Rule : uint8_t;
struct DeclaredPlace {
  Word word;
  Extent extent;
  int use;
};
struct DeclaredPart {
  Word word;
  PartKind kind;
  bool optional;
};
struct DeclaredAttribute {
  Word word;
  AttributeType type;
  int32_t low, high;
};
struct Declaration {
  const char* name;
  Rule rule;
  bool forward;  // may stand in the forward part
  DeclaredPlace places[6];
  DeclaredPart parts[2];
  DeclaredAttribute attributes[4];
};
#include "operators.inc"

// An operator as it stands in the file. Places are byte offsets in the arena, weight and bias parts of parameters; -1 is
// none.
struct Record {
  int32_t opcode, x, other, dy, mask, statistics, y, dx, dw, db;
  int32_t weight, bias;
  int32_t adds, activation, number;
  float epsilon, alpha, beta;
  int32_t x_first, y_first;
  Geometry geometry;
};
static_assert(sizeof(Record) == kWords * sizeof(int32_t), "a record is the file's words");

enum class Layout { kConv, kDepthwise, kLinear, kVector };

// How a parameter's values are stored.
enum class Storage { kFloat32, kBfloat16, kInt8 };

// A weight or bias, as PyTorch names and shapes it.
struct Parameter {
  std::string name;
  std::string group;  // of learning rates; empty where it is frozen
  std::vector<int64_t> shape;
  Layout layout = Layout::kVector;
  int groups = 1;
  Storage storage = Storage::kFloat32;
  float zero = 0;  // of int8: a weight is (code - zero) * scale
  bool moments8 = false;  // optimizer state in 8 bits
  int64_t elements = 0;
  int32_t first_part = 0, parts = 0;  // whose values lie one behind the other
  double rate = 0;                    // the highest learning rate

  bool trains() const { return !group.empty(); }
};

// A run of a parameter along PyTorch's axis 0 (outputs) or 1 (inputs), in the engine's layout; see export/step/ir.py.
struct Part {
  int32_t parameter, axis, first, count;
  int64_t elements = 0;
  Weight weight;             // where its values lie; nowhere yet where it is streamed
  Trained trained;           // where it trains
  uint64_t file_offset = 0;  // in the parameter's tensor, in bytes
};

struct DropoutLayer {
  int64_t elements, pixels;
  double rate;
};

struct Program {
  std::string backbone, method;
  int outputs = 0;  // logits
  int classes = 0;  // the first of them, which stand for a class; the others wait for one, with a bias of -10,000
  int height = 0, width = 0, channels = 0;  // of the input
  std::array<float, 3> mean{}, std{};       // of its channels
  Optimizer optimizer = Optimizer::kSgd;
  std::vector<DropoutLayer> dropouts;
  int64_t arena_bytes = 0;  // with one sample's region
  int32_t stored_image = 0, image = 0, targets = 0, logits = 0;  // places
  int64_t stored_image_bytes = 0;  // of a packed one
  int32_t forward_ops = 0;
  // Operators [joint_first, joint_end) run for so many samples together, before the next one runs; see export/step/joint.py.
  // Each sample has a region of its own of what lies behind shared_bytes.
  int32_t together = 1, joint_first = 0, joint_end = 0;
  int64_t shared_bytes = 0;
  bool streamed = false;     // frozen weights are read where they are needed
  bool multi_label = false;  // each class by itself; as the loss says
  bool accumulates = false;         // gradients of a batch are summed; otherwise every sample is a step
  std::vector<Record> ops;
  std::vector<Parameter> parameters;
  std::vector<Part> parts;

  // Only so many outputs stand for a class. Fails (exit code 2) where there are not as many.
  void use_classes(size_t count);
  int64_t bytes(const Part& part) const;  // of its stored values
  int64_t bytes_a_sample() const { return arena_bytes - shared_bytes; }
  int64_t whole_arena_bytes() const { return arena_bytes + (together - 1) * bytes_a_sample(); }
  // Reads a streamed part to `place`, where its operators find it until it is read elsewhere.
  void load_part(Part& part, uint8_t* place);

  // Reads and checks a program; for_training also makes room for optimizer state.
  // Throws Failure (exit code 3) where anything in the file does not fit together.
  static std::unique_ptr<Program> load(const std::string& path, bool for_training);

  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program();

 private:
  bool link_parts();
  void make_room(bool for_training);
  void* room(int64_t bytes);
  void place_parameter(Parameter& parameter, bool for_training);
  void place_values(Part& part, uint8_t* place);

  std::unique_ptr<TensorFile> file_;
  std::vector<const TensorEntry*> values_;  // of each parameter
  std::vector<MappedTensor> mapped_;
  uint8_t* room_ = nullptr;  // of what is not mapped: trainables, optimizer state, small vectors
  size_t room_bytes_ = 0, room_used_ = 0;
};

// Throws Failure where an operator would touch anything outside of the arena or a parameter.
void check_program(const Program& program, const std::string& path);

}  // namespace tinytl
