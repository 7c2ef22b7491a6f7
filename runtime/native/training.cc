#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "clock.h"
#include "course.h"
#include "dataset.h"
#include "execute.h"
#include "footprint.h"
#include "judge.h"
#include "layout.h"
#include "learning/one_pass.h"
#include "learning/pulled.h"
#include "learning_rates.h"
#include "program.h"
#include "samples.h"
#include "sampling.h"
#include "store.h"
#include "trainer.h"
#include "training_events.h"
#include "within_error.h"

namespace tinytl {

volatile int stop_asked = 0;

namespace {

constexpr uint32_t kFittingSaid = 16;  // images between two events
constexpr double kHopeless = 10;  // an epoch's loss this many times that of guessing will not come back

bool exists(const std::string& path) {
  struct stat found;
  return stat(path.c_str(), &found) == 0;
}

std::vector<uint32_t> as_numbers(const std::vector<int64_t>& integers) { return {integers.begin(), integers.end()}; }

std::unique_ptr<Program> program_of(const Job& job) {
  std::unique_ptr<Program> program = Program::load(job.text("program"), true);
  program->use_classes(job.texts("classes").size());
  return program;
}

class Training {
 public:
  Training(const Job& job, Events& events)
      : options_(job.nested("options")),
        run_(job.text("run")),
        bundle_(job.text("bundle_identity")),
        program_(program_of(job)),
        dataset_(Dataset::open(job.text("train"))),
        samples_(*program_, dataset_),
        execution_(*program_, options_.threads()),
        classes_(job.texts("classes")),
        rates_(job.rates("learning_rates")),
        shares_(job.numbers("shares", 0, 1)),
        keeps_best_(job.flag("keeps_best")),
        log_priors_(job.numbers("log_priors", -1e3, 0)),
        batch_size_(job.integer("batch_size", 1, 1 << 20)),
        memory_(job.is_null("memory") ? INT64_MAX : job.integer("memory", 1, INT64_MAX)),
        seed_(static_cast<uint64_t>(options_.integer("seed", 0, INT64_MAX))),
        fits_(!job.is_null("first_pass")),
        first_pass_(fits_ ? FirstPass::of(job.nested("first_pass"), *program_, run_) : FirstPass()),
        to_keep_(as_numbers(job.integers("features_of", 0, dataset_.count() - 1))),
        course_(Course::of(job, dataset_.count(), batch_size_)),
        order_(dataset_.count()),
        said_(events) {
    for (Parameter& parameter : program_->parameters) {
      if (!parameter.trains()) continue;
      if (!rates_.count(parameter.group))
        fail(kUsage, "The job has no learning rate for the group '%s'.", parameter.group.c_str());
      parameter.rate = rates_.at(parameter.group);
    }
    if (batch_size_ > 1 && !program_->accumulates)
      fail(kUsage, "This bundle is prepared for a batch of 1: train with --batch-size 1, or prepare it with another.");
    if (!job.is_null("val")) {
      validation_ = std::make_unique<Dataset>(Dataset::open(job.text("val")));
      judge_ = std::make_unique<Judge>(*program_, *validation_, validation_->all());
    } else if (!course_.held_out.empty()) {
      judge_ = std::make_unique<Judge>(*program_, dataset_, course_.held_out);
    }
    if (fits_) {
      const std::vector<int64_t> judged = job.nested("first_pass").integers("kept_judged", 0, 1 << 20);
      if (!judged.empty()) old_place_ = std::make_unique<Judge>(*program_, *first_pass_.stand_ins.images, as_numbers(judged));
    }
    if (!log_priors_.empty() && log_priors_.size() != static_cast<size_t>(program_->classes))
      fail(kUsage, "The job has no prior for every class.");
    goes_on_ = job.flag("resume") && exists(checkpoint_path());
    if (goes_on_) at_ = read_checkpoint(checkpoint_path(), *program_);
    said_.reserve(course_.steps() - std::min(at_.step, course_.steps()));
  }

  void run() {
    said_.start(options_, course_, dataset_.count(), batch_size_, at_.step, rates_);
    if (!goes_on_) begin();
    if (goes_on_ && at_.step > 0) end_what_was_under_way();
    while (at_.step < course_.steps()) {
      const Stage& stage = stage_of(at_.step + 1);
      if (at_.step == stage.first_step && at_.step > 0) begin_anew(stage);
      if (at_.share == 0) break;  // training brings nothing
      if (stage.ends_epoch(at_.step)) at_.sums = {};
      train_epoch(stage);
      end_epoch(stage);
    }
    finish();
  }

