// What a training says while it goes.
#pragma once

#include <cstdint>
#include <vector>

#include "course.h"
#include "events.h"
#include "job.h"
#include "judge.h"
#include "learning/aligned.h"
#include "learning/one_pass.h"
#include "learning_rates.h"
#include "store.h"

namespace tinytl {

// On what scores were measured.
struct Judged {
  int64_t images;  // 0: on none
  const char* what;  // "val", "held-out" or null
  int answers;  // about an image
};

// What came of aligning a classifier with so many images; of so many kept ones' features how many are right, before and now.
struct Alignment {
  Aligned found;
  int64_t images, kept_images;
  double kept_before = 0, kept = 0;
  Score score{};  // of the aligned classifier, where there is a judge
  bool taken = false;
};

// Scores that are null were not measured. Each event throws Failure where nobody listens any more.
class TrainingEvents {
 public:
  explicit TrainingEvents(Events& events) : events_(events) {}

  void start(const Job& options, const Course& course, uint32_t images, int64_t batch_size, int64_t step, const Rates& rates);
  void fitting(size_t done, size_t total);
  void one_pass(const Fitted& fitted, bool anew, const Score* score, double ms);
  // `start`: of the classifier as it was; null without a judge.
  void aligned(const Alignment& alignment, const Score* start, double ms);
  void warn_of(const Mirrored& mirrored);
  void step(int64_t step, int64_t epoch, double loss, double rate, double ms);
  void checkpoint(int64_t step);
  void epoch(int64_t epoch, int64_t step, double loss, double accuracy, const Score* score);
  // `kept`: the accuracy where the classifier comes from (NAN: nobody knows).
  void choice(double share, int64_t epoch, const Judged& judged, const Score* start, const Score* score, double kept);
  // `kept_images`: so many are of there.
  void done(const Standing& at, const Judged& judged, const Score* start, const Score* score, int64_t kept_images);

  void tick() { events_.tick(); }
  // Takes room for the times of so many steps, of which the median is said in the end.
  void reserve(int64_t steps);
  void took(double ms);

 private:
  void send();

  Events& events_;
  std::vector<float> durations_;
};

}  // namespace tinytl
