// What a person reads of a training: the lines of runtime/report.py, to the byte (tests/test_report_lines.py compares).
#pragma once

#include <cstdint>
#include <string>

#include "json.h"

namespace tinytl {

// A line that is written over and over on a terminal; nothing elsewhere. What cannot be written is lost: a terminal
// that is gone must not end a training.
class LiveLine {
 public:
  LiveLine(int descriptor, bool live, int columns) : descriptor_(descriptor), columns_(columns), live_(live) {}

  void show(std::string text);
  void say(const std::string& text);  // a line of its own, above the live one
  void clear();
  bool live() const { return live_; }

 private:
  int descriptor_, columns_;
  size_t length_ = 0;
  bool live_;
};

// A training's live line (epoch, loss, accuracy, RSS, time left), and a line for every epoch. Where there is no
// terminal, a line says how far it is whenever nothing was said for a minute.
class Report {
 public:
  // On standard error, as wide as its terminal.
  Report();
  Report(int descriptor, bool live, int columns) : line_(descriptor, live, columns) {}

  // One event, at a time in seconds.
  void hear(const json::Value& event, double time);
  // Between events: breaks a silence.
  void tick(double time);
  void clear() { line_.clear(); }

 private:
  void show(int64_t step, double time);
  void say_one_pass(const json::Value& event, double time);

  LiveLine line_;
  double begin_ = 0, said_ = -1;
  int64_t first_ = 0, total_ = 0, epochs_ = 0, epoch_ = 0, rss_ = 0;
  double loss_ = 0, accuracy_ = 0;
  bool has_loss_ = false, has_accuracy_ = false;
  std::string status_;
};

// The `done` event of a training as two lines for a person.
constexpr double kApart = 0.005;  // accuracies that are worth being told apart
std::string summary(const json::Value& done);

// Words --------------------------------------------------------------------------------------------------------------

// Of what `write_unknown` wrote: "4 of 85 right images, 3 of 5 wrong ones, 32 of 32 grey and noisy ones".
std::string unknown_words(const json::Value& unknown);
std::string counted(int64_t number, const char* what);  // "1 image", "24 images"
std::string megabytes(double size);                     // "108.3 MB" (10^6 bytes); below one, "478 kB"
std::string percent(double share, int digits);          // "85.6%"
// As printf would write it.
std::string worded(const char* format, ...) __attribute__((format(printf, 1, 2)));

// What an event says under a name; 0 and false where it is null or missing.
double number_of(const json::Value& event, const char* name);
int64_t integer_of(const json::Value& event, const char* name);
bool says(const json::Value& event, const char* name);

}  // namespace tinytl
