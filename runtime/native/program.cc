#include "program.h"

#include <cstring>
#include <numeric>

#include "json.h"
#include "safetensors.h"

namespace tinytl {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;

// Reads fields of a JSON object; whatever is missing or of another kind means that the file is damaged.
class Fields {
 public:
  Fields(const json::Value& object, const std::string& path) : object_(object), path_(path) {}

  int64_t integer(const char* name, int64_t low, int64_t high) const {
    const json::Value& value = get(name);
    if (!value.is_integer() || value.integer() < low || value.integer() > high) bad(name);
    return value.integer();
  }
  const std::string& text(const char* name) const {
    const json::Value& value = get(name);
    if (!value.is_string()) bad(name);
    return value.string();
  }
  const json::Value& array(const char* name) const {
    const json::Value& value = get(name);
    if (!value.is_array()) bad(name);
    return value;
  }
  std::array<float, 3> triple(const char* name) const {
    const json::Value& values = array(name);
    if (values.size() != 3) bad(name);
    std::array<float, 3> result;
    for (size_t i = 0; i < 3; ++i) {
      if (!values[i].is_number()) bad(name);
      result[i] = static_cast<float>(values[i].number());
    }
    return result;
  }
  const json::Value& get(const char* name) const {
    const json::Value* value = object_.find(name);
    if (!value) bad(name);
    return *value;
  }
  [[noreturn]] void bad(const char* name) const {
    fail(kDamaged, "%s is no usable step program: its field '%s' is missing or out of range.", path_.c_str(), name);
  }

 private:
  const json::Value& object_;
  const std::string& path_;
};

Layout layout_named(const std::string& name, const Fields& fields) {
  if (name == "conv") return Layout::kConv;
  if (name == "depthwise") return Layout::kDepthwise;
  if (name == "linear") return Layout::kLinear;
  if (name == "vector") return Layout::kVector;
  fields.bad("layout");
}

Optimizer optimizer_named(const std::string& name, const Fields& fields) {
  if (name == "sgd") return Optimizer::kSgd;
  if (name == "momentum") return Optimizer::kMomentum;
  if (name == "adam") return Optimizer::kAdam;
  fields.bad("optimizer");
}

size_t state_copies(Optimizer optimizer) {
  return optimizer == Optimizer::kAdam ? 2 : optimizer == Optimizer::kMomentum ? 1 : 0;
}

Parameter read_header(const json::Value& entry, const std::string& path) {
  const Fields fields(entry, path);
  Parameter parameter;
  parameter.name = fields.text("name");
  parameter.layout = layout_named(fields.text("layout"), fields);
  parameter.groups = static_cast<int>(fields.integer("groups", 1, 1 << 20));
  if (!fields.get("group").is_null()) parameter.group = fields.text("group");
  const json::Value& shape = fields.array("shape");
  parameter.elements = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t size = shape[i].integer();
    if (size < 1 || size > kLargest || parameter.elements > kLargest / size) fields.bad("shape");
    parameter.shape.push_back(size);
    parameter.elements *= size;
  }
  const size_t ranks[] = {4, 4, 2, 1};
  if (parameter.shape.size() != ranks[static_cast<size_t>(parameter.layout)]) fields.bad("shape");
  if (parameter.layout == Layout::kConv && parameter.shape[0] % parameter.groups != 0) fields.bad("groups");
  if (parameter.layout == Layout::kDepthwise && parameter.shape[1] != 1) fields.bad("shape");
  return parameter;
}

// The size of the engine's last axis, along which a quantised weight has its scales.
int64_t scales(const Parameter& p) { return p.layout == Layout::kConv ? p.shape[0] / p.groups : p.shape[0]; }

}  // namespace

