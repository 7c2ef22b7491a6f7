#include "job.h"

#include <unistd.h>

#include "errors.h"

namespace tinytl {

Job Job::read() {
  std::string text;
  char piece[4096];
  ssize_t got;
  while ((got = ::read(0, piece, sizeof piece)) > 0) text.append(piece, static_cast<size_t>(got));
  json::Value value = json::parse_or_fail(text, kUsage, "Standard input holds no job: it takes one JSON object.");
  if (!value.is_object()) fail(kUsage, "Standard input holds no job: it takes one JSON object.");
  return Job(std::move(value));
}

void Job::bad(const char* name) { fail(kUsage, "The job's '%s' is missing or out of range.", name); }

const json::Value& Job::get(const char* name) const {
  const json::Value* value = value_.find(name);
  if (!value) bad(name);
  return *value;
}

std::string Job::text(const char* name) const {
  if (!get(name).is_string() || get(name).string().empty()) bad(name);
  return get(name).string();
}

std::string Job::optional_text(const char* name) const { return is_null(name) ? "" : text(name); }

bool Job::is_null(const char* name) const {
  const json::Value* value = value_.find(name);
  return !value || value->is_null();
}

int64_t Job::integer(const char* name, int64_t low, int64_t high) const {
  const json::Value& value = get(name);
  if (!value.is_integer() || value.integer() < low || value.integer() > high) bad(name);
  return value.integer();
}

double Job::number(const char* name, double low, double high) const {
  const json::Value& value = get(name);
  if (!value.is_number() || !(value.number() >= low && value.number() <= high)) bad(name);
  return value.number();
}

bool Job::flag(const char* name) const {
  if (!get(name).is_bool()) bad(name);
  return get(name).boolean();
}

const json::Value& Job::array(const char* name) const {
  const json::Value& value = get(name);
  if (!value.is_array()) bad(name);
  return value;
}

std::vector<int64_t> Job::integers(const char* name, int64_t low, int64_t high) const {
  const json::Value& value = array(name);
  std::vector<int64_t> integers;
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_integer() || value[i].integer() < low || value[i].integer() > high) bad(name);
    integers.push_back(value[i].integer());
  }
  return integers;
}

std::vector<double> Job::numbers(const char* name, double low, double high) const {
  const json::Value& value = array(name);
  std::vector<double> numbers;
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_number() || !(value[i].number() >= low && value[i].number() <= high)) bad(name);
    numbers.push_back(value[i].number());
  }
  return numbers;
}

std::vector<Job> Job::objects(const char* name) const {
  const json::Value& value = array(name);
  std::vector<Job> objects;
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_object()) bad(name);
    objects.push_back(Job(value[i]));
  }
  return objects;
}

std::vector<std::string> Job::texts(const char* name) const {
  const json::Value& value = array(name);
  std::vector<std::string> texts;
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_string()) bad(name);
    texts.push_back(value[i].string());
  }
  return texts;
}

Rates Job::rates(const char* name) const {
  const json::Value& value = get(name);
  if (!value.is_object()) bad(name);
  Rates rates;
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_number()) bad(name);
    rates[value.name(i)] = value[i].number();
  }
  return rates;
}

void Job::write_members(json::Writer& out) const {
  for (size_t i = 0; i < value_.size(); ++i) out.key(value_.name(i)).value(value_[i]);
}

Job Job::nested(const char* name) const {
  if (!get(name).is_object()) bad(name);
  return Job(get(name));
}

}  // namespace tinytl
