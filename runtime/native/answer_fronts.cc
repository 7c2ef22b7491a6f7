#include "answer_fronts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "errors.h"
#include "report.h"

namespace tinytl {
namespace {

json::Value closed(json::Writer& event) {
  return json::parse_or_fail(event.end_object().str(), kInternal, "An event is no JSON.");
}

// Members of an event that a person's answer has, under their names.
void copy(json::Writer& out, const json::Value& event, const char* name) {
  if (const json::Value* value = event.find(name)) out.key(name).value(*value);
}

size_t characters(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// How often each class was right, of how many: a share, or nothing where it has no images.
struct Share {
  int64_t right, of;
  double value() const { return static_cast<double>(right) / static_cast<double>(of); }
};

// Of those classes of which there are images.
double mean(const std::vector<Share>& shares) {
  double sum = 0;
  int seen = 0;
  for (const Share& share : shares) {
    if (!share.of) continue;
    sum += share.value();
    ++seen;
  }
  return sum / seen;
}

std::vector<Share> by_class(const json::Value& event) {
  std::vector<Share> shares;
  if (const json::Value* right = event.find("right")) {  // multi-label
    for (size_t i = 0; i < right->size(); ++i) shares.push_back({(*right)[i].integer(), integer_of(event, "images")});
  } else if (const json::Value* confusion = event.find("confusion")) {
    for (size_t i = 0; i < confusion->size(); ++i) {
      int64_t all = 0;
      for (size_t j = 0; j < (*confusion)[i].size(); ++j) all += (*confusion)[i][j].integer();
      shares.push_back({(*confusion)[i][i].integer(), all});
    }
  }
  return shares;
}

}  // namespace

EvaluateFront::EvaluateFront(const Job& job)
    : json_(job.nested("front").text("lines") == "json"), classes_(job.nested("front").texts("classes")) {}

bool EvaluateFront::hear(const char*, json::Writer& event) {
  const json::Value done = closed(event);
  const std::vector<Share> shares = by_class(done);
  if (shares.size() != classes_.size()) fail(kInternal, "The classes are not as many as the network's.");
  if (json_) {
    json::Writer out;
    out.begin_object();
    for (const char* name : {"runtime", "images", "loss", "accuracy"}) copy(out, done, name);
    out.begin_array("classes");
    for (const std::string& name : classes_) out.text(name);
    out.end_array().begin_array("per_class");
    for (const Share& share : shares) share.of ? out.number(share.value()) : out.null();
    out.end_array();
    copy(out, done, "confusion");
    out.number("class_accuracy", mean(shares));
    copy(out, done, "unknown");
    copy(out, done, "peak_rss_bytes");
    return print(out.end_object().end_line().str());
  }
  const double accuracy = number_of(done, "accuracy"), of_classes = mean(shares);
  std::string apart;
  if (std::abs(of_classes - accuracy) >= kApart) apart = ", mean of the classes " + percent(of_classes, 1);
  std::string text = "accuracy " + percent(accuracy, 1) + apart + worded(", loss %.3f, ", number_of(done, "loss")) +
                     counted(integer_of(done, "images"), "image") + ", peak memory " +
                     megabytes(number_of(done, "peak_rss_bytes")) + "\n";
  size_t width = 0;
  for (const std::string& name : classes_) width = std::max(width, characters(name));
  for (size_t i = 0; i < classes_.size(); ++i) {
    const std::string share = shares[i].of ? percent(shares[i].value(), 0) : "no images";
    text += "  " + classes_[i] + std::string(width - characters(classes_[i]), ' ') + "  " + share + "\n";
  }
  if (says(done, "unknown")) {
    const json::Value& unknown = *done.find("unknown");
    text += "less sure than " + percent(number_of(unknown, "below"), 1) + ", unknown: " + unknown_words(unknown) + "\n";
  }
  return print(text);
}

PredictFront::PredictFront(const Job& job)
    : json_(job.nested("front").text("lines") == "json"),
      multi_label_(job.nested("front").flag("multi_label")),
      classes_(job.nested("front").texts("classes")),
      images_(job.nested("front").texts("images")),
      top_(static_cast<size_t>(job.nested("front").integer("top", 1, INT64_MAX))),
      unknown_below_(job.nested("front").is_null("unknown_below") ? 0 : job.nested("front").number("unknown_below", 0, 1)) {}

bool PredictFront::hear(const char* kind, json::Writer& event) {
  const json::Value said = closed(event);
  if (std::strcmp(kind, "prediction") != 0) return true;
  const json::Value* found = said.find("probabilities");
  if (!found || found->size() != classes_.size() || next_ >= images_.size())
    fail(kInternal, "The answers are not as many as the images or the classes.");
  std::vector<size_t> order(classes_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return (*found)[a].number() > (*found)[b].number(); });
  const std::string& image = images_[next_++];
  const bool unknown = !multi_label_ && (*found)[order.front()].number() < unknown_below_;
  if (!json_) {
    std::string text = image + (unknown ? ": unknown (" : ": ");
    for (size_t i = 0; i < std::min(top_, order.size()); ++i)
      text += (i ? ", " : "") + classes_[order[i]] + " " + percent((*found)[order[i]].number(), 1);
    return print(text + (unknown ? ")\n" : "\n"));
  }
  json::Writer out;
  out.begin_object().text("image", image);
  if (multi_label_) {
    out.begin_array("prediction");
    for (const size_t i : order)
      if ((*found)[i].number() > 0.5) out.text(classes_[i]);
    out.end_array();
  } else {
    out.text("prediction", unknown ? "unknown" : classes_[order.front()]);
    out.boolean("known", !unknown);
  }
  out.begin_object("probabilities");
  for (const size_t i : order) out.key(classes_[i]).value((*found)[i]);
  return print(out.end_object().end_object().end_line().str());
}

}  // namespace tinytl
