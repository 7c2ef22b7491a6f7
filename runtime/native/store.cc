#include "store.h"

#include <algorithm>
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

constexpr int64_t kPiece = 8192;  // floats that are brought into PyTorch's order at a time

const TensorEntry& matching(const TensorFile& file, const std::string& name, DType dtype, int64_t bytes) {
  const TensorEntry* entry = file.find(name);
  if (!entry || entry->dtype != dtype || static_cast<int64_t>(entry->bytes) != bytes)
    fail(kDamaged, "%s lacks or garbles %s.", file.path().c_str(), quoted(name).c_str());
  return *entry;
}

const std::string& metadata(const TensorFile& file, const char* key) {
  const std::string* value = file.metadata(key);
  if (!value) fail(kDamaged, "%s lacks its metadata '%s'.", file.path().c_str(), key);
  return *value;
}

void put_rows(const Program& program, const Parameter& parameter, const Sink& put) {
  const int64_t row = parameter.elements / parameter.shape[0];
  const int64_t at_once = std::clamp<int64_t>(kPiece / row, 1, parameter.shape[0]);
  std::vector<float> rows(static_cast<size_t>(at_once * row));
  for (int64_t first = 0; first < parameter.shape[0]; first += at_once) {
    const int64_t count = std::min(at_once, parameter.shape[0] - first);
    for (int64_t i = 0; i < count; ++i) get_row(program, parameter, first + i, rows.data() + i * row);
    put(rows.data(), static_cast<size_t>(4 * count * row));
  }
}

TensorFile open_adapter(const std::string& path) {
  TensorFile file = TensorFile::open(path);
  if (metadata(file, "format") != kAdapterFormat) fail(kDamaged, "%s is no adapter of tinytl-edge.", path.c_str());
  return file;
}

// Calls take(parameter, row, values) for every row of an adapter's tensors.
template <typename Take>
void each_row(const TensorFile& file, const Program& program, Take take) {
  std::vector<float> rows;
  for (const Parameter& parameter : program.parameters) {
    if (!parameter.trains()) continue;
    const TensorEntry& entry = matching(file, parameter.name, DType::kF32, 4 * parameter.elements);
    const int64_t row = parameter.elements / parameter.shape[0];
    const int64_t at_once = std::clamp<int64_t>(kPiece / row, 1, parameter.shape[0]);
    rows.resize(static_cast<size_t>(at_once * row));
    for (int64_t first = 0; first < parameter.shape[0]; first += at_once) {
      const int64_t count = std::min(at_once, parameter.shape[0] - first);
      file.read_part(entry, static_cast<uint64_t>(4 * first * row), static_cast<size_t>(4 * count * row), rows.data());
      for (int64_t i = 0; i < count; ++i) take(parameter, first + i, rows.data() + i * row);
    }
  }
}

// As text that reads as the same number again.
std::string precise(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.17g", value);
  return digits;
}

std::string standing_text(const Standing& at) {
  json::Writer out;
  out.begin_object()
      .integer("step", at.step)
      .number("losses", at.sums.losses)
      .integer("correct", at.sums.correct)
      .integer("seen", at.sums.seen)
      .number("low", at.sums.low)
      .number("high", at.sums.high)
      .integer("best_step", at.best_step)
      .integer("ended", at.ended)
      .number("share", at.share)
      .boolean("flips", at.flips)
      .number("left_out", at.left_out)
      .number("kept_before", at.kept_before)
      .number("kept", at.kept);
  write_score(out, "start", at.start);
  write_score(out, "score", at.score);
  write_score(out, "best", at.best);
  write_unknown(out, "unknown", at.unknown);
  return out.end_object().str();
}

Standing standing_from(const json::Value& told) {
  const auto number = [&](const char* name, double absent) {
    const json::Value* value = told.find(name);
    return value && value->is_number() ? value->number() : absent;
  };
  const auto integer = [&](const char* name) {
    const json::Value* value = told.find(name);
    return value && value->is_integer() ? value->integer() : 0;
  };
  Standing at;
  at.step = integer("step");
  at.sums = {number("losses", 0), integer("correct"), integer("seen"), number("low", 0), number("high", 0)};
  at.start = read_score(told, "start");
  at.score = read_score(told, "score");
  at.best = read_score(told, "best");
  at.best_step = integer("best_step");
  at.ended = integer("ended");
  at.share = number("share", NAN);
  const json::Value* flips = told.find("flips");
  at.flips = !flips || !flips->is_bool() || flips->boolean();
  at.left_out = number("left_out", NAN);
  at.kept_before = number("kept_before", NAN);
  at.kept = number("kept", NAN);
  at.unknown = read_unknown(told, "unknown");
  return at;
}

// A parameter's arrays as they lie in memory: its values, and each moment of its optimizer.
struct StoredArray {
  std::string name;
  DType dtype;
  void* data;
  int64_t elements;
  int64_t bytes() const { return elements * static_cast<int64_t>(item_size(dtype)); }
};

