// JSON and events: read, written, refused.
#include <cmath>
#include <cstring>
#include <limits>
#include <unistd.h>
#include <string>

#include "events.h"
#include "json.h"
#include "sampling.h"
#include "testing.h"

namespace tinytl {
namespace {

std::string rewrite_text(std::string_view text, const json::Limits& limits = {}) {
  const std::optional<json::Value> value = json::parse(text, limits);
  if (!value) return "refused";
  json::Writer writer;
  return writer.value(*value).str();
}

void test_json_reading() {
  CHECK(rewrite_text(" [1, -2, 0.5, 1e3, -0, true, false, null, \"x\"] \n") ==
        "[1,-2,0.5,1000.0,0,true,false,null,\"x\"]");
  CHECK(rewrite_text("{\"a\": {}, \"b\": [], \"c\": [[1], {\"d\": 2}]}") == "{\"a\":{},\"b\":[],\"c\":[[1],{\"d\":2}]}");
  CHECK(rewrite_text("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20ac\\ud83d\\ude00\\u0000\"") ==
        "\"\\\"\\\\/\\b\\f\\n\\r\\t\u00e9\u20ac\U0001F600\\u0000\"");
  CHECK(rewrite_text("{\"a\":1,\"b\":2,\"a\":3,\"c\":4,\"b\":5,\"a\":6}") == "{\"a\":6,\"b\":5,\"c\":4}");
  CHECK(rewrite_text("9223372036854775807") == "9223372036854775807");
  CHECK(rewrite_text("-9223372036854775808") == "-9223372036854775808");
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
    if (rewrite_text(text) != "refused") std::printf("accepted: %s\n", text);
    CHECK(rewrite_text(text) == "refused");
  }
  CHECK(rewrite_text(std::string_view("[1]\0", 4)) == "refused");
  CHECK(rewrite_text(std::string_view("\"a\0b\"", 5)) == "refused");

  const json::Limits limits{.bytes = 1000, .values = 10, .depth = 4};
  CHECK(rewrite_text("[[[[[]]]]]", limits) == "[[[[[]]]]]");
  CHECK(rewrite_text("[[[[[[]]]]]]", limits) == "refused");
  CHECK(rewrite_text("[1,2,3,4,5,6,7,8,9]", limits) != "refused");
  CHECK(rewrite_text("[1,2,3,4,5,6,7,8,9,0]", limits) == "refused");
  CHECK(rewrite_text(std::string(998, ' ') + "12", limits) == "12");
  CHECK(rewrite_text(std::string(999, ' ') + "12", limits) == "refused");
  CHECK(rewrite_text(std::string(1000000, '[')) == "refused");
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

}  // namespace

std::string rewritten_json(std::string_view text) { return rewrite_text(text); }

void test_json() {
  test_json_reading();
  test_json_writing();
  test_events();
}

int print_json() {
  std::string text;
  char block[4096];
  for (size_t got; (got = std::fread(block, 1, sizeof block, stdin)) > 0;) text.append(block, got);
  std::printf("%s\n", rewrite_text(text).c_str());
  return 0;
}

}  // namespace tinytl
