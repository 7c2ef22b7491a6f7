// A job: the JSON object on standard input that says what to do, as runtime/ writes it for every worker.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"
#include "learning_rates.h"

namespace tinytl {

class Job {
 public:
  // Reads standard input to its end. Throws Failure (exit code 2) where it is no job.
  static Job read();

  std::string text(const char* name) const;           // or fails
  std::string optional_text(const char* name) const;  // "" where it is null or missing
  int64_t integer(const char* name, int64_t low, int64_t high) const;
  double number(const char* name, double low, double high) const;
  int64_t threads() const { return is_null("threads") ? 1 : integer("threads", 1, 1024); }
  bool flag(const char* name) const;
  bool is_null(const char* name) const;
  std::vector<std::string> texts(const char* name) const;
  std::vector<int64_t> integers(const char* name, int64_t low, int64_t high) const;
  std::vector<double> numbers(const char* name, double low, double high) const;
  std::vector<Job> objects(const char* name) const;
  Rates rates(const char* name) const;
  // Its members, into an object that is open.
  void write_members(json::Writer& out) const;
  // The object under `name`, as a job.
  Job nested(const char* name) const;

 private:
  explicit Job(json::Value value) : value_(std::move(value)) {}
  const json::Value& get(const char* name) const;
  const json::Value& array(const char* name) const;
  [[noreturn]] static void bad(const char* name);

  json::Value value_;
};

}  // namespace tinytl
