#include "trainer.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "clock.h"
#include "dataset.h"
#include "execute.h"
#include "footprint.h"
#include "layout.h"
#include "learning/one_pass.h"
#include "learning_rates.h"
#include "program.h"
#include "samples.h"
#include "sampling.h"
#include "store.h"

namespace tinytl {

volatile int stop_asked = 0;

namespace {

constexpr uint32_t kFittingSaid = 16;  // images between two events
constexpr double kHopeless = 10;  // an epoch's loss this many times that of guessing will not come back

bool exists(const std::string& path) {
  struct stat found;
  return stat(path.c_str(), &found) == 0;
}

// Of a sample behind its forward pass.
double loss_of(Execution& execution, const Program& program) {
  const auto loss = program.multi_label ? sigmoid_cross_entropy : softmax_cross_entropy;
  return static_cast<double>(loss(execution.logits(), execution.targets(), nullptr, program.classes, 1));
}

double median(std::vector<float>& values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

double share(int64_t right, int64_t samples, int answers) {
  return static_cast<double>(right) / (static_cast<double>(samples) * answers);
}

void send(Events& events) {
  if (!events.send()) fail(kNobodyReads, "Nobody listens any more.");
}

struct Score {
  double loss = 0;
  double accuracy = 0;
};

class Training {
 public:
  Training(const Job& job, Events& events)
      : events_(events),
        options_(job.nested("options")),
        run_(job.text("run")),
        bundle_(job.text("bundle_identity")),
        program_(Program::load(job.text("program"), true)),
        dataset_(Dataset::open(job.text("train"))),
        samples_(*program_, dataset_),
        execution_(*program_, options_.threads()),
        rates_(job.rates("learning_rates")),
        batch_size_(job.integer("batch_size", 1, 1 << 20)),
        epochs_(options_.integer("epochs", 0, 1 << 30)),
        blend_(options_.is_null("blend") ? 1 : options_.number("blend", 0, 1)),
        memory_(job.is_null("memory") ? INT64_MAX : job.integer("memory", 1, INT64_MAX)),
        seed_(static_cast<uint64_t>(options_.integer("seed", 0, INT64_MAX))),
        order_(dataset_.count()) {
    for (Parameter& parameter : program_->parameters) {
      if (!parameter.trains()) continue;
      if (!rates_.count(parameter.group))
        fail(kUsage, "The job has no learning rate for the group '%s'.", parameter.group.c_str());
      parameter.rate = rates_.at(parameter.group);
    }
    if (batch_size_ > 1 && !program_->accumulates)
      fail(kUsage, "This bundle is prepared for a batch of 1: train with --batch-size 1, or prepare it with another.");
    if (!job.is_null("val")) {
      validation_data_ = std::make_unique<Dataset>(Dataset::open(job.text("val")));
      validation_ = std::make_unique<Samples>(*program_, *validation_data_);
    }
    classes_ = dataset_.classes();
    steps_an_epoch_ = (int64_t{dataset_.count()} + batch_size_ - 1) / batch_size_;
    total_ = steps_an_epoch_ * epochs_;
    goes_on_ = job.flag("resume") && exists(checkpoint_path());
    if (goes_on_) step_ = read_checkpoint(checkpoint_path(), *program_, sums_);
    // Medians are of the last steps, in room that is taken now.
    durations_.reserve(static_cast<size_t>(std::min<int64_t>(total_ - std::min(step_, total_), 1 << 16)));
  }

  void run() {
    say_start();
    if (!goes_on_) {
      if (options_.optional_text("start") == "one-pass") begin_in_one_pass();
      if (total_ > 0 && blend_ < 1) write_adapter(start_path(), *program_, bundle_, classes_, 0, sums_);
    }
    const int64_t begun_at = step_;
    while (step_ < total_) {
      give_back_unused();
      const int64_t epoch = step_ / steps_an_epoch_;
      epoch_order(seed_, static_cast<uint64_t>(epoch), dataset_.count(), order_.data());
      if (step_ % steps_an_epoch_ == 0) sums_ = {};
      do {
        one_step(epoch);
        if (stop_asked) {
          save();
          fail(kInterrupted, "Interrupted at step %lld of %lld: go on with --resume, or use the adapter as it is.",
               static_cast<long long>(step_), static_cast<long long>(total_));
        }
      } while (step_ % steps_an_epoch_ != 0);
      const double mean = sums_.losses / static_cast<double>(sums_.seen);
      const bool hopeless = mean > kHopeless * std::log(program_->multi_label ? 2 : program_->classes);
      if (hopeless && mean > first_loss_) diverged("the epoch's loss is far above that of guessing");
      save();
      if (validation_) score_ = measure();
      say_epoch(epoch, mean);
    }
    if (step_ == begun_at && goes_on_) {  // resumed behind the last epoch, of which the end may have been lost
      save();
      if (validation_) score_ = measure();
    }
    if (step_ > 0 && blend_ < 1) blend_with_start();
    say_done();
  }

 private:
  std::string checkpoint_path() const { return run_ + "/checkpoint.safetensors"; }
  std::string adapter_path() const { return run_ + "/adapter.safetensors"; }
  std::string start_path() const { return run_ + "/start.safetensors"; }

  void begin_in_one_pass() {
    const double begin = now();
    const double smoothing = options_.number("label_smoothing", 0, 1);
    const Discriminant found = fit_in_one_pass(*program_, dataset_, samples_, execution_, run_, smoothing, memory_, [&](uint32_t done) {
      if (stop_asked) fail(kInterrupted, "Interrupted before the first step: go on with --resume.");
      events_.tick();
      if (done % kFittingSaid != 0 && done != dataset_.count()) return;
      events_.begin("fitting").integer("done", done).integer("total", dataset_.count());
      send();
    });
    sums_ = {found.losses, found.correct, dataset_.count(), found.low, found.high};
    save();
    if (validation_) score_ = measure();
    json::Writer& event = events_.begin("one_pass");
    event.integer("images", dataset_.count())
        .number("shrinkage", found.shrinkage);
    if (found.left_out) {
      event.number("left_out_loss", found.loss).number("left_out_accuracy", found.accuracy);
    } else {
      event.null("left_out_loss").null("left_out_accuracy");
    }
    say_score(event);
    event.number("ms", 1e3 * (now() - begin)).integer("peak_rss_bytes", peak_rss());
    send();
  }

  // The checkpoint stays what was trained.
  void blend_with_start() {
    blend(start_path(), blend_, *program_, sums_);
    write_adapter(adapter_path(), *program_, bundle_, classes_, step_, sums_);
    if (validation_) score_ = measure();
    json::Writer& event = events_.begin("blend");
    event.number("share", blend_);
    say_score(event);
    send();
  }

  void one_step(int64_t epoch) {
    const double begin = now();
    const int64_t first = step_ % steps_an_epoch_ * batch_size_;
    const int64_t last = std::min<int64_t>(first + batch_size_, dataset_.count());
    const double smoothing = options_.number("label_smoothing", 0, 1);
    const double min_area = options_.number("min_area", 0, 1);
    const bool flip = options_.flag("flip");
    Sample sample{.scale = static_cast<float>(1.0 / static_cast<double>(last - first)),
                  .ends_batch = false,
                  .schedule = schedule(step_, total_),
                  .step = step_ + 1};
    double loss = 0;
    for (int64_t position = first; position < last; ++position) {
      const uint32_t index = order_[static_cast<size_t>(position)];
      const auto e = static_cast<uint64_t>(epoch), p = static_cast<uint64_t>(position);
      samples_.fill(index, random_crop(seed_, e, p, dataset_.stored(), min_area, flip), smoothing, execution_);
      const Execution::MaskFiller masks = [&](int32_t layer, int64_t elements, float* out) {
        const DropoutLayer& dropout = program_->dropouts[static_cast<size_t>(layer)];
        const double rate = options_.is_null("dropout") ? dropout.rate : options_.number("dropout", 0, 0.99);
        dropout_mask(seed_, e, p, static_cast<uint64_t>(layer), static_cast<size_t>(dropout.pixels),
                     static_cast<size_t>(elements / dropout.pixels), rate, out);
      };
      execution_.forward(&masks);
      sums_.correct += samples_.right_answers(index, execution_.logits());
      sums_.add_range(execution_.logits(), program_->classes);
      sample.ends_batch = position + 1 == last;
      sample.seed = key({seed_, e, p});
      loss += execution_.backward(sample);
      if (!std::isfinite(loss)) diverged("the loss is no longer a number");
      events_.tick();
    }
    ++step_;
    if (durations_.size() < durations_.capacity()) durations_.push_back(static_cast<float>(1e3 * (now() - begin)));
    sums_.losses += loss;
    sums_.seen += last - first;
    loss /= static_cast<double>(last - first);
    if (std::isnan(first_loss_)) first_loss_ = loss;
    if (step_ % options_.integer("log_every", 1, INT64_MAX) == 0 || step_ == 1 || step_ == total_) {
      events_.begin("step")
          .integer("step", step_)
          .integer("epoch", epoch + 1)
          .number("loss", loss)
          .number("lr", rates_.at("classifier") * sample.schedule)
          .number("ms", 1e3 * (now() - begin));
      send();
    }
  }

  Score measure() {
    Score score;
    const Crop crop = centre_crop(validation_data_->stored(), validation_data_->input());
    int64_t correct = 0;
    for (uint32_t i = 0; i < validation_->count(); ++i) {
      if (stop_asked)
        fail(kInterrupted, "Interrupted at step %lld of %lld: go on with --resume, or use the adapter as it is.",
             static_cast<long long>(step_), static_cast<long long>(total_));
      validation_->fill(i, crop, 0, execution_);
      execution_.forward(nullptr);
      correct += validation_->right_answers(i, execution_.logits());
      score.loss += loss_of(execution_, *program_);
      events_.tick();
    }
    score.loss /= validation_->count();
    score.accuracy = share(correct, validation_->count(), validation_->answers());
    return score;
  }

  [[noreturn]] void diverged(const char* how) const {
    fail(kDiverged, "Training diverged at step %lld: %s; %s. Lower the learning rates (--lr, --lr-bias, ...).",
         static_cast<long long>(step_), how,
         exists(adapter_path()) ? "the last good adapter stays" : "there is no adapter yet");
  }

  void save() {
    give_back_unused();
    if (!all_finite(*program_)) diverged("a parameter is no longer a number");
    write_adapter(adapter_path(), *program_, bundle_, classes_, step_, sums_);
    write_checkpoint(checkpoint_path(), *program_, step_, sums_);
    events_.begin("checkpoint").integer("step", step_);
    send();
  }

  void send() { tinytl::send(events_); }

  void say_start() {
    json::Writer& event = events_.begin("start");
    event.text("runtime", "native")
        .text("executable", executable_name())
        .integer("step", step_)
        .integer("total_steps", total_)
        .integer("epochs", epochs_)
        .integer("images", dataset_.count())
        .integer("batch_size", batch_size_)
        .begin_object("learning_rates");
    for (const auto& [group, rate] : rates_) event.number(group, rate);
    event.end_object().integer("threads", options_.threads()).integer("peak_rss_bytes", peak_rss());
    send();
  }

  void say_score(json::Writer& event) {
    if (validation_) {
      event.number("val_loss", score_.loss).number("val_accuracy", score_.accuracy);
    } else {
      event.null("val_loss").null("val_accuracy");
    }
  }

  void say_epoch(int64_t epoch, double mean_loss) {
    json::Writer& event = events_.begin("epoch");
    event.integer("epoch", epoch + 1)
        .integer("step", step_)
        .number("train_loss", mean_loss)
        .number("train_accuracy", share(sums_.correct, sums_.seen, samples_.answers()));
    say_score(event);
    event.integer("peak_rss_bytes", peak_rss());
    send();
  }

  void say_done() {
    json::Writer& event = events_.begin("done");
    event.text("runtime", "native").integer("steps", step_);
    if (durations_.empty()) {
      event.null("step_ms_median");
    } else {
      event.number("step_ms_median", median(durations_));
    }
    if (sums_.seen) {
      event.number("train_loss", sums_.losses / static_cast<double>(sums_.seen));
    } else {
      event.null("train_loss");
    }
    say_score(event);
    event.integer("peak_rss_bytes", peak_rss());
    send();
  }

  Events& events_;
  const Job options_;
  const std::string run_, bundle_;
  const std::unique_ptr<Program> program_;
  const Dataset dataset_;
  Samples samples_;
  Execution execution_;
  const Rates rates_;
  const int64_t batch_size_, epochs_;
  const double blend_;  // the share of what was trained in the result
  const int64_t memory_;  // bytes that the process may take
  const uint64_t seed_;
  std::vector<uint32_t> order_;
  std::unique_ptr<Dataset> validation_data_;
  std::unique_ptr<Samples> validation_;
  std::vector<std::string> classes_;
  int64_t steps_an_epoch_ = 0, total_ = 0, step_ = 0;
  bool goes_on_ = false;  // from a checkpoint
  EpochSums sums_;
  double first_loss_ = NAN;  // of this process; one that is high from the start, as with random weights, has not grown
  Score score_;
  std::vector<float> durations_;
};

std::unique_ptr<Program> adapted_program(const Job& job) {
  std::unique_ptr<Program> program = Program::load(job.text("program"), false);
  const std::string adapter = job.optional_text("adapter");
  if (!adapter.empty()) read_adapter(adapter, *program);
  return program;
}

// Multi-label of each class by itself, otherwise adding up to 1.
std::vector<double> probabilities(const float* logits, const Program& program) {
  std::vector<double> chances(static_cast<size_t>(program.classes));
  const float max_logit = *std::max_element(logits, logits + program.classes);
  double sum = 0;
  for (size_t i = 0; i < chances.size(); ++i) {
    const double logit = logits[i];
    chances[i] = program.multi_label ? 1 / (1 + std::exp(-logit)) : std::exp(logit - max_logit);
    sum += chances[i];
  }
  if (!program.multi_label)
    for (double& chance : chances) chance /= sum;
  return chances;
}

// Calls visit(index) behind the forward pass of every sample.
template <typename Visit>
void for_each_sample(const Dataset& data, Samples& samples, Execution& execution, Visit visit) {
  const Crop crop = centre_crop(data.stored(), data.input());
  for (uint32_t i = 0; i < samples.count(); ++i) {
    if (stop_asked) fail(kInterrupted, "Interrupted.");
    samples.fill(i, crop, 0, execution);
    execution.forward(nullptr);
    visit(i);
  }
}

}  // namespace

void train(const Job& job, Events& events) { Training(job, events).run(); }

void evaluate(const Job& job, Events& events) {
  const std::unique_ptr<Program> program = adapted_program(job);
  const Dataset data = Dataset::open(job.text("data"));
  Samples samples(*program, data);
  Execution execution(*program, job.threads());
  if (data.classes().empty()) fail(kData, "%s has images without a label.", data.path().c_str());
  // Multi-label, how often each was right; otherwise the confusion matrix.
  const bool multi_label = program->multi_label;
  const auto classes = static_cast<size_t>(program->classes);
  std::vector<int32_t> counts(multi_label ? classes : classes * classes);
  double losses = 0;
  int64_t correct = 0;
  for_each_sample(data, samples, execution, [&](uint32_t i) {
    const float* logits = execution.logits();
    losses += loss_of(execution, *program);
    correct += samples.right_answers(i, logits);
    if (multi_label) {
      for (size_t c = 0; c < classes; ++c) counts[c] += (logits[c] > 0) == samples.has(i, static_cast<int>(c));
    } else {
      ++counts[static_cast<size_t>(samples.label(i)) * classes + static_cast<size_t>(likeliest(logits, program->classes))];
    }
  });
  json::Writer& event = events.begin("done");
  event.text("runtime", "native")
      .integer("images", samples.count())
      .number("loss", losses / samples.count())
      .number("accuracy", share(correct, samples.count(), samples.answers()))
      .begin_array(multi_label ? "right" : "confusion");
  for (size_t row = 0; row < counts.size(); row += classes) {
    if (!multi_label) event.begin_array();
    for (size_t column = 0; column < classes; ++column) event.integer(counts[row + column]);
    if (!multi_label) event.end_array();
  }
  event.end_array().integer("peak_rss_bytes", peak_rss());
  send(events);
}

void predict(const Job& job, Events& events) {
  const std::unique_ptr<Program> program = adapted_program(job);
  const Dataset data = Dataset::open(job.text("data"));
  Samples samples(*program, data);
  Execution execution(*program, job.threads());
  for_each_sample(data, samples, execution, [&](uint32_t) {
    json::Writer& event = events.begin("prediction");
    event.begin_array("probabilities");
    for (const double probability : probabilities(execution.logits(), *program)) event.number(probability);
    event.end_array();
    send(events);
  });
  events.begin("done").text("runtime", "native").integer("images", samples.count()).integer("peak_rss_bytes", peak_rss());
  send(events);
}

void verify(const Job& job, Events& events) {
  const std::unique_ptr<Program> program = Program::load(job.text("program"), false);
  events.begin("done")
      .text("runtime", "native")
      .text("backbone", program->backbone)
      .text("method", program->method)
      .integer("operators", static_cast<int64_t>(program->ops.size()))
      .integer("parameters", static_cast<int64_t>(program->parameters.size()))
      .integer("arena_bytes", program->arena_bytes)
      .integer("peak_rss_bytes", peak_rss());
  events.send();
}

}  // namespace tinytl
