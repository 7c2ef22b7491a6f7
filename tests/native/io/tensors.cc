// Safetensors files: written, read, mapped; whole, cut short and damaged.
#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "safetensors.h"
#include "testing.h"

namespace tinytl {
namespace {

const float kWeights[6] = {1, 2, 3, 4, 5, -0.0f};
const uint8_t kBytes[3] = {7, 8, 9};

std::string write_example(const char* name) {
  const std::string path = in_folder(name);
  write_tensors(path,
                {{"conv.weight", DType::kF32, {2, 3}, kWeights, sizeof kWeights},
                 {"none", DType::kI64, {0, 5}, nullptr, 0},
                 {"bytes", DType::kU8, {3}, kBytes, sizeof kBytes},
                 {"scalar", DType::kU8, {}, kBytes, 1}},
                {{"format", "t\u00e9st"}, {"empty", ""}});
  return path;
}

void test_tensors_round_trip() {
  const std::string path = write_example("example.safetensors");
  const TensorFile file = TensorFile::open(path);
  CHECK(file.entries().size() == 4 && file.entries()[2].name == "bytes");
  CHECK(file.metadata().size() == 2 && *file.metadata("format") == "t\u00e9st" && file.metadata("x") == nullptr);
  const TensorEntry& weight = file.entry("conv.weight");
  CHECK(weight.dtype == DType::kF32 && weight.shape == (Shape{2, 3}) && weight.bytes == 24 && weight.start % 8 == 0);
  CHECK(typed(weight.dtype, weight.shape) == "F32 [2, 3]");
  float values[6];
  file.read(weight, values);
  CHECK(std::memcmp(values, kWeights, sizeof values) == 0);
  file.read_part(weight, 8, 4, values);
  CHECK(values[0] == 3);
  file.read_part(weight, 24, 0, values);
  CHECK(fails(kInternal, "were asked for", [&] { file.read_part(weight, 24, 1, values); }));
  CHECK(fails(kInternal, "were asked for", [&] { file.read_part(weight, ~uint64_t{0}, 2, values); }));
  CHECK(fails(kDamaged, "has no tensor named 'x'", [&] { file.entry("x"); }));
  CHECK(file.find("x") == nullptr && file.find("bytes") == &file.entries()[2]);

  MappedTensor bytes = file.map(file.entry("bytes"));
  CHECK(bytes.bytes() == 3 && std::memcmp(bytes.data(), kBytes, 3) == 0);
  bytes = file.map(weight);
  const MappedTensor moved = std::move(bytes);
  CHECK(moved.bytes() == 24 && std::memcmp(moved.data(), kWeights, 24) == 0);
  CHECK(file.map(file.entry("none")).data() == nullptr);

  // Replaced, the open file stays what it was; the mapping too.
  write_tensors(path, {}, {});
  CHECK(read_raw(path) == std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  file.read(weight, values);
  CHECK(values[5] == 0 && std::memcmp(moved.data(), kWeights, 24) == 0);
  CHECK(TensorFile::open(path).entries().empty());
  CHECK(crc32(0, "123456789", 9) == 0xCBF43926 && crc32(crc32(0, "1234", 4), "56789", 5) == 0xCBF43926);
}

void test_shortened_file() {
  const std::string path = write_example("shortened.safetensors");
  const TensorFile file = TensorFile::open(path);
  const TensorEntry& weight = file.entry("conv.weight");
  CHECK(::truncate(path.c_str(), static_cast<off_t>(weight.start + 4)) == 0);
  float values[6];
  CHECK(fails(kDamaged, "ends inside tensor 'conv.weight': copy the file again.", [&] { file.read(weight, values); }));
  CHECK(fails(kDamaged, "ends inside tensor 'conv.weight'", [&] { (void)file.map(weight); }));
}

void test_damaged_tensors() {
  struct Case {
    const char* message;
    std::string content;
  };
  const auto entry = [](const char* fields, std::string_view data = "") {
    return with_header(std::string("{\"t\":{") + fields + "}}", data);
  };
  const std::string sound = "\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]";
  const Case cases[] = {
      {"shorter than its own header", ""},
      {"shorter than its own header", "1234567"},
      {"its header claims 18446744073709551615 bytes", std::string(8, '\xFF') + "{}"},
      {"its header claims 16777217 bytes", std::string("\1\0\0\1\0\0\0\0{}", 10)},
      {"it ends inside its header", std::string("\3\0\0\0\0\0\0\0{}", 10)},
      {"its header is not JSON", with_header("", "")},
      {"its header is not JSON", with_header("{", "")},
      {"its header is not JSON", with_header("{\"\xFF\":1}", "")},
      {"its header is not JSON", with_header(std::string(100000, '['), "")},
      {"its header is not a JSON object", with_header("[]", "")},
      {"its header is not a JSON object", with_header("null", "")},
      {"its metadata is not a table of strings", with_header("{\"__metadata__\":[]}", "")},
      {"its metadata is not a table of strings", with_header("{\"__metadata__\":{\"a\":1}}", "")},
      {"its metadata is not a table of strings", with_header("{\"__metadata__\":null}", "")},
      {"tensor 't' is malformed", with_header("{\"t\":1}", "")},
      {"tensor 't' is malformed", with_header("{\"t\":[]}", "")},
      {"tensor 't' is malformed", with_header("{\"t\":{}}", "")},
      {"is malformed", entry("\"shape\":[2],\"data_offsets\":[0,2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"data_offsets\":[0,2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U9\",\"shape\":[2],\"data_offsets\":[0,2]", "ab")},
      {"is malformed", entry("\"dtype\":8,\"shape\":[2],\"data_offsets\":[0,2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":2,\"data_offsets\":[0,2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[2.0],\"data_offsets\":[0,2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[true],\"data_offsets\":[0,1]", "a")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[-2],\"data_offsets\":[0,2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2,2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[-2,0]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2e0]", "ab")},
      {"is malformed", entry("\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,2]", "ab")},
      {"has -2 bytes", entry("\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,0]", "ab")},
      {"has 2 bytes", entry("\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,2]", "ab")},
      {"has 2 bytes", entry("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,2]", "ab")},
      {"has 0 bytes", entry("\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]")},
      {"has 0 bytes", entry("\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]")},
      {"does not begin where the one before it ends",
       entry("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]", "ab")},
      {"does not begin where the one before it ends",
       with_header("{\"a\":{" + sound + "},\"b\":{" + sound + "}}", "abab")},
      {"does not begin where the one before it ends",
       entry("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9223372036854775806,9223372036854775807]", "ab")},
      {"bytes where its header describes", entry(sound.c_str(), "a")},
      {"bytes where its header describes", entry(sound.c_str(), "abc")},
      {"bytes where its header describes",
       entry("\"dtype\":\"U8\",\"shape\":[9223372036854775807],\"data_offsets\":[0,9223372036854775807]", "ab")},
  };
  const std::string path = in_folder("damaged.safetensors");
  for (const Case& damage : cases) {
    write_raw(path, damage.content);
    CHECK(fails(kDamaged, damage.message, [&] { TensorFile::open(path); }));
  }
  write_raw(path, entry(sound.c_str(), "ab"));
  CHECK(TensorFile::open(path).entry("t").bytes == 2);
  write_raw(path, entry("\"dtype\":\"U8\",\"shape\":[9223372036854775807,0,3],\"data_offsets\":[0,0]"));
  CHECK(TensorFile::open(path).entry("t").bytes == 0);
  CHECK(fails(kDamaged, "does not exist.", [] { TensorFile::open(in_folder("missing")); }));
  CHECK(fails(kDamaged, "cannot be read: Is a directory.", [] { TensorFile::open(g_folder); }));
  CHECK(fails(kDamaged, "cannot be read: it is not a file.", [] { TensorFile::open("/dev/null"); }));
}

void test_writing() {
  const std::string path = in_folder("new/folder/file.safetensors");
  write_tensors(path, {{"a", DType::kU8, {3}, kBytes, 3}}, {});
  const std::string before = read_raw(path);
  CHECK(before.size() % 8 == 3 && TensorFile::open(path).entry("a").start % 8 == 0);

  const auto write_to = [](const std::string& to) { write_tensors(to, {{"a", DType::kU8, {3}, kBytes, 3}}, {}); };
  CHECK(fails(kStorage, "could not be written: there is something of that name", [&] { write_to(g_folder); }));
  CHECK(fails(kStorage, "could not be written: there is something of that name", [&] { write_to("/dev/null"); }));
  CHECK(fails(kStorage, "could not be written: Not a directory.", [&] { write_to(path + "/below"); }));
  CHECK(fails(kStorage, "could not be written", [] { AtomicFile file("/proc/no/file"); }));
  CHECK(fails(kStorage, std::strerror(ENAMETOOLONG),
              [&] { write_to(in_folder(std::string(300, 'x').c_str())); }));
  CHECK(fails(kInternal, "cannot be written", [&] {
    write_tensors(path, {{"a", DType::kU8, {3}, kBytes, 3}, {"a", DType::kU8, {3}, kBytes, 3}}, {});
  }));
  CHECK(fails(kInternal, "cannot be written", [&] { write_tensors(path, {{"a", DType::kU8, {4}, kBytes, 3}}, {}); }));
  CHECK(fails(kInternal, "cannot be written",
              [&] { write_tensors(path, {{"__metadata__", DType::kU8, {3}, kBytes, 3}}, {}); }));

  // A disk that is full half-way: the limit of a file's size stands in for it.
  rlimit limit, all;
  ::getrlimit(RLIMIT_FSIZE, &all);
  limit = all;
  limit.rlim_cur = 1000;
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const std::vector<uint8_t> big(5000);
  CHECK(fails(kStorage, "could not be written: File too large.",
              [&] { write_tensors(path, {{"a", DType::kU8, {5000}, big.data(), big.size()}}, {}); }));
  ::setrlimit(RLIMIT_FSIZE, &all);
  CHECK(read_raw(path) == before);

  {
    AtomicFile abandoned(path);
    abandoned.write("x", 1);
  }
  CHECK(read_raw(path) == before);
  CHECK(::unlink(path.c_str()) == 0 && ::rmdir(in_folder("new/folder").c_str()) == 0);  // nothing else was left
  if (::chdir(g_folder.c_str()) != 0) std::abort();
  write_to("r/x");  // a relative path, with a folder of one letter
  write_to("plain");
  struct stat status;
  CHECK(::stat("r/x", &status) == 0 && ::stat("plain", &status) == 0 && (status.st_mode & 0777) != 0600);
}

}  // namespace

std::string write_example_tensors(const char* name) { return write_example(name); }

void test_tensors() {
  test_tensors_round_trip();
  test_shortened_file();
  test_damaged_tensors();
  test_writing();
}

int print_tensors(const char* path) {
  const TensorFile file = TensorFile::open(path);
  for (const auto& [key, value] : file.metadata()) std::printf("%s = %s\n", key.c_str(), value.c_str());
  for (const TensorEntry& entry : file.entries()) {
    std::vector<char> content(static_cast<size_t>(entry.bytes));
    file.read(entry, content.data());
    std::printf("%s %s %" PRIu64 " %08" PRIx32 "\n", entry.name.c_str(), typed(entry.dtype, entry.shape).c_str(),
                entry.start, crc32(0, content.data(), content.size()));
  }
  return 0;
}

int copy_tensors(const char* from, const char* to) {
  const TensorFile file = TensorFile::open(from);
  std::vector<MappedTensor> contents;
  std::vector<TensorToWrite> tensors;
  for (const TensorEntry& entry : file.entries()) {
    contents.push_back(file.map(entry));
    tensors.push_back({entry.name, entry.dtype, entry.shape, contents.back().data(), contents.back().bytes()});
  }
  write_tensors(to, tensors, file.metadata());
  return 0;
}

}  // namespace tinytl
