#include "program.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "bfloat16.h"
#include "json.h"
#include "kernels/parallel.h"
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
  float number(const char* name, double low, double high) const {
    const json::Value& value = get(name);
    if (!value.is_number() || !(value.number() >= low && value.number() <= high)) bad(name);
    return static_cast<float>(value.number());
  }
  // A number for each of the input's channels.
  std::array<float, 3> per_channel(const char* name, int channels) const {
    const json::Value& values = array(name);
    if (values.size() != static_cast<size_t>(channels)) bad(name);
    std::array<float, 3> result{};
    for (size_t i = 0; i < values.size(); ++i) {
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

size_t moments(Optimizer optimizer) {
  return optimizer == Optimizer::kAdam ? 2 : optimizer == Optimizer::kMomentum ? 1 : 0;
}

Storage storage_named(const std::string& name, const Fields& fields) {
  if (name == "float32") return Storage::kFloat32;
  if (name == "bfloat16") return Storage::kBfloat16;
  if (name == "int8") return Storage::kInt8;
  fields.bad("type");
}

int64_t item_bytes(Storage storage) {
  return storage == Storage::kFloat32 ? 4 : storage == Storage::kBfloat16 ? 2 : 1;
}

Parameter read_header(const json::Value& entry, const std::string& path) {
  const Fields fields(entry, path);
  Parameter parameter;
  parameter.name = fields.text("name");
  parameter.layout = layout_named(fields.text("layout"), fields);
  parameter.groups = static_cast<int>(fields.integer("groups", 1, 1 << 20));
  parameter.storage = storage_named(fields.text("type"), fields);
  parameter.moments8 = fields.text("moments") == "8bit";
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
  if (parameter.layout == Layout::kConv ? parameter.shape[0] % parameter.groups != 0 : parameter.groups != 1)
    fields.bad("groups");
  if (parameter.layout == Layout::kDepthwise && parameter.shape[1] != 1) fields.bad("shape");
  const bool small = parameter.layout == Layout::kVector;
  if ((parameter.trains() ? parameter.storage == Storage::kInt8 : parameter.storage == Storage::kBfloat16) ||
      (small && parameter.storage != Storage::kFloat32))
    fields.bad("type");
  if (parameter.storage == Storage::kInt8) parameter.zero = fields.number("zero", -256, 256);
  return parameter;
}

// Of a quantised weight: one for each output, of all groups.
int64_t scales(const Parameter& p) { return p.shape[0]; }

int64_t blocks(int64_t elements) { return (elements + kMomentBlock - 1) / kMomentBlock; }

}  // namespace

std::unique_ptr<Program> Program::load(const std::string& path, bool for_training) {
  auto file = std::make_unique<TensorFile>(TensorFile::open(path));
  const std::string* format = file->metadata("format");
  const std::string* version = file->metadata("version");
  const std::string* description = file->metadata("program");
  if (!format || *format != "tinytl-edge-step" || !description)
    fail(kDamaged, "%s is no step program of tinytl-edge.", path.c_str());
  if (!version || *version != "5") fail(kDamaged, "%s is a step program of another version: prepare the bundle again.", path.c_str());
  const std::string damaged = path + " is no usable step program: its description is not JSON.";
  const json::Value tree = json::parse_or_fail(*description, kDamaged, damaged.c_str());
  const Fields fields(tree, path);

  auto program = std::make_unique<Program>();
  program->backbone = fields.text("backbone");
  program->method = fields.text("method");
  program->outputs = program->classes = static_cast<int>(fields.integer("outputs", 1, 1 << 20));
  program->height = static_cast<int>(fields.integer("height", 1, 1 << 14));
  program->width = static_cast<int>(fields.integer("width", 1, 1 << 14));
  program->channels = static_cast<int>(fields.integer("channels", 1, 3));
  if (program->channels == 2) fields.bad("channels");
  program->mean = fields.per_channel("mean", program->channels);
  program->std = fields.per_channel("std", program->channels);
  for (int i = 0; i < program->channels; ++i)
    if (!(program->std[static_cast<size_t>(i)] > 0)) fields.bad("std");
  program->optimizer = optimizer_named(fields.text("optimizer"), fields);
  program->arena_bytes = fields.integer("arena_bytes", 1, kLargest - 1);
  program->stored_image = static_cast<int32_t>(fields.integer("stored_image", 0, kLargest - 1));
  program->stored_image_bytes = fields.integer("stored_image_bytes", 1, kLargest - 1);
  program->image = static_cast<int32_t>(fields.integer("image", 0, kLargest - 1));
  program->targets = static_cast<int32_t>(fields.integer("targets", 0, kLargest - 1));
  program->logits = static_cast<int32_t>(fields.integer("logits", 0, kLargest - 1));
  const json::Value& dropouts = fields.array("dropouts");
  for (size_t i = 0; i < dropouts.size(); ++i) {
    const Fields dropout(dropouts[i], path);
    const double rate = dropout.get("rate").number();
    if (!(rate >= 0 && rate < 1)) dropout.bad("rate");
    const int64_t elements = dropout.integer("elements", 1, kLargest - 1);
    const int64_t pixels = dropout.integer("pixels", 1, elements);
    if (elements % pixels != 0) dropout.bad("pixels");
    program->dropouts.push_back({elements, pixels, rate});
  }

  const TensorEntry& ops = file->entry("ops");
  if (ops.dtype != DType::kI32 || ops.shape.size() != 2 || ops.shape[1] != kWords) fields.bad("ops");
  program->ops.resize(static_cast<size_t>(ops.shape[0]));
  file->read(ops, program->ops.data());
  program->forward_ops = static_cast<int32_t>(fields.integer("forward_ops", 1, ops.shape[0]));
  program->joint_first = static_cast<int32_t>(fields.integer("joint_first", 0, program->forward_ops));
  program->joint_end = static_cast<int32_t>(fields.integer("joint_end", program->forward_ops, ops.shape[0]));
  program->shared_bytes = fields.integer("shared_bytes", 0, program->arena_bytes);
  program->together = static_cast<int32_t>(fields.integer("together", 1, kMostLinearRows));
  if (program->shared_bytes % 64 != 0 || program->whole_arena_bytes() >= kLargest) fields.bad("shared_bytes");

  program->streamed = fields.get("streamed").boolean();
  program->accumulates = fields.text("accumulation") != "none";
  const json::Value& parameters = fields.array("parameters");
  for (size_t i = 0; i < parameters.size(); ++i) program->parameters.push_back(read_header(parameters[i], path));

  const TensorEntry& parts = file->entry("parts");
  if (parts.dtype != DType::kI32 || parts.shape.size() != 2 || parts.shape[1] != 4 || parts.shape[0] > 1 << 20)
    fields.bad("parts");
  std::vector<std::array<int32_t, 4>> table(static_cast<size_t>(parts.shape[0]));
  file->read(parts, table.data());
  for (const auto& [parameter, axis, first, count] : table) {
    program->parts.emplace_back();
    Part& part = program->parts.back();
    part.parameter = parameter;
    part.axis = axis;
    part.first = first;
    part.count = count;
  }
  if (!program->link_parts()) fields.bad("parts");
  program->file_ = std::move(file);
  program->make_room(for_training);
  for (Parameter& parameter : program->parameters) program->place_parameter(parameter, for_training);
  for (const Record& op : program->ops)
    if (op.opcode == static_cast<int32_t>(Opcode::kLoss)) program->multi_label = op.number == 1;
  check_program(*program, path);
  return program;
}

// Each parameter's parts follow each other in the table and cover it from its beginning to its end.
bool Program::link_parts() {
  size_t at = 0;
  for (Parameter& parameter : parameters) {
    parameter.first_part = static_cast<int32_t>(at);
    int64_t covered = 0;
    uint64_t offset = 0;
    const int32_t axis = at < parts.size() ? parts[at].axis : -1;
    if (axis < 0 || axis >= std::min<int32_t>(2, static_cast<int32_t>(parameter.shape.size()))) return false;
    const int64_t length = parameter.shape[static_cast<size_t>(axis)];
    for (; at < parts.size() && covered < length; ++at, ++parameter.parts) {
      Part& part = parts[at];
      const bool divides = part.count == length || parameter.groups == 1;
      if (part.parameter != &parameter - parameters.data() || part.axis != axis || part.first != covered ||
          part.count < 1 || part.count > length - covered || !divides)
        return false;
      part.elements = parameter.elements / length * part.count;
      part.file_offset = offset;
      offset += static_cast<uint64_t>(part.elements) * (parameter.storage == Storage::kInt8 ? 1 : 4);
      covered += part.count;
    }
    if (covered != length) return false;
  }
  return at == parts.size();
}

// One piece of memory for all that is not mapped, so that nothing is allocated later.
void Program::make_room(bool for_training) {
  int64_t needed = 0;
  const auto add = [&](int64_t bytes) { needed += (bytes + 63) / 64 * 64; };
  for (const Parameter& p : parameters) {
    if (p.trains() || p.layout == Layout::kVector) add(p.elements * item_bytes(p.storage));
    if (p.storage == Storage::kInt8) add(4 * scales(p));
    if (!p.trains() || !for_training) continue;
    for (size_t moment = 0; moment < moments(optimizer); ++moment) {
      if (p.moments8) {
        int64_t scale_count = 0;
        for (int32_t i = 0; i < p.parts; ++i) scale_count += blocks(parts[static_cast<size_t>(p.first_part + i)].elements);
        add(p.elements);
        add(4 * scale_count);
      } else {
        add(4 * p.elements);
      }
    }
  }
  room_bytes_ = static_cast<size_t>(std::max<int64_t>(needed, 64));
  void* memory = mmap(nullptr, room_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail(kMemoryLimit, "There is no room for parameters of %zu bytes.", room_bytes_);
  room_ = static_cast<uint8_t*>(memory);
}

Program::~Program() {
  if (room_) munmap(room_, room_bytes_);
}

void* Program::room(int64_t bytes) {
  void* place = room_ + room_used_;
  room_used_ += static_cast<size_t>((bytes + 63) / 64 * 64);
  return place;
}

// Reads or maps a parameter's values, and makes room for its optimizer state.
void Program::place_parameter(Parameter& p, bool for_training) {
  const TensorEntry& entry = file_->entry("value/" + p.name);
  values_.push_back(&entry);
  const bool int8 = p.storage == Storage::kInt8;
  if (static_cast<int64_t>(entry.bytes) != p.elements * (int8 ? 1 : 4) || entry.dtype != (int8 ? DType::kI8 : DType::kF32))
    fail(kDamaged, "%s is damaged: its tensor for %s has another size.", file_->path().c_str(), quoted(p.name).c_str());
  const float* scale = nullptr;
  if (int8) {
    const TensorEntry& found = file_->entry("scale/" + p.name);
    if (found.dtype != DType::kF32 || static_cast<int64_t>(found.bytes) != 4 * scales(p))
      fail(kDamaged, "%s is damaged: its scales for %s have another size.", file_->path().c_str(), quoted(p.name).c_str());
    float* read = static_cast<float*>(room(4 * scales(p)));
    file_->read(found, read);
    scale = read;
  }
  const uint8_t* values = nullptr;
  if (p.trains() || p.layout == Layout::kVector) {
    void* read = room(p.elements * item_bytes(p.storage));
    if (p.storage == Storage::kBfloat16) {
      float piece[1024];
      for (int64_t i = 0; i < p.elements; i += 1024) {
        const int64_t count = std::min<int64_t>(1024, p.elements - i);
        file_->read_part(entry, static_cast<uint64_t>(4 * i), static_cast<size_t>(4 * count), piece);
        for (int64_t j = 0; j < count; ++j) static_cast<uint16_t*>(read)[i + j] = to_bfloat16(piece[j]);
      }
    } else {
      file_->read(entry, read);
    }
    values = static_cast<const uint8_t*>(read);
  } else if (!streamed) {
    mapped_.push_back(file_->map(entry));
    values = static_cast<const uint8_t*>(mapped_.back().data());
  }
  for (int32_t i = 0; i < p.parts; ++i) {
    Part& part = parts[static_cast<size_t>(p.first_part + i)];
    part.trained.elements = part.elements;
    part.weight.zero = p.zero;
    if (int8) part.weight.scale = scale + (part.axis == 0 && p.parts > 1 ? part.first : 0);
    if (!values) continue;
    place_values(part, const_cast<uint8_t*>(values));
    values += bytes(part);
  }
  if (!p.trains() || !for_training) return;
  for (size_t moment = 0; moment < moments(optimizer); ++moment) {
    int64_t scale_count = 0;
    for (int32_t i = 0; i < p.parts; ++i) scale_count += blocks(parts[static_cast<size_t>(p.first_part + i)].elements);
    auto* numbers = static_cast<uint8_t*>(room(p.moments8 ? p.elements : 4 * p.elements));
    auto* moment_scales = p.moments8 ? static_cast<float*>(room(4 * scale_count)) : nullptr;
    for (int32_t i = 0; i < p.parts; ++i) {
      Part& part = parts[static_cast<size_t>(p.first_part + i)];
      Moment& found = moment == 0 ? part.trained.first : part.trained.second;
      if (p.moments8) {
        found.codes = numbers;
        found.scales = moment_scales;
        numbers += part.elements;
        moment_scales += blocks(part.elements);
      } else {
        found.f32 = reinterpret_cast<float*>(numbers);
        numbers += 4 * part.elements;
      }
    }
  }
}

int64_t Program::bytes(const Part& part) const {
  return part.elements * item_bytes(parameters[static_cast<size_t>(part.parameter)].storage);
}

void Program::place_values(Part& part, uint8_t* place) {
  switch (parameters[static_cast<size_t>(part.parameter)].storage) {
    case Storage::kFloat32:
      part.weight.f32 = part.trained.f32 = reinterpret_cast<float*>(place);
      break;
    case Storage::kBfloat16:
      part.weight.bf16 = part.trained.bf16 = reinterpret_cast<uint16_t*>(place);
      break;
    case Storage::kInt8:
      part.weight.i8 = reinterpret_cast<const int8_t*>(place);
      break;
  }
}

void Program::use_classes(size_t count) {
  if (count < 1 || count > static_cast<size_t>(outputs))
    fail(kUsage, "The program has %d outputs, the job %zu classes.", outputs, count);
  classes = static_cast<int>(count);
}

void Program::load_part(Part& part, uint8_t* place) {
  constexpr int64_t kReadBytes = 8192;  // are worth another thread
  const TensorEntry& value = *values_[static_cast<size_t>(part.parameter)];
  const Slices slices(bytes(part), kReadBytes);
  parallel_shares(slices.count(), [&](int first, int last) {
    const int64_t begin = slices.begin(first), end = slices.begin(last);
    file_->read_part(value, part.file_offset + static_cast<uint64_t>(begin), static_cast<size_t>(end - begin), place + begin);
  });
  place_values(part, place);
}

}  // namespace tinytl
