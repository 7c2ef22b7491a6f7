// Tests of the trainer's input and output. A plain program: it prints what failed and ends with 1, or with 0.
//
//   io_test                                           runs all tests, on files in a new folder under $TMPDIR
//   io_test sample SEED EPOCH COUNT HEIGHT WIDTH TO_HEIGHT TO_WIDTH CHANNELS   prints what sampling makes of a stored
//       image for an input of TO_HEIGHT x TO_WIDTH, for tests/test_native_sampling.py
//   io_test tensors FILE                              prints the checked header, or the exit code and the sentence
//   io_test dataset FILE                              the same for a dataset, with CRC-32s of labels and images
//   io_test copy FROM TO                              reads a safetensors file and writes it again
//   io_test json                                      reads JSON on standard input, prints it again, or "refused"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include "dataset.h"
#include "errors.h"
#include "events.h"
#include "json.h"
#include "safetensors.h"
#include "sampling.h"

namespace {

using namespace tinytl;

int g_failed = 0;
std::string g_folder;

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);   \
      ++g_failed;                                                           \
    }                                                                       \
  } while (false)

// The Failure that `action` ends with; exit code 0 where it does not.
template <typename Action>
Failure failure_of(const Action& action) {
  try {
    action();
  } catch (const Failure& failure) {
    return failure;
  }
  return {kDone, ""};
}

template <typename Action>
bool fails(int code, const char* part_of_message, const Action& action) {
  const Failure failure = failure_of(action);
  const bool as_expected = failure.exit_code == code && failure.message.find(part_of_message) != std::string::npos;
  if (!as_expected) std::printf("ended with %d: %s\n", failure.exit_code, failure.message.c_str());
  return as_expected;
}

std::string in_folder(const char* name) { return g_folder + "/" + name; }

void write_raw(const std::string& path, std::string_view content) {
  FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(content.data(), 1, content.size(), file) != content.size()) std::abort();
  std::fclose(file);
}

std::string read_raw(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return "";
  std::string content;
  char block[4096];
  for (size_t got; (got = std::fread(block, 1, sizeof block, file)) > 0;) content.append(block, got);
  std::fclose(file);
  return content;
}

std::string with_header(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string content(reinterpret_cast<const char*>(&length), sizeof length);
  return content.append(header).append(data);
}

// Writes `value` again, so that tests can compare text.
void rewrite(const json::Value& value, json::Writer* writer) {
  switch (value.kind()) {
    case json::Kind::kNull:
      writer->null();
      break;
    case json::Kind::kBool:
      writer->boolean(value.boolean());
      break;
    case json::Kind::kInteger:
      writer->integer(value.integer());
      break;
    case json::Kind::kNumber:
      writer->number(value.number());
      break;
    case json::Kind::kString:
      writer->text(value.string());
      break;
    case json::Kind::kArray:
      writer->begin_array();
      for (size_t i = 0; i < value.size(); ++i) rewrite(value[i], writer);
      writer->end_array();
      break;
    case json::Kind::kObject:
      writer->begin_object();
      for (size_t i = 0; i < value.size(); ++i) {
        writer->key(value.name(i));
        rewrite(value[i], writer);
      }
      writer->end_object();
      break;
  }
}

std::string rewritten(std::string_view text, const json::Limits& limits = {}) {
  const std::optional<json::Value> value = json::parse(text, limits);
  if (!value) return "refused";
  json::Writer writer;
  rewrite(*value, &writer);
  return writer.str();
}

// JSON -------------------------------------------------------------------------------------------------------------

