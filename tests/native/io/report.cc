// What a person reads of a training, for tests/test_report_lines.py.
#include "report.h"

#include <iostream>

#include "testing.h"

namespace tinytl {

// Each line of standard input is a time in seconds and an event.
int print_report(bool live, int columns) {
  Report report(1, live, columns);
  for (std::string line; std::getline(std::cin, line);) {
    const size_t blank = line.find(' ');
    const double time = std::strtod(line.c_str(), nullptr);
    const json::Value event = json::parse_or_fail(std::string_view(line).substr(blank + 1), kUsage, "no event");
    report.hear(event, time);
    if (event.find("event")->string() == "done") {
      report.clear();
      const std::string text = summary(event);
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    }
  }
  report.clear();
  return 0;
}

}  // namespace tinytl
