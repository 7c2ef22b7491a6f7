#include "dataset.h"

#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <numeric>

#include "json.h"

namespace tinytl {

namespace {

constexpr char kFormat[] = "tinytl-edge-dataset";
constexpr char kVersion[] = "3";
constexpr int32_t kLargest = 16384;  // pixels of a side

[[noreturn]] void damaged(const std::string& path, const std::string& what) {
  fail(kDamaged, "%s is not a usable dataset: %s.", path.c_str(), what.c_str());
}

// A side in pixels, without a leading zero.
int32_t side_from(const TensorFile& file, const char* name) {
  const std::string* text = file.metadata(name);
  int32_t side = 0;
  bool digits = text != nullptr && !text->empty() && text->size() <= 5 && (*text)[0] != '0';
  for (size_t i = 0; digits && i < text->size(); ++i) {
    const char c = (*text)[i];
    digits = c >= '0' && c <= '9';
    side = 10 * side + (c - '0');
  }
  if (!digits || side > kLargest) damaged(file.path(), std::string("its ") + name + " is not a number of pixels");
  return side;
}

bool is_one_of(const std::string* text, std::initializer_list<const char*> words) {
  for (const char* word : words)
    if (text != nullptr && *text == word) return true;
  return false;
}

bool classes_from(const std::string* text, std::vector<std::string>* classes) {
  const std::optional<json::Value> names = text == nullptr ? std::nullopt : json::parse(*text);
  if (!names || !names->is_array()) return false;
  for (size_t i = 0; i < names->size(); ++i) {
    if (!(*names)[i].is_string()) return false;
    classes->push_back((*names)[i].string());
  }
  return true;
}

void check_labels(const TensorFile& file, const TensorEntry& entry, DType dtype, const Shape& shape) {
  if (entry.dtype != dtype || entry.shape != shape)
    damaged(file.path(), "its labels are " + typed(entry.dtype, entry.shape) + ", not " + typed(dtype, shape));
  if (shape[0] == 0) damaged(file.path(), "it has no samples");
  if (shape[0] > INT32_MAX) damaged(file.path(), "it has more samples than this trainer can count");
}

std::vector<int32_t> read_labels(const TensorFile& file, const TensorEntry& entry, int64_t count, size_t class_count) {
  check_labels(file, entry, DType::kI32, Shape{count});
  std::vector<int32_t> labels(static_cast<size_t>(count));
  file.read(entry, labels.data());
  for (size_t i = 0; i < labels.size(); ++i) {
    const bool allowed = class_count == 0 ? labels[i] == kUnlabelled
                                          : labels[i] >= 0 && static_cast<size_t>(labels[i]) < class_count;
    if (!allowed) {
      damaged(file.path(), "the label " + std::to_string(labels[i]) + " of sample " + std::to_string(i) +
                               " is none of its " + std::to_string(class_count) + " classes");
    }
  }
  return labels;
}

// Multi-label: for each of its classes whether it has it, 0 or 1.
std::vector<uint8_t> read_marks(const TensorFile& file, const TensorEntry& entry, int64_t count, size_t class_count) {
  if (class_count == 0) damaged(file.path(), "it is multi-label, but has no classes");
  check_labels(file, entry, DType::kU8, Shape{count, static_cast<int64_t>(class_count)});
  std::vector<uint8_t> marks(static_cast<size_t>(count) * class_count);
  file.read(entry, marks.data());
  for (size_t i = 0; i < marks.size(); ++i)
    if (marks[i] > 1)
      damaged(file.path(), "the label " + std::to_string(marks[i]) + " of sample " + std::to_string(i / class_count) +
                               " is neither 0 nor 1");
  return marks;
}

}  // namespace

Dataset Dataset::open(const std::string& path) {
  Dataset dataset;
  dataset.file_ = TensorFile::open(path);
  const TensorFile& file = dataset.file_;
  const std::string* format = file.metadata("format");
  if (format == nullptr || *format != kFormat) damaged(path, "it was not written by 'tinytl-edge pack'");
  const std::string* version = file.metadata("version");
  if (version == nullptr || *version != kVersion) {
    damaged(path, "it has version " + (version == nullptr ? "None" : quoted(*version)) + ", not '" + kVersion +
                      "', so pack the images again");
  }
  dataset.input_.height = side_from(file, "height");
  dataset.input_.width = side_from(file, "width");
  const std::string* channels = file.metadata("channels");
  if (!is_one_of(channels, {"1", "3"})) damaged(path, "its channels are neither 1 nor 3");
  dataset.channels_ = *channels == "1" ? 1 : 3;
  if (!is_one_of(file.metadata("fit"), {"crop", "squash", "pad"})) damaged(path, "its fit is none of crop, squash, pad");
  const std::string* margin = file.metadata("margin");
  if (!is_one_of(margin, {"true", "false"})) damaged(path, "its margin is neither true nor false");
  dataset.stored_ = stored_size(dataset.input_, *margin == "true");
  if (!classes_from(file.metadata("classes"), &dataset.classes_)) damaged(path, "its classes are not a list of names");
  const std::string* labels = file.metadata("labels");
  dataset.multi_label_ = labels != nullptr && *labels == "multi";
  if (labels != nullptr && !dataset.multi_label_ && *labels != "single") damaged(path, "its labels are of an unknown kind");
  for (const char* name : {"images", "labels"}) {
    if (file.find(name) == nullptr) damaged(path, std::string("it has no tensor '") + name + "'");
  }

  const TensorEntry& images = file.entry("images");
  const Size stored = dataset.stored_, input = dataset.input_;
  const Shape& shape = images.shape;
  if (images.dtype != DType::kU8 || shape.size() != 4 || shape[1] != stored.height || shape[2] != stored.width ||
      shape[3] != dataset.channels_) {
    const std::string pixels = std::to_string(stored.height) + ", " + std::to_string(stored.width) + ", " + *channels;
    damaged(path, "its images are " + typed(images.dtype, shape) + ", not U8 [N, " + pixels + "] as an input of " +
                      std::to_string(input.height) + " x " + std::to_string(input.width) + " px needs");
  }
  if (dataset.multi_label_) {
    dataset.marks_ = read_marks(file, file.entry("labels"), shape[0], dataset.classes_.size());
  } else {
    dataset.labels_ = read_labels(file, file.entry("labels"), shape[0], dataset.classes_.size());
  }
  dataset.count_ = static_cast<uint32_t>(shape[0]);
  const uint64_t image_bytes = uint64_t(stored.height) * uint64_t(stored.width) * uint64_t(dataset.channels_);
  if (image_bytes > SIZE_MAX) damaged(path, "one image does not fit the memory of a 32-bit system");
  dataset.image_bytes_ = static_cast<size_t>(image_bytes);
  dataset.images_ = &images;
  return dataset;
}

std::vector<uint32_t> Dataset::all() const {
  std::vector<uint32_t> numbers(count_);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

void Dataset::read_image(uint32_t index, uint8_t* out) const {
  file_.read_part(*images_, uint64_t{index} * image_bytes_, image_bytes_, out);
}

}  // namespace tinytl
