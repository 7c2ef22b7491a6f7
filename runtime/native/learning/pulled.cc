#include "pulled.h"

#include <algorithm>
#include <array>

#include "../within_error.h"
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
std::vector<int64_t> spread(const std::vector<int64_t>& rows, int64_t most) {
  const auto each = static_cast<size_t>((static_cast<int64_t>(rows.size()) + most - 1) / most);
  std::vector<int64_t> chosen;
  for (size_t i = 0; i < rows.size(); i += each) chosen.push_back(rows[i]);
  return chosen;
}

std::vector<int64_t> range(int64_t first, int64_t end) {
  std::vector<int64_t> rows;
  for (int64_t i = first; i < end; ++i) rows.push_back(i);
  return rows;
}

// The logits of each fold by a fit to the others, which begins with its part, and leaves there what it finds.
Doubles leave_out(const Logistic& samples, const std::vector<size_t>& folds, double pull, std::array<Doubles, kFolds>& parts) {
  const size_t classes = samples.classes();
  Doubles left_out(samples.count() * classes);
  for (size_t fold = 0; fold < kFolds; ++fold) {
    if (std::find(folds.begin(), folds.end(), fold) == folds.end()) continue;
    if (parts[fold].empty()) parts[fold].resize(left_out.size());
    const Doubles logits = samples.fit(samples.shares(folds, fold), pull, kCloseEnough, parts[fold]);
    for (size_t i = 0; i < left_out.size(); ++i)
      if (folds[i / classes] == fold) left_out[i] = logits[i];
  }
  return left_out;
}

// The accuracy on kept samples.
double kept_of(const Logistic& samples, const Doubles& shares, const Doubles& logits) {
  return mean_of(shares, samples.own(), samples.count(), [&](size_t i) { return samples.right(i, logits); });
}

// The pull, and what samples that are left out say of it.
void choose_pull(const Logistic& samples, bool multi_label, LinearFit& found) {
  const size_t own = samples.own();
  const bool few = own < (multi_label ? 2 * kFolds : kFew * samples.classes_present());
  const Doubles shares = samples.shares();
  std::vector<size_t> folds = samples.folds(kFolds);
  found.pull = kPullOfFew;
  if (few) {
    std::fill_n(folds.begin(), own, kFolds);  // none is left out
  } else {
    std::array<Doubles, kFolds> parts;
    std::vector<Doubles> losses;  // of pulls by which no more than that is given up
    std::vector<double> pulls;
    size_t best = 0, chosen = 0;
    const bool has_kept = own < samples.count();
    for (const double pull : kPulls) {
      const Doubles logits = leave_out(samples, folds, pull, parts);
      if (has_kept && kept_of(samples, shares, samples.before()) - kept_of(samples, shares, logits) > kMostGivenUp) continue;
      pulls.push_back(pull);
      losses.push_back(samples.losses(logits));
      if (mean_of(shares, 0, own, [&](size_t i) { return losses.back()[i] - losses[best][i]; }) < 0) best = losses.size() - 1;
    }
    while (!pulls.empty() && !within_error(losses[chosen], losses[best], shares, own)) ++chosen;
    found.pull = pulls.empty() ? kPulls.front() : pulls[chosen];
  }
  std::array<Doubles, kFolds> parts;
  const Doubles logits = leave_out(samples, folds, found.pull, parts), losses = samples.losses(logits);
  if (!few) {
    found.loss = mean_of(shares, 0, own, [&](size_t i) { return losses[i]; });
    found.accuracy = mean_of(shares, 0, own, [&](size_t i) { return samples.right(i, logits); });
    found.left_out = static_cast<int64_t>(own);
    for (size_t i = 0; i < own && !multi_label; ++i)
      found.answers.push_back({static_cast<float>(samples.surest(i, logits)), samples.right(i, logits) > 0});
  }
  if (own == samples.count()) return;
  found.kept_before = kept_of(samples, shares, samples.before());
  found.kept = kept_of(samples, shares, logits);
}

}  // namespace

LinearFit fit_pulled(const Rows& rows, const Truth& truth, const Linear& before, const Kept& kept, const Terms& terms,
                     const TakeWeight& take) {
  const size_t classes = before.classes(), width = static_cast<size_t>(rows.width());
  const int64_t room = terms.room / 2, a_sample = kArrays * static_cast<int64_t>(classes * sizeof(double));
  const int64_t most = std::max<int64_t>(room / a_sample, 2);
  const std::vector<int64_t> here = range(0, rows.count() - kept.count);
  const std::vector<int64_t> there = spread(range(rows.count() - kept.count, rows.count()), most / 2);
  const int64_t left = most - static_cast<int64_t>(there.size());
  LinearFit found;
  choose_pull(Logistic(rows, {spread(here, std::min(left, kMostJudged)), there, kept.share}, truth, before, room), truth.marks,
              found);
  const Logistic samples(rows, {spread(here, left), there, kept.share}, truth, before, room);
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
