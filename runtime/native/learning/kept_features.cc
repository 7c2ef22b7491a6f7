#include "kept_features.h"

#include "../bfloat16.h"
#include "../json.h"

namespace tinytl {
namespace {

constexpr char kFormat[] = "tinytl-edge-features", kVersion[] = "1";

}  // namespace

KeptFeatures KeptFeatures::open(const std::string& path, int64_t features, int classes) {
  KeptFeatures kept(TensorFile::open(path));
  const TensorFile& file = kept.file_;
  const std::string *format = file.metadata("format"), *version = file.metadata("version");
  if (!format || *format != kFormat || !version || *version != kVersion)
    fail(kDamaged, "%s is no file of features of tinytl-edge.", path.c_str());
  const TensorEntry &labels = file.entry("labels"), &numbers = file.entry("features");
  if (labels.dtype != DType::kI32 || labels.shape.size() != 1 || numbers.dtype != DType::kBF16 ||
      numbers.shape != Shape{labels.shape[0], features})
    fail(kDamaged, "%s is damaged: its features are not those of this network.", path.c_str());
  kept.length_ = features;
  kept.labels_.resize(static_cast<size_t>(labels.shape[0]));
  file.read(labels, kept.labels_.data());
  for (const int32_t label : kept.labels_)
    if (label < 0 || label >= classes) fail(kDamaged, "%s is damaged: the label %d is no class.", path.c_str(), label);
  return kept;
}

void KeptFeatures::read(int64_t index, float* features) const {
  std::vector<uint16_t> stored(static_cast<size_t>(length_));
  const size_t bytes = stored.size() * sizeof(uint16_t);
  file_.read_part(file_.entry("features"), static_cast<uint64_t>(index) * bytes, bytes, stored.data());
  for (size_t i = 0; i < stored.size(); ++i) features[i] = from_bfloat16(stored[i]);
}

void write_features(const std::string& path, const Rows& rows, int64_t length, const std::vector<int32_t>& labels,
                    const std::vector<std::string>& classes) {
  const auto produce = [&](const Sink& put) {
    std::vector<float> row(static_cast<size_t>(rows.width()));
    std::vector<uint16_t> stored(static_cast<size_t>(length));
    for (int64_t i = 0; i < rows.count(); ++i) {
      rows.read(i, 1, row.data());
      for (size_t k = 0; k < stored.size(); ++k) stored[k] = to_bfloat16(row[k]);
      put(stored.data(), stored.size() * sizeof(uint16_t));
    }
  };
  json::Writer names;
  names.begin_array();
  for (const std::string& name : classes) names.text(name);
  names.end_array();
  const size_t bytes = static_cast<size_t>(rows.count() * length) * sizeof(uint16_t);
  write_tensors(path,
                {{"labels", DType::kI32, {rows.count()}, labels.data(), labels.size() * sizeof(int32_t)},
                 {"features", DType::kBF16, {rows.count(), length}, nullptr, bytes, produce}},
                {{"format", kFormat}, {"version", kVersion}, {"classes", names.str()}});
}

}  // namespace tinytl
