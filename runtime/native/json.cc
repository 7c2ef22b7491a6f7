#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace tinytl::json {

size_t utf8_sequence(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first <= 0xDF ? 2 : first >= 0xE0 && first <= 0xEF ? 3 : 4;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // What would have a shorter form, halves of surrogate pairs, and what lies beyond U+10FFFF.
  if (first == 0xE0 && byte(1) < 0xA0) return 0;
  if (first == 0xED && byte(1) > 0x9F) return 0;
  if (first == 0xF0 && byte(1) < 0x90) return 0;
  if (first == 0xF4 && byte(1) > 0x8F) return 0;
  return length;
}

// Reading ----------------------------------------------------------------------------------------------------------

double Value::number() const {
  if (kind_ == Kind::kNumber) return number_;
  return kind_ == Kind::kInteger ? static_cast<double>(integer_) : 0.0;
}

const Value* Value::find(std::string_view name) const {
  if (kind_ != Kind::kObject) return nullptr;
  for (size_t i = 0; i < children_.size(); i += 2) {
    if (children_[i].text_ == name) return &children_[i + 1];
  }
  return nullptr;
}

// Recursive descent. Every function returns false where the text is not what it should be.
class Parser {
 public:
  Parser(std::string_view text, const Limits& limits) : text_(text), limits_(limits) {}

  bool document(Value* out) {
    if (text_.size() > limits_.bytes) return false;
    if (!value(out, 0)) return false;
    skip_blanks();
    return at_ == text_.size();
  }

 private:
  bool value(Value* out, int depth) {
    if (depth > limits_.depth || ++values_ > limits_.values) return false;
    skip_blanks();
    switch (peek()) {
      case '{':
        return object(out, depth);
      case '[':
        return array(out, depth);
      case '"':
        out->kind_ = Kind::kString;
        return string(&out->text_);
      case 't':
      case 'f':
        out->kind_ = Kind::kBool;
        out->integer_ = peek() == 't';
        return word(out->integer_ ? "true" : "false");
      case 'n':
        return word("null");
      default:
        return number(out);
    }
  }

  bool object(Value* out, int depth) {
    out->kind_ = Kind::kObject;
    ++at_;
    skip_blanks();
    if (take('}')) return true;
    std::vector<Value>& children = out->children_;
    do {
      skip_blanks();
      if (++values_ > limits_.values) return false;
      Value& name = children.emplace_back();
      name.kind_ = Kind::kString;
      if (peek() != '"' || !string(&name.text_)) return false;
      skip_blanks();
      if (!take(':') || !value(&children.emplace_back(), depth + 1)) return false;
      skip_blanks();
    } while (take(','));
    if (!take('}')) return false;
    drop_repeated(&children);
    return true;
  }

  bool array(Value* out, int depth) {
    out->kind_ = Kind::kArray;
    ++at_;
    skip_blanks();
    if (take(']')) return true;
    do {
      if (!value(&out->children_.emplace_back(), depth + 1)) return false;
      skip_blanks();
    } while (take(','));
    return take(']');
  }

  // Of members with the same name, the first's place and the last's value stay. Sorted, because the square of a
  // hostile header's number of members is not to be waited for.
  static void drop_repeated(std::vector<Value>* children) {
    std::vector<uint32_t> by_name(children->size() / 2);
    for (size_t i = 0; i < by_name.size(); ++i) by_name[i] = static_cast<uint32_t>(2 * i);
    std::sort(by_name.begin(), by_name.end(), [&](uint32_t a, uint32_t b) {
      const int order = (*children)[a].text_.compare((*children)[b].text_);
      return order != 0 ? order < 0 : a < b;
    });
    bool repeated = false;
    for (size_t i = 0; i < by_name.size();) {
      const size_t first = i++;
      while (i < by_name.size() && (*children)[by_name[i]].text_ == (*children)[by_name[first]].text_) ++i;
      if (i - first == 1) continue;
      repeated = true;
      std::swap((*children)[by_name[first] + 1], (*children)[by_name[i - 1] + 1]);
      for (size_t k = first + 1; k < i; ++k) (*children)[by_name[k]].kind_ = Kind::kNull;  // a name no longer
    }
    if (!repeated) return;
    size_t kept = 0;
    for (size_t i = 0; i < children->size(); i += 2) {
      if ((*children)[i].kind_ != Kind::kString) continue;
      if (kept != i) {
        (*children)[kept] = std::move((*children)[i]);
        (*children)[kept + 1] = std::move((*children)[i + 1]);
      }
      kept += 2;
    }
    children->resize(kept);
  }

