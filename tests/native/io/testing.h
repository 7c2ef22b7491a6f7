// What the tests of the trainer's input and output share.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "errors.h"
#include "safetensors.h"

namespace tinytl {

inline int g_failed = 0;
inline std::string g_folder;

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

inline std::string in_folder(const char* name) { return g_folder + "/" + name; }

inline void write_raw(const std::string& path, std::string_view content) {
  FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(content.data(), 1, content.size(), file) != content.size()) std::abort();
  std::fclose(file);
}

inline std::string read_raw(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return "";
  std::string content;
  char block[4096];
  for (size_t got; (got = std::fread(block, 1, sizeof block, file)) > 0;) content.append(block, got);
  std::fclose(file);
  return content;
}

inline std::string with_header(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string content(reinterpret_cast<const char*>(&length), sizeof length);
  return content.append(header).append(data);
}

std::string rewritten_json(std::string_view text);  // parsed and written again, or "refused"
std::string write_example_tensors(const char* name);
std::string write_example_dataset(const char* name, const std::vector<int32_t>& labels);

void test_json();
void test_tensors();
void test_datasets();
void test_random_damage();
void test_sampling();

// What a test in Python asks for, as main.cc says; these print, and return the exit code.
int print_sample(char** arguments);
int print_tensors(const char* path);
int print_dataset(const char* path);
int copy_tensors(const char* from, const char* to);
int print_json();
int print_report(bool live, int columns);

}  // namespace tinytl