// Calls visit(StoredArray) for all of them; a parameter's parts lie one behind the other.
template <typename Visit>
void for_each_array(const Program& program, Visit visit) {
  for (const Parameter& parameter : program.parameters) {
    if (!parameter.trains()) continue;
    const Trained& trained = program.parts[static_cast<size_t>(parameter.first_part)].trained;
    if (trained.bf16) {
      visit(StoredArray{"value/" + parameter.name, DType::kBF16, trained.bf16, parameter.elements});
    } else {
      visit(StoredArray{"value/" + parameter.name, DType::kF32, trained.f32, parameter.elements});
    }
    const Moment* moments[] = {&trained.first, &trained.second};
    for (int i = 0; i < 2; ++i) {
      const std::string name = "state" + std::to_string(i) + "/" + parameter.name;
      if (moments[i]->f32) visit(StoredArray{name, DType::kF32, moments[i]->f32, parameter.elements});
      if (!moments[i]->codes) continue;
      int64_t scales = 0;
      for (int32_t part = 0; part < parameter.parts; ++part) {
        const int64_t elements = program.parts[static_cast<size_t>(parameter.first_part + part)].elements;
        scales += (elements + kMomentBlock - 1) / kMomentBlock;
      }
      visit(StoredArray{name + "/codes", DType::kU8, moments[i]->codes, parameter.elements});
      visit(StoredArray{name + "/scales", DType::kF32, moments[i]->scales, scales});
    }
  }
}

}  // namespace

void write_adapter(const std::string& path, const Program& program, const std::string& bundle,
                   const std::vector<std::string>& classes, const Standing& at) {
  std::vector<TensorToWrite> tensors;
  uint32_t crc = 0;
  for (const Parameter& parameter : program.parameters) {
    if (!parameter.trains()) continue;
    const auto produce = [&program, &parameter](const Sink& put) { put_rows(program, parameter, put); };
    produce([&](const void* data, size_t bytes) { crc = crc32(crc, data, bytes); });
    tensors.push_back({parameter.name, DType::kF32, parameter.shape, nullptr,
                       static_cast<size_t>(parameter.elements) * sizeof(float), produce});
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
                 {"steps", std::to_string(at.step)},
                 {"logits", "[" + precise(at.sums.low) + ", " + precise(at.sums.high) + "]"},
                 {"unknown_below", at.unknown.known() ? precise(at.unknown.below) : ""},
                 {"crc32", digits}});
}

void read_adapter(const std::string& path, Program& program) {
  each_row(open_adapter(path), program,
           [&](const Parameter& parameter, int64_t row, const float* values) { set_row(program, parameter, row, values); });
}

void blend(const std::string& path, double share, Program& program) {
  std::vector<float> own;
  each_row(open_adapter(path), program, [&](const Parameter& parameter, int64_t row, const float* values) {
    own.resize(static_cast<size_t>(parameter.elements / parameter.shape[0]));
    get_row(program, parameter, row, own.data());
    for (size_t i = 0; i < own.size(); ++i) own[i] = values[i] + static_cast<float>(share) * (own[i] - values[i]);
    set_row(program, parameter, row, own.data());
  });
}

void add_range(const std::string& path, EpochSums& sums) {
  const TensorFile file = open_adapter(path);
  const std::string damaged = path + " is damaged: it does not say the range of its logits.";
  const json::Value ends = json::parse_or_fail(metadata(file, "logits"), kDamaged, damaged.c_str());
  if (ends.size() != 2) fail(kDamaged, "%s", damaged.c_str());
  sums.low = std::min(sums.low, ends[0].number());
  sums.high = std::max(sums.high, ends[1].number());
}

void forget_moments(const Program& program) {
  for_each_array(program, [](const StoredArray& array) {
    if (array.name.rfind("state", 0) == 0) std::memset(array.data, 0, static_cast<size_t>(array.bytes()));
  });
}

void write_checkpoint(const std::string& path, const Program& program, const Standing& at) {
  std::vector<TensorToWrite> tensors;
  uint32_t crc = 0;
  for_each_array(program, [&](const StoredArray& array) {
    tensors.push_back({array.name, array.dtype, {array.elements}, array.data, static_cast<size_t>(array.bytes())});
    crc = crc32(crc, array.data, static_cast<size_t>(array.bytes()));
  });
  // The widest elements first, so that every tensor is aligned in the file.
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) {
    return item_size(a.dtype) > item_size(b.dtype);
  });
  write_tensors(path, tensors,
                {{"format", kCheckpointFormat},
                 {"version", "3"},
                 {"standing", standing_text(at)},
                 {"crc32", std::to_string(crc)}});
}

Standing read_checkpoint(const std::string& path, Program& program) {
  const TensorFile file = TensorFile::open(path);
  if (metadata(file, "format") != kCheckpointFormat || metadata(file, "version") != "3")
    fail(kDamaged, "%s is no checkpoint of this tinytl-edge.", path.c_str());
  uint32_t crc = 0;
  for_each_array(program, [&](const StoredArray& array) {
    file.read(matching(file, array.name, array.dtype, array.bytes()), array.data);
    crc = crc32(crc, array.data, static_cast<size_t>(array.bytes()));
  });
  if (metadata(file, "crc32") != std::to_string(crc))
    fail(kDamaged, "%s is damaged: its contents have changed since it was written.", path.c_str());
  const std::string damaged = path + " is damaged: it does not say where training stands.";
  return standing_from(json::parse_or_fail(metadata(file, "standing"), kDamaged, damaged.c_str()));
}

}  // namespace tinytl
