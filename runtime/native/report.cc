#include "report.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "clock.h"
#include "write_all.h"

namespace tinytl {
namespace {

constexpr double kSilence = 60;  // seconds
constexpr int kBar = 20;

// As Python's shutil.get_terminal_size finds it.
int terminal_columns() {
  const char* told = std::getenv("COLUMNS");
  const long columns = told ? std::strtol(told, nullptr, 10) : 0;
  if (columns > 0) return static_cast<int>(columns);
  winsize size;
  return ioctl(1, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// "[#####...............]"
std::string bar(double share) {
  const auto filled = static_cast<size_t>(std::nearbyint(std::clamp(share, 0.0, 1.0) * kBar));
  return "[" + std::string(filled, '#') + std::string(kBar - filled, '.') + "]";
}

std::string minutes_text(double seconds) {
  const auto all = static_cast<long long>(std::nearbyint(seconds));
  const long long hours = all / 3600, minutes = all / 60 % 60;
  if (hours) return worded("%lld:%02lld:%02lld", hours, minutes, all % 60);
  return worded("%lld:%02lld", minutes, all % 60);
}

const std::string& text_of(const json::Value& event, const char* name) {
  static const std::string nothing;
  const json::Value* value = event.find(name);
  return value ? value->string() : nothing;
}

// "on 24 held-out images"
std::string where(const json::Value& event) {
  const char* kind = text_of(event, "judge") == "val" ? "validation image" : "held-out image";
  return "on " + counted(integer_of(event, "val_images"), kind);
}

// What a training ends with.
std::string choice(const json::Value& event) {
  if (!says(event, "judge")) return "blended with the start";
  const double share = number_of(event, "share");
  std::string how = percent(share, 0) + " trained, the rest as at the start";
  if (share == 0) how = "the start";
  if (share == 1) how = worded("as trained in epoch %lld", static_cast<long long>(integer_of(event, "epoch")));
  const std::string loss = worded("  loss %.3f  accuracy ", number_of(event, "val_loss"));
  std::string text = "best " + where(event) + ": " + how + loss + percent(number_of(event, "val_accuracy"), 1);
  if (says(event, "kept_accuracy")) text += "  kept images " + percent(number_of(event, "kept_accuracy"), 1);
  if (share == 0 || !says(event, "start_accuracy")) return text;
  const std::string first = worded("  (start: %.3f, ", number_of(event, "start_loss"));
  return text + first + percent(number_of(event, "start_accuracy"), 1) + ")";
}

// What came of images without labels, and on what grounds.
std::string aligned(const json::Value& event) {
  const auto share = [&](const char* now, const char* before) {
    return percent(number_of(event, now), 1) + " (before: " + percent(number_of(event, before), 1) + ")";
  };
  std::string grounds = "  answers " + percent(number_of(event, "sure"), 1) + " sure (before: " +
                        percent(number_of(event, "sure_before"), 1) + ")  a second classifier agrees with " +
                        share("agreed", "agreed_before");
  if (says(event, "val_accuracy")) grounds = "  accuracy " + share("val_accuracy", "accuracy_before");
  const json::Value* taken = event.find("taken");
  if (!taken || !taken->boolean()) return "not aligned, as it would not help:" + grounds;
  return "aligned by " + percent(number_of(event, "share"), 0) + ":" + grounds + "  kept images " +
         share("kept_accuracy", "kept_accuracy_before");
}

// "Accuracy 91.7% on 24 held-out images (22 right, likely 74.2% to 97.7%), at the start 87.5%."
std::string result(const json::Value& done) {
  if (!says(done, "judge")) {
    const double left_out = number_of(done, "left_out_accuracy");
    const bool known = says(done, "left_out_accuracy");
    return "No images to be judged on (--val)" +
           (known ? "; the one pass, on images left out of it, " + percent(left_out, 1) : std::string()) + ".";
  }
  const double accuracy = number_of(done, "val_accuracy"), of_classes = number_of(done, "val_class_accuracy");
  std::string text = "Accuracy " + percent(accuracy, 1) + " " + where(done);
  const json::Value* likely = done.find("val_interval");
  if (likely && likely->size() == 2) {
    const double right = std::nearbyint(accuracy * static_cast<double>(integer_of(done, "val_images")));
    text += worded(" (%.0f right, likely %s to %s)", right, percent((*likely)[0].number(), 1).c_str(),
                   percent((*likely)[1].number(), 1).c_str());
  }
  if (std::abs(of_classes - accuracy) >= kApart) text += ", mean of the classes " + percent(of_classes, 1);
  if (says(done, "start_accuracy")) text += ", at the start " + percent(number_of(done, "start_accuracy"), 1);
  return text + ".";
}

}  // namespace

void LiveLine::show(std::string text) {
  if (!live_) return;
  if (text.size() >= static_cast<size_t>(columns_)) text.resize(static_cast<size_t>(std::max(columns_ - 1, 0)));
  const size_t length = text.size();
  if (length < length_) text.append(length_ - length, ' ');
  text.insert(text.begin(), '\r');
  write_all(descriptor_, text.data(), text.size());
  length_ = length;
}

void LiveLine::say(const std::string& text) {
  clear();
  const std::string line = text + "\n";
  write_all(descriptor_, line.data(), line.size());
}

void LiveLine::clear() {
  if (!length_) return;
  const std::string blank = "\r" + std::string(length_, ' ') + "\r";
  write_all(descriptor_, blank.data(), blank.size());
  length_ = 0;
}

Report::Report() : Report(2, isatty(2) != 0, terminal_columns()) { said_ = now(); }

void Report::hear(const json::Value& event, double time) {
  const std::string& kind = text_of(event, "event");
  const bool says_a_line = kind == "start" || kind == "one_pass" || kind == "aligned" || kind == "epoch" || kind == "choice" || kind == "warning";
  if (said_ < 0 || says_a_line) said_ = time;
  if (kind == "warning") return line_.say("warning: " + text_of(event, "message"));
  if (const int64_t rss = integer_of(event, "rss_bytes")) rss_ = rss;
  if (kind == "start") {
    begin_ = time;
    first_ = integer_of(event, "step");
    total_ = integer_of(event, "total_steps");
    epochs_ = integer_of(event, "epochs");
    std::string text = text_of(event, "runtime") + ": " + counted(integer_of(event, "images"), "image");
    const auto held_out = static_cast<long long>(integer_of(event, "held_out"));
    if (held_out) text += worded(", %lld of them held out", held_out);
    if (epochs_) text += ", " + counted(epochs_, "epoch") + ", " + counted(total_, "step");
    if (first_) text += worded(", going on at step %lld", static_cast<long long>(first_));
    line_.say(text);
  } else if (kind == "fitting") {
    const int64_t done = integer_of(event, "done"), total = std::max<int64_t>(integer_of(event, "total"), 1);
    status_ = "classifier in one pass " + bar(static_cast<double>(done) / static_cast<double>(total)) +
              worded(" %lld/%lld", static_cast<long long>(done), static_cast<long long>(total));
    line_.show(status_);
  } else if (kind == "one_pass") {
    say_one_pass(event, time);
  } else if (kind == "aligned") {
    line_.say(aligned(event));
    status_.clear();
  } else if (kind == "choice") {
    line_.say(choice(event));
  } else if (kind == "step") {
    epoch_ = integer_of(event, "epoch");
    loss_ = number_of(event, "loss");
    has_loss_ = says(event, "loss");
    show(integer_of(event, "step"), time);
  } else if (kind == "epoch") {
    const bool validated = says(event, "val_accuracy");
    accuracy_ = number_of(event, validated ? "val_accuracy" : "train_accuracy");
    has_accuracy_ = true;
    const int64_t peak = integer_of(event, "peak_rss_bytes");
    line_.say(worded("epoch %lld/%lld  loss %.3f  %s %s  peak %s  %s", static_cast<long long>(integer_of(event, "epoch")),
                     static_cast<long long>(epochs_), number_of(event, "train_loss"),
                     validated ? "accuracy" : "training accuracy", percent(accuracy_, 1).c_str(),
                     megabytes(static_cast<double>(peak ? peak : rss_)).c_str(), minutes_text(time - begin_).c_str()));
    show(integer_of(event, "step"), time);
  }
}

void Report::say_one_pass(const json::Value& event, double time) {
  const json::Value* anew = event.find("anew");
  std::string text = std::string(anew && anew->boolean() ? "with all images: " : "") + "classifier in one pass";
  const bool validated = says(event, "val_accuracy");
  if (validated || says(event, "left_out_accuracy")) {
    accuracy_ = number_of(event, validated ? "val_accuracy" : "left_out_accuracy");
    has_accuracy_ = true;
    text += validated ? "  accuracy " : "  left-out accuracy ";
    text += percent(accuracy_, 1);
  }
  if (says(event, "accuracy_before")) text += "  before " + percent(number_of(event, "accuracy_before"), 1);
  if (says(event, "kept_accuracy"))
    text += "  kept images " + percent(number_of(event, "kept_accuracy"), 1) + " (before: " +
            percent(number_of(event, "kept_accuracy_before"), 1) + ")";
  if (says(event, "known_accuracy"))
    text += "  known classes " + percent(number_of(event, "known_accuracy"), 1) + " (before: " +
            percent(number_of(event, "known_accuracy_before"), 1) + ")";
  const int64_t peak = integer_of(event, "peak_rss_bytes");
  text += "  peak " + megabytes(static_cast<double>(peak ? peak : rss_)) + "  " + minutes_text(time - begin_);
  line_.say(text);
  status_.clear();
}

void Report::show(int64_t step, double time) {
  const double left = (time - begin_) / static_cast<double>(std::max<int64_t>(step - first_, 1)) *
                      static_cast<double>(total_ - step);
  status_ = worded("epoch %lld/%lld %s %lld/%lld", static_cast<long long>(epoch_), static_cast<long long>(epochs_),
                   bar(static_cast<double>(step) / static_cast<double>(total_)).c_str(), static_cast<long long>(step),
                   static_cast<long long>(total_));
  if (has_loss_) status_ += worded("  loss %.3f", loss_);
  if (has_accuracy_) status_ += "  acc " + percent(accuracy_, 1);
  status_ += "  RSS " + megabytes(static_cast<double>(rss_)) + "  " + minutes_text(left) + " left";
  line_.show(status_);
}

void Report::tick(double time) {
  if (line_.live() || time - said_ < kSilence) return;
  said_ = time;
  line_.say(status_.empty() ? "at work, before the first step has been reported" : status_);
}

std::string summary(const json::Value& done) {
  std::string text = result(done);
  text += worded(" %lld steps", static_cast<long long>(integer_of(done, "steps")));
  if (says(done, "step_ms_median")) text += worded(", %.0f ms a step", number_of(done, "step_ms_median"));
  text += ", peak memory";
  const json::Value* memory = done.find("memory");
  if (memory && text_of(*memory, "measure") != "PSS") text += " (RSS)";
  const char* separator = " ";
  for (const char* phase : {"training", "packing", "start"}) {
    if (!memory || !says(*memory, phase)) continue;
    text += separator + megabytes(number_of(*memory, phase)) + " (" + phase + ")";
    separator = ", ";
  }
  text += ".\n";
  if (const int64_t count = integer_of(done, "kept_images")) {
    const double kept = number_of(done, "kept_accuracy");
    const double right = std::nearbyint(kept * static_cast<double>(count));
    text += worded("Where it comes from: %.0f of ", right) + counted(count, "kept image") + " right, " + percent(kept, 1) +
            " (before: " + percent(number_of(done, "kept_accuracy_before"), 1) + ").\n";
  }
  if (says(done, "unknown")) {
    const json::Value& unknown = *done.find("unknown");
    text += "Less sure than " + percent(number_of(unknown, "below"), 1) + " it says unknown: " + unknown_words(unknown) + ".\n";
  }
  return text + "Adapter: " + text_of(done, "adapter") + "\n";
}

std::string unknown_words(const json::Value& unknown) {
  const auto part = [&](const char* rejected, const char* all, const char* what) {
    return worded("%lld of %lld %s", static_cast<long long>(integer_of(unknown, rejected)),
                  static_cast<long long>(integer_of(unknown, all)), what);
  };
  std::string text = part("right_rejected", "right", "right images");
  if (integer_of(unknown, "wrong")) text += ", " + part("wrong_rejected", "wrong", "wrong ones");
  if (integer_of(unknown, "junk")) text += ", " + part("junk_rejected", "junk", "grey and noisy ones");
  return text;
}

std::string counted(int64_t number, const char* what) {
  return worded(number == 1 ? "%lld %s" : "%lld %ss", static_cast<long long>(number), what);
}

std::string megabytes(double size) { return size >= 1e6 ? worded("%.1f MB", size / 1e6) : worded("%.0f kB", size / 1e3); }

std::string percent(double share, int digits) { return worded("%.*f%%", digits, 100 * share); }

std::string worded(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = formatted(format, arguments);
  va_end(arguments);
  return text;
}

double number_of(const json::Value& event, const char* name) {
  const json::Value* value = event.find(name);
  return value && value->is_number() ? value->number() : 0;
}

int64_t integer_of(const json::Value& event, const char* name) {
  const json::Value* value = event.find(name);
  return value ? value->integer() : 0;
}

bool says(const json::Value& event, const char* name) {
  const json::Value* value = event.find(name);
  return value && !value->is_null();
}

}  // namespace tinytl
