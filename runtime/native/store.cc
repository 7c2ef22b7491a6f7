#include "store.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "json.h"
#include "layout.h"
#include "safetensors.h"

namespace tinytl {
namespace {

constexpr char kAdapterFormat[] = "tinytl-edge-adapter";
constexpr char kCheckpointFormat[] = "tinytl-edge-checkpoint";

const TensorEntry& matching(const TensorFile& file, const std::string& name, const Parameter& parameter) {
  const TensorEntry* entry = file.find(name);
  if (!entry || entry->dtype != DType::kF32 || static_cast<int64_t>(entry->bytes) != 4 * parameter.elements)
    fail(kDamaged, "%s lacks or garbles %s.", file.path().c_str(), quoted(name).c_str());
  return *entry;
}

const std::string& metadata(const TensorFile& file, const char* key) {
  const std::string* value = file.metadata(key);
  if (!value) fail(kDamaged, "%s lacks its metadata '%s'.", file.path().c_str(), key);
  return *value;
}

}  // namespace

void write_adapter(const std::string& path, Program& program, const std::string& bundle,
                   const std::vector<std::string>& classes, int64_t steps) {
  std::vector<TensorToWrite> tensors;
  uint32_t crc = 0;
  for (const Parameter& parameter : program.parameters) {
    if (!parameter.trains()) continue;
    // Between two steps the gradients are zero, and their room is free for PyTorch's layout.
    to_torch(parameter, parameter.value, parameter.gradient);
    const size_t bytes = static_cast<size_t>(parameter.elements) * sizeof(float);
    tensors.push_back({parameter.name, DType::kF32, parameter.shape, parameter.gradient, bytes});
    crc = crc32(crc, parameter.gradient, bytes);
  }
  json::Writer names;
  names.begin_array();
  for (const std::string& name : classes) names.text(name);
  names.end_array();
  char digits[16];
  std::snprintf(digits, sizeof digits, "%08x", crc);
  write_tensors(path, tensors,
                {{"format", kAdapterFormat},
                 {"version", "1"},
                 {"bundle", bundle},
                 {"backbone", program.backbone},
                 {"method", program.method},
                 {"classes", names.str()},
                 {"steps", std::to_string(steps)},
                 {"crc32", digits}});
  for (const Parameter& parameter : program.parameters)
    if (parameter.trains())
      std::memset(parameter.gradient, 0, static_cast<size_t>(parameter.elements) * sizeof(float));
}

void read_adapter(const std::string& path, Program& program) {
  const TensorFile file = TensorFile::open(path);
  if (metadata(file, "format") != kAdapterFormat) fail(kDamaged, "%s is no adapter of tinytl-edge.", path.c_str());
  std::vector<float> values;
  for (Parameter& parameter : program.parameters) {
    if (!parameter.trains()) continue;
    values.resize(static_cast<size_t>(parameter.elements));
    file.read(matching(file, parameter.name, parameter), values.data());
    from_torch(parameter, values.data(), parameter.value);
  }
}

void write_checkpoint(const std::string& path, const Program& program, int64_t step, const EpochSums& sums) {
  std::vector<TensorToWrite> tensors;
  for (const Parameter& parameter : program.parameters) {
    if (!parameter.trains()) continue;
    const size_t bytes = static_cast<size_t>(parameter.elements) * sizeof(float);
    tensors.push_back({"value/" + parameter.name, DType::kF32, {parameter.elements}, parameter.value, bytes});
    for (size_t copy = 0; copy < parameter.state.size(); ++copy)
      if (parameter.state[copy])
        tensors.push_back({"state" + std::to_string(copy) + "/" + parameter.name, DType::kF32, {parameter.elements},
                           parameter.state[copy], bytes});
  }
  char losses[32];
  std::snprintf(losses, sizeof losses, "%.17g", sums.losses);
  write_tensors(path, tensors,
                {{"format", kCheckpointFormat},
                 {"version", "1"},
                 {"step", std::to_string(step)},
                 {"losses", losses},
                 {"correct", std::to_string(sums.correct)},
                 {"seen", std::to_string(sums.seen)}});
}

int64_t read_checkpoint(const std::string& path, Program& program, EpochSums& sums) {
  const TensorFile file = TensorFile::open(path);
  if (metadata(file, "format") != kCheckpointFormat) fail(kDamaged, "%s is no checkpoint of tinytl-edge.", path.c_str());
  for (Parameter& parameter : program.parameters) {
    if (!parameter.trains()) continue;
    file.read(matching(file, "value/" + parameter.name, parameter), parameter.value);
    for (size_t copy = 0; copy < parameter.state.size(); ++copy)
      if (parameter.state[copy])
        file.read(matching(file, "state" + std::to_string(copy) + "/" + parameter.name, parameter), parameter.state[copy]);
  }
  sums.losses = std::strtod(metadata(file, "losses").c_str(), nullptr);
  sums.correct = std::strtoll(metadata(file, "correct").c_str(), nullptr, 10);
  sums.seen = std::strtoll(metadata(file, "seen").c_str(), nullptr, 10);
  return std::strtoll(metadata(file, "step").c_str(), nullptr, 10);
}

}  // namespace tinytl