  bool string(std::string* out) {
    ++at_;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return true;
      }
      if (c == '\\') {
        if (!escape(out)) return false;
        continue;
      }
      const size_t length = utf8_sequence(text_.substr(at_));
      if (length == 0 || static_cast<unsigned char>(c) < 0x20) return false;
      out->append(text_, at_, length);
      at_ += length;
    }
    return false;
  }

  bool escape(std::string* out) {
    ++at_;
    static constexpr char kLetters[] = "\"\\/bfnrt", kMeanings[] = "\"\\/\b\f\n\r\t";
    const char letter = peek();
    ++at_;
    for (size_t i = 0; i < sizeof kLetters - 1; ++i) {
      if (letter == kLetters[i]) {
        out->push_back(kMeanings[i]);
        return true;
      }
    }
    uint32_t code = 0, low = 0;
    if (letter != 'u' || !four_digits(&code)) return false;
    if (code >= 0xDC00 && code <= 0xDFFF) return false;
    if (code >= 0xD800 && code <= 0xDBFF) {
      if (!take('\\') || !take('u') || !four_digits(&low) || low < 0xDC00 || low > 0xDFFF) return false;
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(code, out);
    return true;
  }

  bool four_digits(uint32_t* code) {
    if (text_.size() - at_ < 4) return false;
    const char* end = text_.data() + at_ + 4;
    const auto result = std::from_chars(text_.data() + at_, end, *code, 16);
    at_ += 4;
    return result.ptr == end;
  }

  static void append_utf8(uint32_t code, std::string* out) {
    if (code < 0x80) {
      out->push_back(static_cast<char>(code));
      return;
    }
    const int following = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned char kFirst[] = {0, 0xC0, 0xE0, 0xF0};
    out->push_back(static_cast<char>(kFirst[following] | (code >> (6 * following))));
    for (int i = following - 1; i >= 0; --i) out->push_back(static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F)));
  }

  bool number(Value* out) {
    const size_t begin = at_;
    bool whole = true;
    take('-');
    if (!take('0') && !digits()) return false;
    if (take('.')) {
      whole = false;
      if (!digits()) return false;
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (!take('+')) take('-');
      if (!digits()) return false;
    }
    const char* first = text_.data() + begin;
    if (whole) {
      out->kind_ = Kind::kInteger;
      if (std::from_chars(first, text_.data() + at_, out->integer_).ec == std::errc()) return true;
    }
    // Not from_chars: libc++ has it for floating point only since version 20. The locale is always "C".
    out->kind_ = Kind::kNumber;
    out->number_ = std::strtod(std::string(first, at_ - begin).c_str(), nullptr);
    return std::isfinite(out->number_);
  }

  bool digits() {
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ != begin;
  }

  bool word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  void skip_blanks() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  std::string_view text_;
  const Limits& limits_;
  size_t at_ = 0;
  size_t values_ = 0;
};

std::optional<Value> parse(std::string_view text, const Limits& limits) {
  std::optional<Value> result(std::in_place);
  if (!Parser(text, limits).document(&*result)) result.reset();
  return result;
}

Value parse_or_fail(std::string_view text, ExitCode code, const char* message, const Limits& limits) {
  std::optional<Value> result = parse(text, limits);
  if (!result) fail(code, "%s", message);
  return std::move(*result);
}

