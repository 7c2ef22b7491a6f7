// Damage by chance: whatever it does, the answer is a sentence or a sound file, never a crash.
#include <cstring>

#include "dataset.h"
#include "sampling.h"
#include "testing.h"

namespace tinytl {
namespace {

void use_tensors(const std::string& path) {
  const TensorFile file = TensorFile::open(path);
  for (const TensorEntry& entry : file.entries()) {
    std::vector<char> content(static_cast<size_t>(entry.bytes));
    file.read(entry, content.data());
    const MappedTensor mapped = file.map(entry);
    CHECK(content.empty() || std::memcmp(mapped.data(), content.data(), content.size()) == 0);
  }
}

void use_dataset(const std::string& path) {
  const Dataset dataset = Dataset::open(path);
  std::vector<uint8_t> pixels(dataset.image_bytes());
  for (uint32_t i = 0; i < dataset.count(); ++i) dataset.read_image(i, pixels.data());
}

}  // namespace

void test_random_damage() {
  const std::string tensors = read_raw(write_example_tensors("sound"));
  const std::string dataset = read_raw(write_example_dataset("sound", {1, 0}));
  const std::string path = in_folder("flipped");
  uint64_t n = 0;
  const auto random = [&n](size_t below) { return static_cast<size_t>(draw(77, n++) % below); };
  for (int round = 0; round < 6000; ++round) {
    std::string content = round % 2 == 0 ? tensors : dataset;
    const size_t header = 8 + static_cast<unsigned char>(content[0]) + 256 * static_cast<unsigned char>(content[1]);
    for (size_t flips = 1 + random(3); flips > 0; --flips) {
      char& victim = content[random(header)];
      switch (random(4)) {
        case 0:
          victim = static_cast<char>(victim ^ (1 << random(8)));
          break;
        case 1:
          victim = static_cast<char>(random(256));
          break;
        case 2:
          victim = "0123456789[]{},:\"\\-e. "[random(22)];
          break;
        default:
          content[random(content.size())] = static_cast<char>(random(256));
      }
    }
    if (random(10) == 0) content.resize(random(content.size()));
    if (random(20) == 0) content.append(random(9), 'x');
    write_raw(path, content);
    const int as_tensors = failure_of([&] { use_tensors(path); }).exit_code;
    const int as_dataset = failure_of([&] { use_dataset(path); }).exit_code;
    CHECK(as_tensors == kDone || as_tensors == kDamaged);
    CHECK(as_dataset == kDone || as_dataset == kDamaged);
  }
}

}  // namespace tinytl
