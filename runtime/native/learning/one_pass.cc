#include "one_pass.h"

#include <algorithm>

#include "../footprint.h"
#include "../judge.h"
#include "discriminant.h"
#include "features.h"
#include "head.h"
#include "kept_features.h"
#include "known_classes.h"
#include "label_regression.h"
#include "pulled.h"

namespace tinytl {

FirstPass FirstPass::of(const Job& job, const Program& program, const std::string& folder) {
  FirstPass first{static_cast<int>(job.integer("known_classes", 0, 1 << 20)), nullptr, StandIns::of(job),
                  job.number("keep", 0, 1)};
  if (job.flag("pulled")) first.towards = write_linear(Head(program).rows(program), folder);
  return first;
}

Fitted fit_in_one_pass(Program& program, const Dataset& dataset, Samples& samples, Execution& execution,
                       const std::vector<uint32_t>& images, const FirstPass& begin, const std::string& folder, double smoothing,
                       int64_t most, const std::function<void(uint32_t)>& done) {
  const Head head(program);
  const Features found = features_of(program, head, dataset, samples, execution, images, begin.stand_ins, folder, done);
  execution.give_back();
  give_back_unused();
  Linear before{head.features(), {}, {}};
  if (begin.known > 0) before = head.rows(program).first(static_cast<size_t>(begin.known));
  if (begin.towards) before = read_linear(*begin.towards, head.features());
  const Terms terms{head.features(), smoothing, room_in(most), folder};
  const auto take = [&](size_t label, const float* weight, float bias) { head.set(program, label, weight, bias); };
  const Marks marks{found.marks, static_cast<size_t>(program.classes)};
  Fitted fitted;
  if (begin.towards) {
    const Truth truth{&found.labels, program.multi_label ? &marks : nullptr};
    const Kept kept{begin.stand_ins.of_another_place() ? found.stood_in : 0, begin.keep};
    fitted.fit = fit_pulled(found.rows, truth, before, kept, terms, take);
    const std::vector<int32_t> here(found.labels.begin(), found.labels.end() - kept.count);
    const Seen seen = program.multi_label ? look(before, found.rows, marks) : look(before, found.rows, here, 0);
    fitted.accuracy_before = share_of(seen.correct, found.rows.count() - kept.count, samples.answers());
  } else if (program.multi_label) {
    fitted.fit = fit_labels(found.rows, marks, terms, take);
  } else {
    fitted.fit = fit_discriminant(found.rows, found.labels, program.classes, terms, take);
  }
  give_back_unused();
  Linear rows = head.rows(program);
  if (begin.known > 0) {
    std::vector<bool> present(rows.classes());
    for (const int32_t label : found.labels) present[static_cast<size_t>(label)] = true;
    keep_known(before, present, &rows);
    for (size_t c = 0; c < rows.classes(); ++c) head.set(program, c, rows.row(c), rows.bias[c]);
    fitted.known_right_before = look(before, found.rows, found.labels, before.classes()).correct;
  }
  fitted.seen = program.multi_label ? look(rows, found.rows, marks)
                                    : look(rows, found.rows, found.labels, static_cast<size_t>(begin.known));
  fitted.known = fitted.seen.of_first;
  fitted.known_right = fitted.seen.first_correct;
  fitted.samples = found.rows.count();
  fitted.stood_in = found.stood_in;
  return fitted;
}

void keep_features(const Program& program, const Dataset& dataset, Samples& samples, Execution& execution,
                   const std::vector<uint32_t>& images, const StandIns& stand_ins, const std::string& folder,
                   const std::string& path, const std::vector<std::string>& classes, const std::function<void(uint32_t)>& done) {
  const Head head(program);
  const Features found = features_of(program, head, dataset, samples, execution, images, stand_ins, folder, done);
  write_features(path, found.rows, head.features(), found.labels, classes);
}

}  // namespace tinytl