// Writing ----------------------------------------------------------------------------------------------------------

void Writer::clear() {
  line_.clear();
  follows_value_ = false;
}

void Writer::separate() {
  if (follows_value_) line_.push_back(',');
  follows_value_ = true;
}

Writer& Writer::begin_object() {
  separate();
  line_.push_back('{');
  follows_value_ = false;
  return *this;
}

Writer& Writer::begin_array() {
  separate();
  line_.push_back('[');
  follows_value_ = false;
  return *this;
}

Writer& Writer::end_object() {
  line_.push_back('}');
  follows_value_ = true;
  return *this;
}

Writer& Writer::end_array() {
  line_.push_back(']');
  follows_value_ = true;
  return *this;
}

Writer& Writer::key(std::string_view name) {
  separate();
  quote(name);
  line_.push_back(':');
  follows_value_ = false;
  return *this;
}

Writer& Writer::text(std::string_view value) {
  separate();
  quote(value);
  return *this;
}

Writer& Writer::integer(int64_t value) {
  separate();
  char digits[24];
  line_.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
  return *this;
}

Writer& Writer::number(double value) {
  if (!std::isfinite(value)) return null();
  separate();
  char digits[32];  // the longest is -2.2250738585072014e-308
  // As short as reads back the same. (to_chars finds that too, with a sixth of a megabyte of tables.)
  int length = 0;
  for (int precision = 15; precision <= 17; ++precision) {
    length = std::snprintf(digits, sizeof digits, "%.*g", precision, value);
    if (std::strtod(digits, nullptr) == value) break;
  }
  const std::string_view shortest(digits, static_cast<size_t>(length));
  line_.append(shortest);
  // So that whoever reads it sees a number with a fraction every time.
  if (shortest.find_first_of(".e") == shortest.npos) line_.append(".0");
  return *this;
}

Writer& Writer::boolean(bool value) {
  separate();
  line_.append(value ? "true" : "false");
  return *this;
}

Writer& Writer::null() {
  separate();
  line_.append("null");
  return *this;
}

Writer& Writer::value(const Value& read) {
  switch (read.kind()) {
    case Kind::kNull: return null();
    case Kind::kBool: return boolean(read.boolean());
    case Kind::kInteger: return integer(read.integer());
    case Kind::kNumber: return number(read.number());
    case Kind::kString: return text(read.string());
    case Kind::kArray:
      begin_array();
      for (size_t i = 0; i < read.size(); ++i) value(read[i]);
      return end_array();
    case Kind::kObject:
      begin_object();
      for (size_t i = 0; i < read.size(); ++i) key(read.name(i)).value(read[i]);
      return end_object();
  }
  return *this;
}

Writer& Writer::end_line() {
  line_.push_back('\n');
  follows_value_ = false;
  return *this;
}

// Escapes what Python's json.dumps(..., ensure_ascii=False) does, so that both write the same bytes.
void Writer::quote(std::string_view value) {
  static constexpr char kHex[] = "0123456789abcdef";
  line_.push_back('"');
  while (!value.empty()) {
    const size_t length = utf8_sequence(value);
    const char c = value[0];
    static constexpr char kSpecial[] = "\"\\\b\f\n\r\t", kLetters[] = "\"\\bfnrt";
    const size_t special = c == '\0' ? std::string_view::npos : std::string_view(kSpecial).find(c);
    if (length == 0) {
      line_.append("\xEF\xBF\xBD");
    } else if (special != std::string_view::npos) {
      line_.push_back('\\');
      line_.push_back(kLetters[special]);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      line_.append("\\u00");
      line_.push_back(kHex[c >> 4]);
      line_.push_back(kHex[c & 15]);
    } else {
      line_.append(value.data(), length);
    }
    value.remove_prefix(length == 0 ? 1 : length);
  }
  line_.push_back('"');
}

}  // namespace tinytl::json