 private:
  std::string checkpoint_path() const { return run_ + "/checkpoint.safetensors"; }
  std::string adapter_path() const { return run_ + "/adapter.safetensors"; }
  std::string start_path() const { return run_ + "/start.safetensors"; }
  std::string best_path() const { return run_ + "/best.safetensors"; }
  std::string judged_path() const { return run_ + "/judged.safetensors"; }
  std::string judged_start_path() const { return run_ + "/judged-start.safetensors"; }

  // The one of a step, counted from 1.
  const Stage& stage_of(int64_t step) const {
    size_t i = 0;
    while (i + 1 < course_.stages.size() && course_.stages[i].end() < step) ++i;
    return course_.stages[i];
  }

  // Does the judge see images that this stage does not learn from?
  bool is_judged(const Stage& stage) const { return judge_ && (validation_ || !stage.with_held_out); }

  // Does the classifier know its classes at the start, so that it may be kept?
  bool knows() const { return fits_ || shares_[0] < 1; }
  const Score* score() const { return judge_ ? &at_.score : nullptr; }
  const Score* start() const { return judge_ && knows() ? &at_.start : nullptr; }

  void begin() {
    const double begin = now();
    if (!course_.stages.empty() && !course_.stages[0].start.empty()) read_adapter(course_.stages[0].start, *program_);
    Fitted found;
    const double deployed = judge_ && first_pass_.towards ? measure(false).accuracy : NAN;
    at_.kept_before = in_old_place();
    if (fits_) found = fit(course_.others);
    if (!std::isnan(deployed)) found.accuracy_before = deployed;
    look_back(found);
    if (judge_ && knows()) {
      at_.start = at_.score = measure(false);
      if (options_.is_null("flip") && course_.steps() > 0) try_mirrored();
    }
    if (course_.steps() > 0 && (knows() || course_.stages.size() > 1)) write(start_path());
    if (!fits_) return;
    save();
    said_.one_pass(found, false, score(), 1e3 * (now() - begin));
  }

  void try_mirrored() {
    const Mirrored mirrored = judge_->mirrored(execution_, [&] { stop_if_asked(false); });
    at_.flips = !mirrored.harms();
    if (mirrored.harms()) said_.warn_of(mirrored);
  }

  void begin_anew(const Stage& stage) {
    const double begin = now();
    read_adapter(stage.start.empty() ? start_path() : stage.start, *program_);
    forget_moments(*program_);
    if (!stage.start.empty()) write(start_path());
    if (!fits_) return;
    Fitted found = fit(stage.images);
    look_back(found);
    write(start_path());
    said_.one_pass(found, true, nullptr, 1e3 * (now() - begin));
  }

  // The accuracy where the classifier comes from, if there are images of it.
  double in_old_place() {
    return old_place_ ? old_place_->measure(execution_, [&] { stop_if_asked(false); }).accuracy : NAN;
  }

  // What is given up there is said of the one pass; images left out of it said it before.
  void look_back(Fitted& found) {
    if (!old_place_) return;
    found.fit.kept_before = at_.kept_before;
    found.fit.kept = at_.kept = in_old_place();
  }

  // Does it give up little there, or no more than the start does?
  bool keeps_old_place(double start) const { return !(at_.kept < std::min(at_.kept_before - kMostGivenUp, start)); }

  Fitted fit(const std::vector<uint32_t>& images) {
    const double smoothing = options_.number("label_smoothing", 0, 1);
    const auto behind_each = [&](uint32_t done) {
      if (stop_asked) interrupted();
      said_.tick();
      if (done % kFittingSaid == 0 || done == images.size()) said_.fitting(done, images.size());
    };
    const Fitted fitted = fit_in_one_pass(*program_, dataset_, samples_, execution_, images, first_pass_, run_, smoothing,
                                          memory_, behind_each);
    const LinearFit& found = fitted.fit;
    at_.left_out = found.left_out ? found.accuracy : NAN;
    if (!at_.unknown.known()) at_.unknown = Unknown::of(found.answers, program_->classes);
    at_.sums = {fitted.seen.losses, fitted.seen.correct, fitted.samples, fitted.seen.low, fitted.seen.high};
    return fitted;
  }

  // Goes on where training stopped behind the last step of an epoch.
  void end_what_was_under_way() {
    const Stage& stage = stage_of(at_.step);
    if (at_.step != at_.ended) {
      if (stage.ends_epoch(at_.step)) end_epoch(stage);
    } else if (at_.step == stage.end() && is_judged(stage) && std::isnan(at_.share)) {
      choose();
    }
  }

