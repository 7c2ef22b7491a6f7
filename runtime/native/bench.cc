#include "bench.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "clock.h"
#include "errors.h"
#include "execute.h"
#include "footprint.h"
#include "program.h"
#include "sampling.h"

namespace tinytl {
namespace {

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

void fill_with_noise(Execution& execution, const Program& program, uint64_t number) {
  const uint64_t k = key({number});
  const int64_t elements = int64_t{program.height} * program.width * program.channels;
  for (int64_t i = 0; i < elements; ++i) execution.image()[i] = static_cast<float>(2 * uniform(k, static_cast<uint64_t>(i)) - 1);
  for (int i = 0; i < program.outputs; ++i)
    execution.targets()[i] = i == static_cast<int>(number % static_cast<uint64_t>(program.classes)) ? 1.0f : 0.0f;
}

void write_array(json::Writer& event, const char* name, const std::vector<double>& values) {
  event.begin_array(name);
  for (const double value : values) event.number(value);
  event.end_array();
}

}  // namespace

void bench(const Job& job, Events& events) {
  const int64_t steps = job.integer("steps", 1, 1 << 20);
  const int64_t batch = job.is_null("batch_size") ? 1 : job.integer("batch_size", 1, 1 << 20);
  const std::unique_ptr<Program> program = Program::load(job.text("program"), true);
  if (!job.is_null("class_count")) program->use_classes(static_cast<size_t>(job.integer("class_count", 1, 1 << 20)));
  for (Parameter& parameter : program->parameters) parameter.rate = 1e-5;  // any but zero: a step does all its work
  if (batch > 1 && !program->accumulates) fail(kUsage, "This bundle is prepared for a batch of 1.");
  Execution execution(*program, job.threads());
  give_back_unused();
  const Execution::MaskFiller no_dropout = [](int32_t, int32_t, int64_t elements, float* out) { std::fill(out, out + elements, 1.0f); };
  std::vector<double> step_ms, forward_ms, evaluation_ms;
  Sample sample;
  sample.scale = 1 / static_cast<float>(batch);
  double loss = 0;  // the last step's
  for (int64_t i = -2; i < steps; ++i) {  // the first two touch the memory
    sample.step = i + 3;
    double forward = 0, backward = 0;
    loss = 0;
    for (int64_t first = 0; first < batch; first += program->together) {
      const auto count = static_cast<int32_t>(std::min<int64_t>(program->together, batch - first));
      std::vector<Sample> samples(static_cast<size_t>(count), sample);
      for (int32_t place = 0; place < count; ++place) {
        execution.turn_to(place);
        fill_with_noise(execution, *program, static_cast<uint64_t>((i + 2) * batch + first + place));
        samples[static_cast<size_t>(place)].ends_batch = first + place + 1 == batch;
        const double begin = now();
        execution.forward_alone(&no_dropout);
        forward += now() - begin;
      }
      double begin = now();
      execution.forward_jointly(count, &no_dropout);
      forward += now() - begin;
      begin = now();
      execution.backward_jointly(samples);
      for (int32_t place = 0; place < count; ++place) {
        execution.turn_to(place);
        loss += execution.backward_alone(samples[static_cast<size_t>(place)]) / static_cast<double>(batch);
      }
      execution.turn_to(0);
      backward += now() - begin;
    }
    const double whole = forward + backward;
    if (i == -2) {  // who started us learns how long that took
      events.begin("step").integer("step", 1).number("loss", loss).number("ms", 1e3 * whole);
      events.send();
    }
    if (i < 0) continue;
    step_ms.push_back(1e3 * whole);
    forward_ms.push_back(1e3 * forward);
  }
  const int64_t peak = peak_rss();
  for (int64_t i = 0; i < steps; ++i) {
    fill_with_noise(execution, *program, static_cast<uint64_t>(i));
    const double begin = now();
    execution.forward(nullptr);
    evaluation_ms.push_back(1e3 * (now() - begin));
  }
  OperatorTimes times{};
  execution.time_operators(&times);
  const int64_t profiled = std::min<int64_t>(steps, 20);
  for (int64_t i = 0; i < profiled; ++i) {
    fill_with_noise(execution, *program, static_cast<uint64_t>(i));
    ++sample.step;
    execution.forward(&no_dropout);
    execution.backward(sample);
  }
  json::Writer& event = events.begin("done");
  event.text("runtime", "native")
      .integer("steps", steps)
      .integer("threads", job.threads())
      .number("step_ms_median", percentile(step_ms, 0.5))
      .number("step_ms_p10", percentile(step_ms, 0.1))
      .number("forward_ms_median", percentile(forward_ms, 0.5))
      .number("forward_ms_p10", percentile(forward_ms, 0.1))
      .number("peak_multiply_adds_per_s", peak_multiply_adds())
      .begin_object("operator_ms");
  for (size_t i = 0; i < times.size(); ++i)
    if (times[i] > 0) event.number(kDeclarations[i].name, 1e3 * times[i] / static_cast<double>(profiled));
  event.end_object();
  write_array(event, "step_ms", step_ms);
  write_array(event, "evaluation_ms", evaluation_ms);
  event.number("loss", loss).integer("peak_rss_bytes", peak);
  events.send();
}

}  // namespace tinytl
