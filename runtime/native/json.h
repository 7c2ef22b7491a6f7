// JSON: a reader that makes a tree of values, and a writer that appends to one line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "errors.h"

namespace tinytl::json {

// Reading ----------------------------------------------------------------------------------------------------------

enum class Kind : uint8_t { kNull, kBool, kInteger, kNumber, kString, kArray, kObject };

// What a text may cost at most. A value takes about 80 bytes in memory.
struct Limits {
  size_t bytes = 16 << 20;
  size_t values = 1 << 20;
  int depth = 64;
};

class Value {
 public:
  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }
  bool is_bool() const { return kind_ == Kind::kBool; }
  bool is_integer() const { return kind_ == Kind::kInteger; }  // written without . or e, and fits int64
  bool is_number() const { return kind_ == Kind::kNumber || kind_ == Kind::kInteger; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_array() const { return kind_ == Kind::kArray; }
  bool is_object() const { return kind_ == Kind::kObject; }

  // What a value of another kind gives: false, 0, "".
  bool boolean() const { return kind_ == Kind::kBool && integer_ != 0; }
  int64_t integer() const { return kind_ == Kind::kInteger ? integer_ : 0; }
  double number() const;  // of integers too; always finite
  const std::string& string() const { return text_; }

  // Elements of an array, members of an object (in the order of the text); 0 for all others.
  size_t size() const { return kind_ == Kind::kObject ? children_.size() / 2 : children_.size(); }
  // Element of an array or value of a member; `index` < size().
  const Value& operator[](size_t index) const { return children_[kind_ == Kind::kObject ? 2 * index + 1 : index]; }
  // Name of an object's member; `index` < size().
  const std::string& name(size_t index) const { return children_[2 * index].text_; }
  // An object's member of that name, or null: not there, or no object. Searches from the first on.
  const Value* find(std::string_view name) const;

 private:
  friend class Parser;
  Kind kind_ = Kind::kNull;
  union {
    int64_t integer_ = 0;
    double number_;
  };
  std::string text_;
  std::vector<Value> children_;  // an object's are name, value, name, value, ...
};

// The one value that `text` is, or nothing: it is not strict JSON in UTF-8, or exceeds a limit. Of members with the
// same name the last counts, as in Python. Stricter than Python in what no writer makes: NaN and Infinity, numbers
// beyond float64, and halves of surrogate pairs are refused.
std::optional<Value> parse(std::string_view text, const Limits& limits = {});

// The same, but fails with the caller's message.
Value parse_or_fail(std::string_view text, ExitCode code, const char* message, const Limits& limits = {});

// Writing ----------------------------------------------------------------------------------------------------------

// Builds one line of compact JSON; who calls keeps begin and end in pairs. Bytes that are not UTF-8 (file names) come
// out as U+FFFD. The text's memory is kept by `clear`, so that a writer that is used again soon stops allocating.
class Writer {
 public:
  // Values where the line or an array expects one.
  Writer& begin_object();
  Writer& begin_array();
  Writer& end_object();
  Writer& end_array();
  Writer& text(std::string_view value);
  Writer& integer(int64_t value);
  Writer& number(double value);  // the shortest text that reads back as the same; null for NaN and infinity
  Writer& boolean(bool value);
  Writer& null();
  Writer& value(const Value& read);  // anything that was read
  Writer& end_line();  // after the last of a line

  // Members of an object: a name that the next value follows, or both at once.
  Writer& key(std::string_view name);
  Writer& begin_object(std::string_view name) { return key(name).begin_object(); }
  Writer& begin_array(std::string_view name) { return key(name).begin_array(); }
  Writer& text(std::string_view name, std::string_view value) { return key(name).text(value); }
  Writer& integer(std::string_view name, int64_t value) { return key(name).integer(value); }
  Writer& number(std::string_view name, double value) { return key(name).number(value); }
  Writer& boolean(std::string_view name, bool value) { return key(name).boolean(value); }
  Writer& null(std::string_view name) { return key(name).null(); }

  const std::string& str() const { return line_; }
  void clear();
  void reserve(size_t bytes) { line_.reserve(bytes); }

 private:
  void separate();
  void quote(std::string_view value);

  std::string line_;
  bool follows_value_ = false;
};

// Length in bytes of the UTF-8 sequence that `text` begins with, or 0: it is empty or begins with none.
size_t utf8_sequence(std::string_view text);

}  // namespace tinytl::json