std::unique_ptr<Program> Program::load(const std::string& path, bool for_training) {
  auto file = std::make_shared<TensorFile>(TensorFile::open(path));
  const std::string* format = file->metadata("format");
  const std::string* version = file->metadata("version");
  const std::string* description = file->metadata("program");
  if (!format || *format != "tinytl-edge-step" || !description)
    fail(kDamaged, "%s is no step program of tinytl-edge.", path.c_str());
  if (!version || *version != "1") fail(kDamaged, "%s is a step program of another version: prepare the bundle again.", path.c_str());
  const std::string damaged = path + " is no usable step program: its description is not JSON.";
  const json::Value tree = json::parse_or_fail(*description, kDamaged, damaged.c_str());
  const Fields fields(tree, path);

  auto program = std::make_unique<Program>();
  program->backbone = fields.text("backbone");
  program->method = fields.text("method");
  program->classes = static_cast<int>(fields.integer("classes", 1, 1 << 20));
  program->resolution = static_cast<int>(fields.integer("resolution", 1, 1 << 14));
  program->mean = fields.triple("mean");
  program->std = fields.triple("std");
  program->optimizer = optimizer_named(fields.text("optimizer"), fields);
  program->arena_bytes = fields.integer("arena_bytes", 1, kLargest - 1);
  program->image = static_cast<int32_t>(fields.integer("image", 0, kLargest - 1));
  program->targets = static_cast<int32_t>(fields.integer("targets", 0, kLargest - 1));
  program->logits = static_cast<int32_t>(fields.integer("logits", 0, kLargest - 1));
  const json::Value& dropouts = fields.array("dropouts");
  for (size_t i = 0; i < dropouts.size(); ++i) {
    const Fields dropout(dropouts[i], path);
    const double rate = dropout.get("rate").number();
    if (!(rate >= 0 && rate < 1)) dropout.bad("rate");
    program->dropouts.push_back({dropout.integer("elements", 1, kLargest - 1), rate});
  }

  const TensorEntry& ops = file->entry("ops");
  if (ops.dtype != DType::kI32 || ops.shape.size() != 2 || ops.shape[1] != kWords) fields.bad("ops");
  program->ops.resize(static_cast<size_t>(ops.shape[0]));
  file->read(ops, program->ops.data());
  program->forward_ops = static_cast<int32_t>(fields.integer("forward_ops", 1, ops.shape[0]));

  const json::Value& parameters = fields.array("parameters");
  for (size_t i = 0; i < parameters.size(); ++i) {
    Parameter p = read_header(parameters[i], path);
    const TensorEntry& value = file->entry("value/" + p.name);
    const bool quantised = Fields(parameters[i], path).get("quantised").boolean();
    if (static_cast<int64_t>(value.bytes) != p.elements * (quantised ? 1 : 4) ||
        value.dtype != (quantised ? DType::kI8 : DType::kF32) || (quantised && p.trains()))
      fields.bad("parameters");
    if (quantised) {  // mapped: its pages are the kernel's
      const TensorEntry& scale = file->entry("scale/" + p.name);
      if (scale.dtype != DType::kF32 || static_cast<int64_t>(scale.bytes) != 4 * scales(p)) fields.bad("parameters");
      p.weight.i8 = static_cast<const int8_t*>(program->map(*file, value));
      p.weight.scale = static_cast<const float*>(program->map(*file, scale));
    } else if (p.trains()) {
      p.value = program->room(p.elements);
      file->read(value, p.value);
      if (for_training) {
        p.gradient = program->room(p.elements);
        for (size_t copy = 0; copy < state_copies(program->optimizer); ++copy) p.state[copy] = program->room(p.elements);
      }
    } else {
      p.value = const_cast<float*>(static_cast<const float*>(program->map(*file, value)));
    }
    if (!quantised) p.weight.f32 = p.value;
    program->parameters.push_back(std::move(p));
  }
  check_program(*program, path);
  return program;
}

const void* Program::map(const TensorFile& file, const TensorEntry& entry) {
  mapped_.push_back(std::make_unique<MappedTensor>(file.map(entry)));
  return mapped_.back()->data();
}

float* Program::room(int64_t elements) {
  owned_.push_back(std::make_unique<float[]>(static_cast<size_t>(elements)));  // zeros
  return owned_.back().get();
}

}  // namespace tinytl
