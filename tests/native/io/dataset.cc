// Datasets: read, and every kind of damage named.
#include <cinttypes>
#include <cstring>

#include "dataset.h"
#include "sampling.h"
#include "testing.h"

namespace tinytl {
namespace {

const float kWeights[] = {1, 2, 3, 4, 5, -0.0f};

constexpr int32_t kHeight = 8, kWidth = 16, kImageBytes = kHeight * kWidth * 3;  // stored for an input of 7 x 14

Metadata dataset_metadata(const char* classes) {
  return {{"format", "tinytl-edge-dataset"}, {"version", "3"},  {"classes", classes}, {"height", "7"},
          {"width", "14"},                   {"channels", "3"}, {"fit", "crop"},      {"margin", "true"}};
}

std::string write_dataset(const char* name, const std::vector<int32_t>& labels, const Metadata& changes = {},
                          int64_t width = kWidth) {
  Metadata metadata = dataset_metadata("[\"cat\", \"d\u00f6g\"]");
  for (const auto& [key, value] : changes) {
    for (auto& [existing, old] : metadata) {
      if (existing == key) old = value;
    }
  }
  const int64_t count = static_cast<int64_t>(labels.size());
  std::vector<uint8_t> images(labels.size() * static_cast<size_t>(kHeight * width * 3));
  for (size_t i = 0; i < images.size(); ++i) images[i] = static_cast<uint8_t>(draw(9, i));
  const std::string path = in_folder(name);
  write_tensors(path,
                {{"images", DType::kU8, {count, kHeight, width, 3}, images.data(), images.size()},
                 {"labels", DType::kI32, {count}, labels.data(), 4 * labels.size()}},
                metadata);
  return path;
}

void test_dataset() {
  const Size stored = stored_size({224, 8}, true), own = stored_size({224, 8}, false);
  CHECK(stored.height == 256 && stored.width == 10 && own.height == 224 && own.width == 8);
  CHECK(stored_size({7, 16384}, true).height == 8 && stored_size({7, 16384}, true).width == 18725);
  Dataset dataset = Dataset::open(write_dataset("data", {1, 0, 1}));
  dataset = Dataset(std::move(dataset));
  CHECK(dataset.count() == 3 && dataset.input().height == 7 && dataset.input().width == 14 && dataset.channels() == 3);
  CHECK(dataset.stored().height == kHeight && dataset.stored().width == kWidth);
  CHECK(dataset.classes() == (std::vector<std::string>{"cat", "d\u00f6g"}) && dataset.label(0) == 1);
  CHECK(dataset.image_bytes() == kImageBytes);
  std::vector<uint8_t> pixels(kImageBytes);
  for (uint32_t i : {2u, 0u, 1u}) {
    dataset.read_image(i, pixels.data());
    CHECK(pixels[0] == static_cast<uint8_t>(draw(9, i * kImageBytes)));
    CHECK(pixels.back() == static_cast<uint8_t>(draw(9, (i + 1) * kImageBytes - 1)));
  }
  CHECK(Dataset::open(write_dataset("data", {-1, -1}, {{"classes", "[]"}})).label(1) == kUnlabelled);

  const auto fault = [](const char* message, const std::string& path) {
    return fails(kDamaged, message, [&] { Dataset::open(path); });
  };
  CHECK(fault("was not written by 'tinytl-edge pack'", write_dataset("d", {0}, {{"format", "x"}})));
  CHECK(fault("was not written by 'tinytl-edge pack'", write_example_tensors("d")));
  CHECK(fault("it has version '1', not '3', so pack", write_dataset("d", {0}, {{"version", "1"}})));
  for (const char* side : {"", "0", "07", "-7", "7.0", "x", "123456", " 7", "16385"}) {
    CHECK(fault("its height is not a number of pixels", write_dataset("d", {0}, {{"height", side}})));
    CHECK(fault("its width is not a number of pixels", write_dataset("d", {0}, {{"width", side}})));
  }
  for (const char* word : {"", "2", "31", "True"}) {
    CHECK(fault("its channels are neither 1 nor 3", write_dataset("d", {0}, {{"channels", word}})));
    CHECK(fault("its fit is none of crop, squash, pad", write_dataset("d", {0}, {{"fit", word}})));
    CHECK(fault("its margin is neither true nor false", write_dataset("d", {0}, {{"margin", word}})));
  }
  for (const char* classes : {"", "{}", "[1]", "[\"a\", null]", "[", "\"cat\""}) {
    CHECK(fault("its classes are not a list of names", write_dataset("d", {0}, {{"classes", classes}})));
  }
  CHECK(fault("its images are U8 [1, 8, 16, 3], not U8 [N, 10, 16, 3] as an input of 8 x 14 px needs",
              write_dataset("d", {0}, {{"height", "8"}})));
  CHECK(fault("not U8 [N, 8, 16, 3]", write_dataset("d", {0}, {}, 9)));
  CHECK(fault("not U8 [N, 8, 16, 1]", write_dataset("d", {0}, {{"channels", "1"}})));
  CHECK(fault("not U8 [N, 7, 14, 3]", write_dataset("d", {0}, {{"margin", "false"}})));
  CHECK(fault("it has no samples", write_dataset("d", {})));
  CHECK(fault("the label 2 of sample 1 is none of its 2 classes", write_dataset("d", {0, 2})));
  CHECK(fault("the label -1 of sample 0 is none of its 2 classes", write_dataset("d", {-1})));
  CHECK(fault("the label 0 of sample 0 is none of its 0 classes", write_dataset("d", {0}, {{"classes", "[]"}})));

  const Metadata metadata = dataset_metadata("[\"a\"]");
  const std::vector<uint8_t> image(kImageBytes);
  const std::string path = in_folder("d");
  write_tensors(path, {{"labels", DType::kI32, {1}, kWeights, 4}}, metadata);
  CHECK(fault("it has no tensor 'images'", path));
  write_tensors(path, {{"images", DType::kU8, {1, kHeight, kWidth, 3}, image.data(), image.size()}}, metadata);
  CHECK(fault("it has no tensor 'labels'", path));
  write_tensors(path,
                {{"images", DType::kU8, {1, kHeight, kWidth, 3}, image.data(), image.size()},
                 {"labels", DType::kF32, {1}, kWeights, 4}},
                metadata);
  CHECK(fault("its labels are F32 [1], not I32 [1]", path));
}

}  // namespace

std::string write_example_dataset(const char* name, const std::vector<int32_t>& labels) {
  return write_dataset(name, labels);
}

void test_datasets() { test_dataset(); }

int print_dataset(const char* path) {
  const Dataset dataset = Dataset::open(path);
  std::printf("%" PRIu32 " %d %d %d %d %d\n", dataset.count(), dataset.input().height, dataset.input().width,
              dataset.stored().height, dataset.stored().width, dataset.channels());
  for (const std::string& name : dataset.classes()) std::printf("%s\n", name.c_str());
  std::vector<uint8_t> pixels(dataset.image_bytes());
  for (uint32_t i = 0; i < dataset.count(); ++i) {
    dataset.read_image(i, pixels.data());
    if (dataset.multi_label()) {
      for (size_t c = 0; c < dataset.classes().size(); ++c) std::printf("%d", dataset.marks(i)[c]);
    } else {
      std::printf("%d", dataset.label(i));
    }
    std::printf(" %08" PRIx32 "\n", crc32(0, pixels.data(), pixels.size()));
  }
  return 0;
}

}  // namespace tinytl