  void train_epoch(const Stage& stage) {
    give_back_unused();
    const int64_t epoch = stage.epoch_of(at_.step);
    epoch_order(seed_, static_cast<uint64_t>(epoch - stage.first_epoch), static_cast<uint32_t>(stage.images.size()),
                order_.data());
    do {
      one_step(stage, epoch);
      if (stop_asked) {
        save();
        interrupted();
      }
    } while (!stage.ends_epoch(at_.step));
  }

  void end_epoch(const Stage& stage) {
    const double mean = at_.sums.losses / static_cast<double>(at_.sums.seen);
    const bool hopeless = mean > kHopeless * std::log(program_->multi_label ? 2 : program_->classes);
    if (hopeless && mean > first_loss_) diverged("the epoch's loss is far above that of guessing");
    const int64_t epoch = stage.epoch_of(at_.step - 1);
    const bool judged = is_judged(stage);
    if (judged) {
      at_.score = measure(true);
      if (keeps_best_ && (!at_.best_step || at_.score.class_loss < at_.best.class_loss)) {
        at_.best = at_.score;
        at_.best_step = at_.step;
        write(best_path());
      }
    }
    at_.ended = at_.step;
    save();
    const double accuracy = share_of(at_.sums.correct, at_.sums.seen, samples_.answers());
    said_.epoch(epoch, at_.step, mean, accuracy, judged ? score() : nullptr);
    if (judged && at_.step == stage.end()) choose();
  }

  // What the judge likes best: some way from the start to what was trained, or an earlier epoch.
  void choose() {
    std::vector<Candidate> candidates;
    for (const double share : shares_) {
      read_adapter(adapter_path(), *program_);
      if (share < 1) blend(start_path(), share, *program_);
      std::vector<float> logits;
      const Score score = judge_->measure(execution_, [&] { stop_if_asked(false); }, nullptr, &logits);
      at_.kept = in_old_place();
      if (!candidates.empty() && !keeps_old_place(candidates.front().kept)) break;
      candidates.push_back({share, at_.kept, score, judge_->losses_at_best_scale(logits)});
    }
    const Candidate& best = first_pass_.towards ? nearest(candidates) : least_loss(candidates);
    at_.share = best.share;
    at_.score = best.score;
    bool earlier = keeps_best_ && at_.best.class_loss < best.score.class_loss;
    if (earlier) {
      read_adapter(best_path(), *program_);
      at_.kept = in_old_place();
      earlier = keeps_old_place(candidates.front().kept);
    }
    if (earlier) {
      at_.share = 1;
      at_.score = at_.best;
    } else {
      at_.kept = best.kept;
      read_adapter(adapter_path(), *program_);
    }
    look_closer();
    save();
    const int64_t last = earlier ? at_.best_step : at_.step;
    said_.choice(at_.share, stage_of(last).epoch_of(last - 1), judged(), start(), score(), at_.kept);
  }

  // What training may end with.
  struct Candidate {
    double share, kept;  // of what was trained; the accuracy where the classifier comes from
    Score score;
    std::vector<double> losses;  // at the best scale
  };

  static const Candidate& least_loss(const std::vector<Candidate>& candidates) {
    return *std::min_element(candidates.begin(), candidates.end(), [](const Candidate& one, const Candidate& other) {
      return one.score.class_loss < other.score.class_loss;
    });
  }

  // Of a deployed classifier, which knows another place as well: the least share, if any, that is about as good as the best.
  // Its logits are as large as the images that it is pulled to call for; training smooths labels.
  const Candidate& nearest(const std::vector<Candidate>& candidates) const {
    const std::vector<double> shares = judge_->shares();
    const auto mean = [&](const Candidate& candidate) {
      return mean_of(shares, 0, shares.size(), [&](size_t image) { return candidate.losses[image]; });
    };
    const Candidate& best = *std::min_element(candidates.begin(), candidates.end(),
                                              [&](const Candidate& a, const Candidate& b) { return mean(a) < mean(b); });
    for (const Candidate* one = candidates.data(); one != &best; ++one)
      if (one->share > 0 && within_error(one->losses, best.losses, shares, shares.size())) return *one;
    return best;
  }

  // At what was chosen, as it will be: how sure its answers are. Before all images are learnt from, that itself is kept,
  // and where it began: a training that goes on from this one is judged by way of them, and reports are written.
  void look_closer() {
    if (at_.share < 1) blend(start_path(), at_.share, *program_);
    std::vector<Sure> answers;
    judge_->measure(execution_, [&] { stop_if_asked(false); }, &answers);
    const Unknown found = program_->multi_label ? Unknown() : Unknown::of(answers, program_->classes);
    if (found.known()) at_.unknown = found;  // else, of few, what leaving out told
    if (!validation_) {
      write(judged_path());
      read_adapter(start_path(), *program_);
      write(judged_start_path());
    }
    if (!validation_ || at_.share < 1) read_adapter(adapter_path(), *program_);
  }

