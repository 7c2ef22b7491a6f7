// A deployed classifier in a place of which there are images without labels.
#include <algorithm>
#include <memory>

#include "clock.h"
#include "dataset.h"
#include "execute.h"
#include "footprint.h"
#include "judge.h"
#include "learning/aligned.h"
#include "learning/features.h"
#include "learning/head.h"
#include "program.h"
#include "samples.h"
#include "store.h"
#include "trainer.h"
#include "training_events.h"

namespace tinytl {
namespace {

constexpr uint32_t kSaid = 16;  // images between two events

// How many of samples with a label are right, as a share.
double right_of(const Linear& linear, const Features& found) {
  const Seen seen = look(linear, found.rows, found.labels, 0);
  return static_cast<double>(seen.correct) / static_cast<double>(found.stood_in);
}

}  // namespace

void align(const Job& job, Events& events) {
  const double begin = now();
  const Job options = job.nested("options"), first = job.nested("first_pass");
  const std::string run = job.text("run");
  const std::unique_ptr<Program> program = Program::load(job.text("program"), true);
  program->use_classes(job.texts("classes").size());
  const Dataset dataset = Dataset::open(job.text("train"));
  Samples samples(*program, dataset);
  Execution execution(*program, options.threads());
  const auto stop_if_asked = [] {
    if (stop_asked) fail(kInterrupted, "Interrupted: nothing has changed.");
  };
  std::unique_ptr<Dataset> validation;
  std::unique_ptr<Judge> judge;
  if (!job.is_null("val")) {
    validation = std::make_unique<Dataset>(Dataset::open(job.text("val")));
    judge = std::make_unique<Judge>(*program, *validation, validation->all());
  }
  TrainingEvents said(events);
  said.start(options, Course::of(job, dataset.count(), 1), dataset.count(), 1, 0, {});
  Standing at;
  if (judge) at.start = at.score = judge->measure(execution, stop_if_asked);

  const Head head(*program);
  Features found = features_of(*program, head, dataset, samples, execution, dataset.all(), StandIns::of(first), run,
                                     [&](uint32_t done) {
                                       stop_if_asked();
                                       said.tick();
                                       if (done % kSaid == 0 || done == dataset.count()) said.fitting(done, dataset.count());
                                     });
  std::fill(found.labels.begin(), found.labels.end() - found.stood_in, kUnlabelled);
  execution.give_back();
  give_back_unused();
  Linear rows = head.rows(*program);
  const std::vector<float> biases = rows.bias;
  const std::vector<int32_t> known(found.labels.end() - found.stood_in, found.labels.end());
  const int64_t memory = job.is_null("memory") ? INT64_MAX : job.integer("memory", 1, INT64_MAX);
  const Terms terms{head.features(), 0, room_in(memory), run};
  Alignment alignment{align(found.rows, known, rows, terms), dataset.count(), found.stood_in};
  alignment.kept_before = alignment.kept = right_of(rows, found);
  for (size_t c = 0; c < biases.size(); ++c) {
    rows.bias[c] = static_cast<float>(static_cast<double>(biases[c]) - alignment.found.off[c]);
    head.set_bias(*program, c, rows.bias[c]);
  }
  alignment.taken = alignment.found.helps();
  if (judge) {
    const Score score = judge->measure(execution, stop_if_asked);
    alignment.score = score;
    alignment.taken = score.class_loss < at.start.class_loss;
  }
  if (alignment.taken) {
    if (judge) at.score = alignment.score;
    alignment.kept = right_of(rows, found);
  } else {
    for (size_t c = 0; c < biases.size(); ++c) head.set_bias(*program, c, biases[c]);
    rows.bias = biases;
  }
  // Of all logits the range, for whatever labels.
  const Seen seen = look(rows, found.rows, std::vector<int32_t>(static_cast<size_t>(found.rows.count())), 0);
  at.sums.low = seen.low;
  at.sums.high = seen.high;
  write_adapter(run + "/adapter.safetensors", *program, job.text("bundle_identity"), job.texts("classes"), at);
  const Score* start = judge ? &at.start : nullptr;
  said.aligned(alignment, start, 1e3 * (now() - begin));
  said.done(at, {judge ? judge->images() : 0, judge ? "val" : nullptr, samples.answers()}, start, judge ? &at.score : nullptr, 0);
}

}  // namespace tinytl
