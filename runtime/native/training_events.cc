#include "training_events.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "errors.h"
#include "footprint.h"

namespace tinytl {
namespace {

constexpr int64_t kTimes = 1 << 16;  // steps of which the times are kept

double median(std::vector<float>& values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

void say_score(json::Writer& event, const Score* score) {
  const double none = NAN;  // written as null
  event.number("val_loss", score ? score->loss : none)
      .number("val_accuracy", score ? score->accuracy : none)
      .number("val_class_accuracy", score ? score->class_accuracy : none);
}

void say_judged(json::Writer& event, const Judged& judged, const Score* start, const Score* score) {
  const double none = NAN;
  if (judged.what) {
    event.text("judge", judged.what);
  } else {
    event.null("judge");
  }
  event.integer("val_images", judged.images)
      .number("start_loss", start ? start->loss : none)
      .number("start_accuracy", start ? start->accuracy : none)
      .number("start_class_accuracy", start ? start->class_accuracy : none);
  say_score(event, score);
  if (!score || judged.answers != 1) {
    event.null("val_interval");
    return;
  }
  const Interval likely = interval(score->accuracy, judged.images);
  event.begin_array("val_interval").number(likely.low).number(likely.high).end_array();
}

}  // namespace

void TrainingEvents::start(const Job& options, const Course& course, uint32_t images, int64_t batch_size, int64_t step,
                           const Rates& rates) {
  json::Writer& event = events_.begin("start");
  event.text("runtime", "native")
      .text("executable", executable_name())
      .integer("step", step)
      .integer("total_steps", course.steps())
      .integer("epochs", course.epochs())
      .integer("images", images)
      .integer("held_out", static_cast<int64_t>(course.held_out.size()))
      .integer("batch_size", batch_size)
      .begin_object("learning_rates");
  for (const auto& [group, rate] : rates) event.number(group, rate);
  event.end_object().integer("threads", options.threads()).integer("peak_rss_bytes", peak_rss());
  send();
}

void TrainingEvents::fitting(size_t done, size_t total) {
  events_.begin("fitting").integer("done", static_cast<int64_t>(done)).integer("total", static_cast<int64_t>(total));
  send();
}

void TrainingEvents::one_pass(const Fitted& fitted, bool anew, const Score* score, double ms) {
  json::Writer& event = events_.begin("one_pass");
  const LinearFit& found = fitted.fit;
  const double known = fitted.known ? static_cast<double>(fitted.known) : NAN;
  event.integer("images", fitted.samples - fitted.stood_in)
      .boolean("anew", anew)
      .integer("stood_in", fitted.stood_in)
      .integer("known", fitted.known)
      .number("known_accuracy_before", static_cast<double>(fitted.known_right_before) / known)
      .number("known_accuracy", static_cast<double>(fitted.known_right) / known)
      .number("accuracy_before", fitted.accuracy_before)
      .number("shrinkage", found.shrinkage)
      .number("pull", found.pull)
      .number("kept_accuracy_before", found.kept_before)
      .number("kept_accuracy", found.kept)
      .number("left_out_loss", found.left_out ? found.loss : NAN)
      .number("left_out_accuracy", found.left_out ? found.accuracy : NAN);
  say_score(event, score);
  event.number("ms", ms).integer("peak_rss_bytes", peak_rss());
  send();
}

void TrainingEvents::aligned(const Alignment& alignment, const Score* start, double ms) {
  const Aligned& found = alignment.found;
  json::Writer& event = events_.begin("aligned");
  event.integer("images", alignment.images)
      .integer("kept_images", alignment.kept_images)
      .boolean("taken", alignment.taken)
      .number("share", found.share)
      .number("sure_before", found.sure_before)
      .number("sure", found.sure)
      .number("agreed_before", found.agreed_before)
      .number("agreed", found.agreed)
      .number("kept_accuracy_before", alignment.kept_before)
      .number("kept_accuracy", alignment.kept)
      .number("accuracy_before", start ? start->accuracy : NAN);
  say_score(event, start ? &alignment.score : nullptr);
  event.number("ms", ms).integer("peak_rss_bytes", peak_rss());
  send();
}

void TrainingEvents::warn_of(const Mirrored& mirrored) {
  char message[200];
  std::snprintf(message, sizeof message,
                "Mirrored, %lld more of %lld images are taken for another class: images are not mirrored while training "
                "(--flip mirrors them).",
                static_cast<long long>(mirrored.lost - mirrored.gained), static_cast<long long>(mirrored.images));
  events_.begin("warning").text("message", message);
  send();
}

void TrainingEvents::step(int64_t step, int64_t epoch, double loss, double rate, double ms) {
  events_.begin("step")
      .integer("step", step)
      .integer("epoch", epoch + 1)
      .number("loss", loss)
      .number("lr", rate)
      .number("ms", ms);
  send();
}

void TrainingEvents::checkpoint(int64_t step) {
  events_.begin("checkpoint").integer("step", step);
  send();
}

void TrainingEvents::epoch(int64_t epoch, int64_t step, double loss, double accuracy, const Score* score) {
  json::Writer& event = events_.begin("epoch");
  event.integer("epoch", epoch + 1).integer("step", step).number("train_loss", loss).number("train_accuracy", accuracy);
  say_score(event, score);
  event.integer("peak_rss_bytes", peak_rss());
  send();
}

void TrainingEvents::choice(double share, int64_t epoch, const Judged& judged, const Score* start, const Score* score,
                            double kept) {
  json::Writer& event = events_.begin("choice");
  event.number("share", share).integer("epoch", epoch + 1).number("kept_accuracy", kept);
  say_judged(event, judged, start, score);
  send();
}

void TrainingEvents::done(const Standing& at, const Judged& judged, const Score* start, const Score* score, int64_t kept_images) {
  json::Writer& event = events_.begin("done");
  event.text("runtime", "native")
      .integer("steps", at.step)
      .number("step_ms_median", durations_.empty() ? NAN : median(durations_))
      .number("train_loss", at.sums.seen ? at.sums.losses / static_cast<double>(at.sums.seen) : NAN)
      .number("left_out_accuracy", at.left_out)
      .number("share", at.share);
  say_judged(event, judged, start, score);
  event.integer("kept_images", kept_images).number("kept_accuracy_before", at.kept_before).number("kept_accuracy", at.kept);
  write_unknown(event, "unknown", at.unknown);
  event.integer("peak_rss_bytes", peak_rss());
  send();
}

void TrainingEvents::reserve(int64_t steps) { durations_.reserve(static_cast<size_t>(std::min(steps, kTimes))); }

void TrainingEvents::took(double ms) {
  if (durations_.size() < durations_.capacity()) durations_.push_back(static_cast<float>(ms));
}

void TrainingEvents::send() {
  if (!events_.send()) fail(kNobodyReads, "Nobody listens any more.");
}

}  // namespace tinytl
