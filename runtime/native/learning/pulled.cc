#include "pulled.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "logistic.h"

namespace tinytl {
namespace {

constexpr std::array kPulls{1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5};
constexpr double kPullOfFew = 1e-3;
constexpr size_t kFew = 5;  // samples of a class, on the mean
constexpr size_t kFolds = 5;
constexpr int64_t kMostJudged = 512;                   // samples
constexpr double kClose = 1e-12, kCloseEnough = 1e-5;  // to the least loss: of what comes out, of what is only compared
constexpr int64_t kArrays = 10 + kFolds;               // [samples][classes], in memory at a time

using Doubles = Logistic::Doubles;

// At equal distances, not more than `most`.
std::vector<int64_t> spread(int64_t count, int64_t most) {
  std::vector<int64_t> chosen;
  for (int64_t i = 0; i < count; i += (count + most - 1) / most) chosen.push_back(i);
  return chosen;
}

// The logits of each fold by a fit to the others, which begins with its part, and leaves there what it finds.
Doubles leave_out(const Logistic& samples, const std::vector<size_t>& folds, double pull, std::array<Doubles, kFolds>& parts) {
  const size_t classes = samples.classes();
  Doubles left_out(samples.count() * classes);
  for (size_t fold = 0; fold < kFolds; ++fold) {
    if (parts[fold].empty()) parts[fold].resize(left_out.size());
    const Doubles logits = samples.fit(samples.shares(folds, fold), pull, kCloseEnough, parts[fold]);
    for (size_t i = 0; i < left_out.size(); ++i)
      if (folds[i / classes] == fold) left_out[i] = logits[i];
  }
  return left_out;
}

double mean_of(const Doubles& losses, const Doubles& shares) {
  double mean = 0;
  for (size_t i = 0; i < losses.size(); ++i) mean += shares[i] * losses[i];
  return mean;
}

// How much more losses are than others on the mean, and that mean's standard error.
struct More {
  double mean = 0, error = 0;
};

More more_than(const Doubles& losses, const Doubles& least, const Doubles& shares) {
  More more;
  for (size_t i = 0; i < losses.size(); ++i) more.mean += shares[i] * (losses[i] - least[i]);
  for (size_t i = 0; i < losses.size(); ++i) {
    const double apart = shares[i] * (losses[i] - least[i] - more.mean);
    more.error += apart * apart;
  }
  more.error = std::sqrt(more.error);
  return more;
}

// The pull, and what samples that are left out say of it.
void choose_pull(const Logistic& samples, bool multi_label, LinearFit& found) {
  found.pull = kPullOfFew;
  if (samples.count() < (multi_label ? 2 * kFolds : kFew * samples.classes_present())) return;
  const std::vector<size_t> folds = samples.folds(kFolds);
  const Doubles shares = samples.shares();
  std::array<Doubles, kFolds> parts, anew;
  std::vector<Doubles> losses;
  size_t best = 0;
  for (const double pull : kPulls) {
    losses.push_back(samples.losses(leave_out(samples, folds, pull, parts)));
    if (more_than(losses.back(), losses[best], shares).mean < 0) best = losses.size() - 1;
  }
  size_t chosen = 0;
  for (More more; (more = more_than(losses[chosen], losses[best], shares)).mean > more.error;) ++chosen;
  for (Doubles& part : parts) part = {};
  const Doubles left_out = leave_out(samples, folds, kPulls[chosen], anew);
  found.pull = kPulls[chosen];
  found.loss = mean_of(samples.losses(left_out), shares);
  found.left_out = static_cast<int64_t>(samples.count());
  found.accuracy = samples.accuracy(left_out, shares, found.answers);
}

}  // namespace

LinearFit fit_pulled(const Rows& rows, const Truth& truth, const Linear& before, const Terms& terms, const TakeWeight& take) {
  const size_t classes = before.classes(), width = static_cast<size_t>(rows.width());
  const int64_t room = terms.room / 2, a_sample = kArrays * static_cast<int64_t>(classes * sizeof(double));
  const int64_t most = std::max<int64_t>(room / a_sample, 1);
  LinearFit found;
  choose_pull(Logistic(rows, spread(rows.count(), std::min(most, kMostJudged)), truth, before, room), truth.marks, found);
  const Logistic samples(rows, spread(rows.count(), most), truth, before, room);
  Doubles parts(samples.count() * classes), sums;
  samples.fit(samples.shares(), found.pull, kClose, parts);
  samples.products().sum(parts, classes, sums);
  std::vector<float> row(width);
  for (size_t c = 0; c < classes; ++c) {
    const double* added = &sums[c * (width + 1)];
    for (size_t k = 0; k < static_cast<size_t>(before.features); ++k)
      row[k] = static_cast<float>(static_cast<double>(before.row(c)[k]) + added[k]);
    take(c, row.data(), static_cast<float>(static_cast<double>(before.bias[c]) + added[width]));
  }
  return found;
}

}  // namespace tinytl