void test_json_reading() {
  CHECK(rewritten(" [1, -2, 0.5, 1e3, -0, true, false, null, \"x\"] \n") ==
        "[1,-2,0.5,1000.0,0,true,false,null,\"x\"]");
  CHECK(rewritten("{\"a\": {}, \"b\": [], \"c\": [[1], {\"d\": 2}]}") == "{\"a\":{},\"b\":[],\"c\":[[1],{\"d\":2}]}");
  CHECK(rewritten("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20ac\\ud83d\\ude00\\u0000\"") ==
        "\"\\\"\\\\/\\b\\f\\n\\r\\t\u00e9\u20ac\U0001F600\\u0000\"");
  CHECK(rewritten("{\"a\":1,\"b\":2,\"a\":3,\"c\":4,\"b\":5,\"a\":6}") == "{\"a\":6,\"b\":5,\"c\":4}");
  CHECK(rewritten("9223372036854775807") == "9223372036854775807");
  CHECK(rewritten("-9223372036854775808") == "-9223372036854775808");
  CHECK(!json::parse("9223372036854775808")->is_integer());
  CHECK(json::parse("9223372036854775808")->number() == 0x1p63);
  CHECK(json::parse("9223372036854775808")->integer() == 0);
  CHECK(!json::parse("1.0")->is_integer() && json::parse("1.0")->is_number());
  CHECK(json::parse("{\"a\":1}")->find("b") == nullptr && json::parse("[1]")->find("a") == nullptr);

  const char* const refused[] = {
      "",      " ",      "{",        "}",         "[",        "]",        "[1,]",     "[,1]",       "{\"a\"}",
      "{,}",   "{1:2}",  "{\"a\":}", "[1 2]",     "1 2",      "01",       "-",        "+1",         ".5",
      "1.",    "1e",     "1e+",      "0x10",      "tru",      "True",     "nul",      "NaN",        "Infinity",
      "-Infinity", "1e999", "\"",    "\"a",       "\"\n\"",   "\"\\\"",   "\"\\x\"",  "\"\\u12\"",  "\"\\u12g4\"",
      "'a'",   "\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\u0041\"", "\"\xFF\"", "\"\xC0\xAF\"", "\"\xED\xA0\x80\"",
      "\"\xF4\x90\x80\x80\"", "\"\xE2\x82\"", "{\"a\":1,}", "[1]x", "\xEF\xBB\xBF[]", "\"\\", "\"\\u", "[1e5", "-x"};
  for (const char* text : refused) {
    if (rewritten(text) != "refused") std::printf("accepted: %s\n", text);
    CHECK(rewritten(text) == "refused");
  }
  CHECK(rewritten(std::string_view("[1]\0", 4)) == "refused");
  CHECK(rewritten(std::string_view("\"a\0b\"", 5)) == "refused");

  const json::Limits limits{.bytes = 1000, .values = 10, .depth = 4};
  CHECK(rewritten("[[[[[]]]]]", limits) == "[[[[[]]]]]");
  CHECK(rewritten("[[[[[[]]]]]]", limits) == "refused");
  CHECK(rewritten("[1,2,3,4,5,6,7,8,9]", limits) != "refused");
  CHECK(rewritten("[1,2,3,4,5,6,7,8,9,0]", limits) == "refused");
  CHECK(rewritten(std::string(998, ' ') + "12", limits) == "12");
  CHECK(rewritten(std::string(999, ' ') + "12", limits) == "refused");
  CHECK(rewritten(std::string(1000000, '[')) == "refused");
  CHECK(fails(kDamaged, "run.json is damaged.", [] { json::parse_or_fail("{", kDamaged, "run.json is damaged."); }));
  CHECK(json::parse_or_fail("3", kDamaged, "").integer() == 3);
}

void test_json_writing() {
  json::Writer writer;
  writer.begin_object().text("event", "step").integer("step", -3).number("loss", 0.1).boolean("last", false);
  writer.null("none").number("nan", std::nan("")).number("inf", -std::numeric_limits<double>::infinity());
  writer.begin_array("list").number(1).number(1e300).integer(2).text("x").boolean(true).null().begin_array();
  writer.end_array().begin_object().end_object().end_array().begin_object("o").end_object().end_object().end_line();
  CHECK(writer.str() ==
        "{\"event\":\"step\",\"step\":-3,\"loss\":0.1,\"last\":false,\"none\":null,\"nan\":null,\"inf\":null,"
        "\"list\":[1.0,1e+300,2,\"x\",true,null,[],{}],\"o\":{}}\n");
  writer.clear();
  writer.text("a\xFF\xE2\x82z\x01\x7F/");
  CHECK(writer.str() == "\"a\uFFFD\uFFFD\uFFFDz\\u0001\x7F/\"");

  // Every number reads back as the same, of any size.
  for (uint64_t i = 0; i < 20000; ++i) {
    const uint64_t bits = draw(1, i);
    double value;
    std::memcpy(&value, &bits, sizeof value);
    if (!std::isfinite(value)) continue;
    writer.clear();
    writer.number(value);
    const std::optional<json::Value> read = json::parse(writer.str());
    CHECK(read && read->number() == value && !read->is_integer());
  }
}

void test_events() {
  int ends[2];
  if (::pipe(ends) != 0) std::abort();
  Events events(ends[1]);
  events.begin("step").integer("step", 10).number("loss", 0.25);
  CHECK(events.send());
  events.begin("error").text("message", "two\nlines");
  CHECK(events.send());
  char read[200];
  const ssize_t got = ::read(ends[0], read, sizeof read);
  CHECK(std::string(read, static_cast<size_t>(std::max<ssize_t>(got, 0))) ==
        "{\"event\":\"step\",\"step\":10,\"loss\":0.25}\n{\"event\":\"error\",\"message\":\"two\\nlines\"}\n");
  ::close(ends[0]);
  ::close(ends[1]);
  events.begin("done");
  CHECK(!events.send());
}

