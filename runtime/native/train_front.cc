#include "train_front.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "clock.h"
#include "errors.h"
#include "footprint.h"
#include "trainer.h"
#include "write_all.h"

namespace tinytl {
namespace {

// As runtime/workers/memory_watch.py: when the curve is full, every second point goes and the pace is halved.
constexpr double kInterval = 0.05;
constexpr size_t kPoints = 512;

constexpr double kPlanIsKept = 1.03;       // what a peak may take more than the plan before it is said
constexpr int64_t kOfTheSystem = 250'000;  // bytes: C libraries and kernels differ by as much

}  // namespace

TrainFront::TrainFront(const Job& job)
    : front_(job.nested("front")), run_(job.text("run")), json_(front_.text("lines") == "json"), begin_(now()) {
  curve_.reserve(kPoints);
}

bool TrainFront::hear(const char* kind, json::Writer& event) {
  tick();
  if (std::strcmp(kind, "fitting") == 0) {  // for a live line only
    event.integer("rss_bytes", resident());
    const std::string& passing = event.end_object().end_line().str();
    if (!json_) report_.hear(json::parse_or_fail(passing, kInternal, "An event is no JSON."), now());
    return true;
  }
  if (std::strcmp(kind, "one_pass") == 0 || std::strcmp(kind, "aligned") == 0) first_pass_ = peak_rss();
  if (std::strcmp(kind, "done") == 0) {
    finish(event);
  } else if (std::strcmp(kind, "warning") != 0) {
    event.integer("rss_bytes", resident());
  }
  const std::string& line = event.end_object().end_line().str();
  log(line);
  if (json_) return pass_on(line);
  const json::Value heard = json::parse_or_fail(line, kInternal, "An event is no JSON.");
  report_.hear(heard, now());
  if (std::strcmp(kind, "done") != 0) return true;
  report_.clear();
  return pass_on(summary(heard));
}

// Training ends at its next step where nobody reads it any more, and leaves a checkpoint.
bool TrainFront::pass_on(const std::string& line) {
  if (is_read_ && !print(line)) {
    is_read_ = false;
    stop_asked = 1;
  }
  return true;
}

void TrainFront::finish(json::Writer& event) {
  const int64_t peak = peak_rss();
  if (const std::string warning = above_plan(peak); !warning.empty()) {
    json::Writer said;
    said.begin_object().text("event", "warning").text("message", warning);
    hear("warning", said);
  }
  if (front_.is_null("planned_peak_bytes")) {
    event.null("planned_peak_bytes");
  } else {
    event.integer("planned_peak_bytes", front_.integer("planned_peak_bytes", 0, INT64_MAX));
  }
  event.begin_object("memory");
  const Job before = front_.nested("memory");
  before.write_members(event);
  event.integer("training", peak).end_object().text("adapter", front_.text("adapter"));
  std::string more = ",\"result\":" + event.str() + "},\"rss_curve\":[";
  for (const auto& [seconds, rss] : curve_) {
    if (more.back() == ']') more += ',';
    more += worded("[%.3f,%lld]", static_cast<double>(seconds), static_cast<long long>(rss));
  }
  write_record("done", more + "]");
}

std::string TrainFront::above_plan(int64_t peak) const {
  if (front_.is_null("planned_peak_bytes")) return "";
  // Without a limit the first pass takes what it likes.
  const auto planned = static_cast<double>(std::max(front_.integer("planned_peak_bytes", 0, INT64_MAX), first_pass_));
  const std::string took = "The trainer took " + megabytes(static_cast<double>(peak)) + " at its peak, ";
  if (!front_.is_null("memory_limit")) {
    const int64_t limit = front_.integer("memory_limit", 0, INT64_MAX);
    return peak > limit ? took + "above the bundle's limit of " + megabytes(static_cast<double>(limit)) + "." : "";
  }
  if (static_cast<double>(peak) > kPlanIsKept * planned + kOfTheSystem)
    return took + "where " + megabytes(planned) + " were planned.";
  return "";
}

void TrainFront::tick() {
  const double time = now();
  if (!json_) report_.tick(time);
  if (time < next_look_) return;
  next_look_ = time + kInterval;
  if (looks_++ % keep_each_ != 0) return;
  curve_.emplace_back(static_cast<float>(time - begin_), resident());
  if (curve_.size() < kPoints) return;
  for (size_t i = 0; i < kPoints / 2; ++i) curve_[i] = curve_[2 * i];
  curve_.resize(kPoints / 2);
  keep_each_ *= 2;
}

int TrainFront::failed(int exit_code, const char* message) {
  try {
    json::Writer event;
    event.begin_object().text("event", "error").text("message", message).integer("exit_code", exit_code);
    const std::string& line = event.end_object().end_line().str();
    if (json_) pass_on(line);
    log(line);
  } catch (const Failure&) {  // the first tells more
  }
  try {
    json::Writer error;
    error.begin_object().text("error", message).end_object();  // its member, without the braces
    write_record(exit_code == kInterrupted ? "interrupted" : "failed",
                 "," + error.str().substr(1, error.str().size() - 2));
  } catch (const Failure&) {
  }
  report_.clear();
  if (!is_read_) return kNobodyReads;
  return Front::failed(exit_code, message);
}

void TrainFront::log(const std::string& line) {
  const std::string path = run_ + "/events.jsonl";
  if (events_.get() < 0) events_ = File(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (events_.get() < 0 || !write_all(events_.get(), line.data(), line.size()))
    fail(kStorage, "%s could not be written: %s.", path.c_str(), std::strerror(errno));
}

// run.json: what the command line knew, and what became of it. `more` members begin with a comma.
void TrainFront::write_record(const char* status, const std::string& more) {
  json::Writer record;
  record.begin_object();
  front_.nested("record").write_members(record);
  record.text("status", status);
  const std::string content = record.str() + more + "}\n";
  AtomicFile file(run_ + "/run.json");
  file.write(content.data(), content.size());
  file.commit();
}

}  // namespace tinytl
