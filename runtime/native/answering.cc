// Evaluation, prediction and verification.
#include <algorithm>
#include <cmath>
#include <memory>

#include "dataset.h"
#include "execute.h"
#include "footprint.h"
#include "judge.h"
#include "program.h"
#include "samples.h"
#include "sampling.h"
#include "store.h"
#include "trainer.h"

namespace tinytl {
namespace {

void send(Events& events) {
  if (!events.send()) fail(kNobodyReads, "Nobody listens any more.");
}

std::unique_ptr<Program> adapted_program(const Job& job) {
  std::unique_ptr<Program> program = Program::load(job.text("program"), false);
  program->use_classes(job.texts("classes").size());
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
  Unknown unknown;
  if (!job.is_null("unknown_below")) unknown.below = job.number("unknown_below", 0, 1);
  for_each_sample(data, samples, execution, [&](uint32_t i) {
    const float* logits = execution.logits();
    losses += loss_of(execution, *program);
    const int right = samples.right_answers(i, logits);
    correct += right;
    if (unknown.known()) {
      const bool rejected = surest(logits, program->classes) < unknown.below;
      ++(right ? unknown.right : unknown.wrong);
      (right ? unknown.right_rejected : unknown.wrong_rejected) += rejected;
    }
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
      .number("accuracy", share_of(correct, samples.count(), samples.answers()))
      .begin_array(multi_label ? "right" : "confusion");
  for (size_t row = 0; row < counts.size(); row += classes) {
    if (!multi_label) event.begin_array();
    for (size_t column = 0; column < classes; ++column) event.integer(counts[row + column]);
    if (!multi_label) event.end_array();
  }
  event.end_array();
  write_unknown(event, "unknown", unknown);
  event.integer("peak_rss_bytes", peak_rss());
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