// Tensors ----------------------------------------------------------------------------------------------------------

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

// Dataset ----------------------------------------------------------------------------------------------------------

constexpr int32_t kHeight = 8, kWidth = 16, kImageBytes = kHeight * kWidth * 3;  // stored for an input of 7 x 14

Metadata dataset_metadata(const char* classes) {
  return {{"format", "tinytl-edge-dataset"}, {"version", "2"},  {"classes", classes}, {"height", "7"},
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
  CHECK(fault("was not written by 'tinytl-edge pack'", write_example("d")));
  CHECK(fault("it has version '1', not '2', so pack", write_dataset("d", {0}, {{"version", "1"}})));
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

// Damage by chance: whatever it does, the answer is a sentence or a sound file, never a crash. ---------------------

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

void test_random_damage() {
  const std::string tensors = read_raw(write_example("sound"));
  const std::string dataset = read_raw(write_dataset("sound", {1, 0}));
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

// Sampling ---------------------------------------------------------------------------------------------------------

// A crop of just the input's size is copied exactly; the evaluation's is one.
void test_exact_copy(Size input, int32_t channels, bool margin) {
  const Size size = stored_size(input, margin);
  const auto at = [channels](const Size& image, int32_t y, int32_t x, int32_t channel) {
    return static_cast<size_t>(channels * (y * image.width + x) + channel);
  };
  std::vector<uint8_t> image(at(size, size.height, 0, 0));
  for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<uint8_t>(draw(4, i));
  Crop crop = centre_crop(size, input);
  CHECK(crop.height == input.height && crop.width == input.width);
  CHECK(crop.height == (margin ? 7 * size.height / 8 : size.height));
  std::vector<float> plain(at(input, input.height, 0, 0)), mirrored(plain.size());
  const float zero[3] = {0, 0, 0}, one[3] = {1, 1, 1};
  resample(image.data(), size, crop, input, channels, zero, one, plain.data());
  crop.flip = true;
  resample(image.data(), size, crop, input, channels, zero, one, mirrored.data());
  for (int32_t y = 0; y < input.height; ++y) {
    for (int32_t x = 0; x < input.width; ++x) {
      for (int32_t channel = 0; channel < channels; ++channel) {
        const float expected = image[at(size, crop.top + y, crop.left + x, channel)];
        CHECK(plain[at(input, y, x, channel)] == expected);
        CHECK(mirrored[at(input, y, input.width - 1 - x, channel)] == expected);
      }
    }
  }
}

void test_sampling() {
  const uint64_t published[] = {0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC};
  for (uint64_t i = 0; i < 4; ++i) CHECK(draw(0, i) == published[i]);
  CHECK(draw(1234567, 0) == 6457827717110365317u);
  CHECK(key({0}) == published[0] && mix(0) == 0);

  for (const uint32_t count : {0u, 1u, 2u, 17u, 1000u}) {
    std::vector<uint32_t> order(count), sorted(count);
    epoch_order(3, 1, count, order.data());
    std::sort(order.begin(), order.end());
    for (uint32_t i = 0; i < count; ++i) sorted[i] = i;
    CHECK(order == sorted);
  }
  for (int32_t height = 1; height < 300; ++height) {
    for (uint64_t position = 0; position < 30; ++position) {
      const Size size{height, 1 + static_cast<int32_t>(draw(6, position) % 300)};
      const Crop crop = random_crop(5, 2, position, size, kMinArea, true);
      CHECK(crop.height >= 1 && crop.width >= 1 && crop.top >= 0 && crop.left >= 0);
      CHECK(crop.top + crop.height <= size.height && crop.left + crop.width <= size.width);
    }
  }
  for (const int32_t side : {1, 5, 7, 64, 65, 97, 128}) {
    test_exact_copy({side, (3 * side + 1) / 2}, 3, true);
    test_exact_copy({2 * side, side}, 1, side != 64);
  }
  float mask[1000];
  dropout_mask(1, 2, 3, 4, 8, 125, 0.25, mask);
  CHECK(std::count(mask, mask + 1000, 0.0f) > 180 && std::count(mask, mask + 1000, 0.0f) < 320);
  CHECK(std::count(mask, mask + 1000, static_cast<float>(1 / 0.75)) + std::count(mask, mask + 1000, 0.0f) == 1000);
}

void print_crop(const char* name, uint64_t position, const Crop& crop) {
  std::printf("%s %" PRIu64 " %d %d %d %d %d\n", name, position, crop.top, crop.left, crop.height, crop.width,
              static_cast<int>(crop.flip));
}

void print_floats(const char* name, uint64_t position, const std::vector<float>& values) {
  std::printf("%s %" PRIu64 " %08" PRIx32, name, position, crc32(0, values.data(), values.size() * sizeof(float)));
  for (size_t i = 0; i < std::min<size_t>(values.size(), 4); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    std::printf(" %08" PRIx32, bits);
  }
  std::printf("\n");
}

int sample(char** arguments) {
  const uint64_t seed = arguments[0][0] == '-' ? static_cast<uint64_t>(std::strtoll(arguments[0], nullptr, 10))
                                               : std::strtoull(arguments[0], nullptr, 10);
  const uint64_t epoch = std::strtoull(arguments[1], nullptr, 10);
  const uint32_t count = static_cast<uint32_t>(std::strtoul(arguments[2], nullptr, 10));
  const Size size{std::atoi(arguments[3]), std::atoi(arguments[4])};
  const Size input{std::atoi(arguments[5]), std::atoi(arguments[6])};
  const int32_t channels = std::atoi(arguments[7]);

  std::vector<uint32_t> order(count);
  epoch_order(seed, epoch, count, order.data());
  std::printf("order");
  for (const uint32_t index : order) std::printf(" %" PRIu32, index);
  std::printf("\n");

  // The image: one draw a byte, of a stream that the comparing test knows too.
  std::vector<uint8_t> image(static_cast<size_t>(channels * size.height * size.width));
  for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<uint8_t>(draw(seed, i) >> 56);
  const float mean[3] = {123.675f, 116.28f, 103.53f}, deviation[3] = {58.395f, 57.12f, 57.375f};
  std::vector<float> pixels(static_cast<size_t>(channels * input.height * input.width));
  const auto print_pixels = [&](uint64_t position, const Crop& crop) {
    resample(image.data(), size, crop, input, channels, mean, deviation, pixels.data());
    print_floats("pixels", position, pixels);
  };
  for (uint64_t position = 0; position < std::min<uint32_t>(count, 40); ++position) {
    const Crop crop = random_crop(seed, epoch, position, size, kMinArea, true);
    print_crop("crop", position, crop);
    if (position < 6) print_pixels(position, crop);
    print_crop("narrow", position, random_crop(seed, epoch, position, size, 0.9, false));
  }
  if (input.height <= size.height && input.width <= size.width) {
    print_crop("centre", 0, centre_crop(size, input));
    print_pixels(count, centre_crop(size, input));
  }
  for (size_t layer = 0; layer < 3; ++layer) {
    const double rates[] = {0.2, 0.5, 0.0};
    const size_t pixels = 1 + 2 * layer, channels = 100 + 7 * layer;
    std::vector<float> mask(pixels * channels);
    dropout_mask(seed, epoch, count, layer, pixels, channels, rates[layer], mask.data());
    print_floats("mask", layer, mask);
  }
  return 0;
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

int copy(const char* from, const char* to) {
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

int print_json() {
  std::string text;
  char block[4096];
  for (size_t got; (got = std::fread(block, 1, sizeof block, stdin)) > 0;) text.append(block, got);
  std::printf("%s\n", rewritten(text).c_str());
  return 0;
}

int run_tests() {
  const char* temporary = std::getenv("TMPDIR");
  g_folder = std::string(temporary == nullptr ? "/tmp" : temporary) + "/io_test.XXXXXX";
  if (::mkdtemp(g_folder.data()) == nullptr) std::abort();
  test_json_reading();
  test_json_writing();
  test_events();
  test_tensors_round_trip();
  test_shortened_file();
  test_damaged_tensors();
  test_writing();
  test_dataset();
  test_random_damage();
  test_sampling();
  if (std::system(("rm -r '" + g_folder + "'").c_str()) != 0) ++g_failed;
  std::printf(g_failed == 0 ? "all is well\n" : "%d checks failed\n", g_failed);
  return g_failed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (argc == 1) return run_tests();
    if (mode == "sample" && argc == 10) return sample(argv + 2);
    if (mode == "tensors" && argc == 3) return print_tensors(argv[2]);
    if (mode == "dataset" && argc == 3) return print_dataset(argv[2]);
    if (mode == "copy" && argc == 4) return copy(argv[2], argv[3]);
    if (mode == "json" && argc == 2) return print_json();
    fail(kUsage, "See the first lines of io_test.cc.");
  } catch (const Failure& failure) {
    std::printf("%d %s\n", failure.exit_code, failure.message.c_str());
    return failure.exit_code;
  }
}