  // How many images without anything on them are taken for something.
  void try_junk() {
    if (!at_.unknown.known()) return;
    for (int number = 0; number < kJunk; ++number) {
      samples_.fill_junk(number, execution_);
      execution_.forward(nullptr);
      ++at_.unknown.junk;
      at_.unknown.junk_rejected += surest(execution_.logits(), program_->classes) < at_.unknown.below;
    }
  }

  // What was learnt from all images may give up more than what the trial had learnt.
  void keep_old_place() {
    if (!old_place_ || course_.steps() == 0) return;
    const double start = at_.kept;
    at_.kept = in_old_place();
    for (auto share = shares_.rbegin(); share != shares_.rend() && !keeps_old_place(start); ++share) {
      if (*share >= at_.share) continue;
      at_.share = *share;
      read_adapter(adapter_path(), *program_);
      blend(start_path(), at_.share, *program_);
      at_.kept = in_old_place();
    }
  }

  void finish() {
    if (course_.steps() > 0 && std::isnan(at_.share)) {
      at_.share = shares_.back();
      if (at_.share < 1) said_.choice(at_.share, course_.epochs() - 1, judged(), nullptr, nullptr, NAN);
    }
    if (at_.share < 1) {
      blend(start_path(), at_.share, *program_);
      add_range(start_path(), at_.sums);
    }
    keep_old_place();
    try_junk();
    if (!to_keep_.empty()) {
      StandIns stood_in = course_.steps() > 0 ? StandIns() : first_pass_.stand_ins;  // training changes what features are
      stood_in.others.clear();                                                       // of classes without images alone
      stood_in.learnt.clear();
      keep_features(*program_, dataset_, samples_, execution_, to_keep_, stood_in, run_, run_ + "/features.safetensors",
                    classes_, [&](uint32_t) { stop_if_asked(false); });
    }
    write(adapter_path());
    said_.done(at_, judged(), start(), score(), old_place_ ? old_place_->images() : 0);
  }

  // Images [first, end) of an epoch, which go together through the program's joint part; returns the sum of their losses.
  double learn_from(const Stage& stage, int64_t epoch, int64_t first, int64_t end, Sample sample, int64_t batch_end) {
    const double smoothing = options_.number("label_smoothing", 0, 1);
    const double min_area = options_.number("min_area", 0, 1);
    const bool flip = options_.is_null("flip") ? at_.flips : options_.flag("flip");
    const auto e = static_cast<uint64_t>(epoch - stage.first_epoch);
    const auto image = [&](int64_t position) { return stage.images[order_[static_cast<size_t>(position)]]; };
    const Execution::MaskFiller masks = [&](int32_t place, int32_t layer, int64_t elements, float* out) {
      const DropoutLayer& dropout = program_->dropouts[static_cast<size_t>(layer)];
      const double rate = options_.is_null("dropout") ? dropout.rate : options_.number("dropout", 0, 0.99);
      dropout_mask(seed_, e, static_cast<uint64_t>(first + place), static_cast<uint64_t>(layer),
                   static_cast<size_t>(dropout.pixels), static_cast<size_t>(elements / dropout.pixels), rate, out);
    };
    const auto each = [&](const auto& body) {
      for (int64_t position = first; position < end; ++position) {
        execution_.turn_to(static_cast<int32_t>(position - first));
        body(position);
      }
    };
    std::vector<Sample> samples;
    each([&](int64_t position) {
      const auto p = static_cast<uint64_t>(position);
      sample.ends_batch = position + 1 == batch_end;
      sample.seed = key({seed_, e, p});
      samples.push_back(sample);
      samples_.fill(image(position), random_crop(seed_, e, p, dataset_.stored(), min_area, flip), smoothing, execution_);
      execution_.forward_alone(&masks);
    });
    execution_.forward_jointly(static_cast<int32_t>(samples.size()), &masks);
    each([&](int64_t position) {
      at_.sums.correct += samples_.right_answers(image(position), execution_.logits());
      at_.sums.add_range(execution_.logits(), program_->classes);
      for (size_t i = 0; i < log_priors_.size(); ++i) execution_.logits()[i] += static_cast<float>(log_priors_[i]);
    });
    double loss = execution_.backward_jointly(samples) ? 0 : NAN;
    if (std::isnan(loss)) diverged("the loss is no longer a number");
    each([&](int64_t position) {
      loss += execution_.backward_alone(samples[static_cast<size_t>(position - first)]);
      if (!std::isfinite(loss)) diverged("the loss is no longer a number");
      said_.tick();
    });
    execution_.turn_to(0);
    return loss;
  }

