// Every way the trainer can fail: one sentence for the person, one exit code for the script.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>
#include <utility>

namespace tinytl {

// The same numbers as runtime/errors.py.
enum ExitCode : int {
  kDone = 0,
  kInternal = 1,      // a fault of our own
  kUsage = 2,         // the call itself is wrong
  kDamaged = 3,       // a bundle, program, adapter or dataset that is damaged or not ours
  kData = 4,          // images or labels that cannot be used
  kMemoryLimit = 5,   // the plan does not fit the memory limit
  kStorage = 6,       // writing failed
  kDiverged = 7,      // the loss is no longer a number
  kInterrupted = 130,  // stopped by the user
  kNobodyReads = 141   // as a shell counts SIGPIPE
};

// The only exception of the trainer: thrown by `fail`, caught in main.
struct Failure {
  int exit_code;
  std::string message;
};

// What vprintf would write, of any length.
inline std::string formatted(const char* format, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, again);
  va_end(again);
  std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  std::vsnprintf(text.data(), text.size() + 1, format, arguments);
  return text;
}

// Throws a Failure; the message is formatted as printf does.
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(ExitCode code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string message = formatted(format, arguments);
  va_end(arguments);
  throw Failure{code, std::move(message)};
}

}  // namespace tinytl