  void one_step(const Stage& stage, int64_t epoch) {
    const double begin = now();
    const int64_t inside = at_.step - stage.first_step, count = static_cast<int64_t>(stage.images.size());
    const int64_t first = inside % stage.steps_an_epoch * batch_size_;
    const int64_t last = std::min<int64_t>(first + batch_size_, count);
    const Sample sample{.scale = static_cast<float>(1.0 / static_cast<double>(last - first)),
                  .ends_batch = false,
                  .schedule = schedule(inside, stage.steps()),
                  .step = inside + 1};
    double loss = 0;
    for (int64_t position = first; position < last; position += program_->together)
      loss += learn_from(stage, epoch, position, std::min<int64_t>(position + program_->together, last), sample, last);
    ++at_.step;
    at_.sums.losses += loss;
    at_.sums.seen += last - first;
    loss /= static_cast<double>(last - first);
    if (std::isnan(first_loss_)) first_loss_ = loss;
    const double ms = 1e3 * (now() - begin);
    said_.took(ms);
    if (at_.step % options_.integer("log_every", 1, INT64_MAX) == 0 || at_.step == 1 || at_.step == course_.steps())
      said_.step(at_.step, epoch, loss, rates_.at("classifier") * sample.schedule, ms);
  }

  // Of the parameters as they are, which are kept where it is stopped and `keeps`.
  Score measure(bool keeps) {
    return judge_->measure(execution_, [&] { stop_if_asked(keeps); });
  }

  void stop_if_asked(bool keeps) {
    said_.tick();
    if (!stop_asked) return;
    if (keeps) save();
    interrupted();
  }

  Judged judged() const {
    if (!judge_) return {0, nullptr, 0};
    return {judge_->images(), validation_ ? "val" : "held-out", samples_.answers()};
  }

  [[noreturn]] void interrupted() const {
    if (at_.step == 0) fail(kInterrupted, "Interrupted before the first step: go on with --resume.");
    fail(kInterrupted, "Interrupted at step %lld of %lld: go on with --resume, or use the adapter as it is.",
         static_cast<long long>(at_.step), static_cast<long long>(course_.steps()));
  }

  [[noreturn]] void diverged(const char* how) const {
    fail(kDiverged,
         "Training diverged at step %lld: %s; %s. Train again with lower learning rates (--lr, --lr-bias, ...), into "
         "another --out.",
         static_cast<long long>(at_.step), how,
         exists(adapter_path()) ? "the last good adapter stays" : "there is no adapter yet");
  }

  void write(const std::string& path) { write_adapter(path, *program_, bundle_, classes_, at_); }

  void save() {
    give_back_unused();
    if (!all_finite(*program_)) diverged("a parameter is no longer a number");
    write(adapter_path());
    write_checkpoint(checkpoint_path(), *program_, at_);
    said_.checkpoint(at_.step);
  }

  const Job options_;
  const std::string run_, bundle_;
  const std::unique_ptr<Program> program_;
  const Dataset dataset_;
  Samples samples_;
  Execution execution_;
  const std::vector<std::string> classes_;
  const Rates rates_;
  const std::vector<double> shares_;  // of what was trained in the result: to choose from
  const bool keeps_best_;  // of the epochs, where it is judged better than the last
  const std::vector<double> log_priors_;  // added to the logits, by class; none where empty
  const int64_t batch_size_;
  const int64_t memory_;  // bytes that the process may take
  const uint64_t seed_;
  const bool fits_;  // the classifier in one pass, where training begins
  const FirstPass first_pass_;
  const std::vector<uint32_t> to_keep_;  // images whose features are kept in the end
  const Course course_;
  std::vector<uint32_t> order_;
  std::unique_ptr<Dataset> validation_;
  std::unique_ptr<Judge> judge_, old_place_;  // on images like those learnt from, and where the classifier comes from
  bool goes_on_ = false;  // from a checkpoint
  Standing at_;
  double first_loss_ = NAN;  // of this process; one that is high from the start, as with random weights, has not grown
  TrainingEvents said_;
};

}  // namespace

void train(const Job& job, Events& events) { Training(job, events).run(); }

}  // namespace tinytl
