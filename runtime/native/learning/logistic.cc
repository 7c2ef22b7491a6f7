#include "logistic.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../errors.h"
#include "labelled_rows.h"

namespace tinytl {
namespace {

constexpr int kMostRounds = 500, kMostTries = 20;
constexpr double kStraight = 1e-3;  // of a slope, what is left of it where a step ends

using Doubles = Logistic::Doubles;

double inner(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// a = keep a - b
void turn(Doubles& a, double keep, const Doubles& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] = keep * a[i] - b[i];
}

void add(Doubles& a, double share, const Doubles& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += share * b[i];
}

std::vector<int64_t> both(const Logistic::Places& places) {
  std::vector<int64_t> all = places.own;
  all.insert(all.end(), places.others.begin(), places.others.end());
  return all;
}

}  // namespace

Logistic::Logistic(const Rows& rows, const Places& places, const Truth& truth, const Linear& before, int64_t room)
    : multi_label_(truth.marks), classes_(before.classes()), own_(places.own.size()), keep_(places.keep),
      parts_(multi_label_ ? static_cast<double>(classes_) : 1), products_(rows, both(places), room) {
  if (!std::isfinite(products_.mean_square())) fail(kData, "The network's features of these images are no numbers.");
  const std::vector<int64_t> chosen = both(places);
  before_.resize(chosen.size() * classes_);
  has_.resize(before_.size());
  std::vector<float> row(static_cast<size_t>(rows.width()));
  for (size_t i = 0; i < chosen.size(); ++i) {
    rows.read(chosen[i], 1, row.data());
    for (size_t c = 0; c < classes_; ++c) {
      before_[i * classes_ + c] = static_cast<double>(before.bias[c]) + dot(before.row(c), row.data(), before.features);
      has_[i * classes_ + c] = truth.has(chosen[i], c);
    }
  }
  each_place([&](size_t first, size_t end, double) {
    std::vector<bool>& shown = first == 0 ? shown_here_ : shown_there_;
    shown.assign(classes_, multi_label_);
    for (size_t i = first; i < end && !multi_label_; ++i) shown[label(i)] = true;
  });
}

double Logistic::log_sum(const double* logits, const std::vector<bool>& of) const {
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (size_t c = 0; c < classes_; ++c)
    if (of[c]) most = std::max(most, logits[c]);
  for (size_t c = 0; c < classes_; ++c)
    if (of[c]) sum += std::exp(logits[c] - most);
  return most + std::log(sum);
}

std::vector<size_t> Logistic::folds(size_t count) const {
  std::vector<size_t> found(this->count());
  each_place([&](size_t first, size_t end, double) {
    std::vector<size_t> of_class(classes_), seen(classes_);
    for (size_t i = first; i < end; ++i) ++of_class[label(i)];
    for (size_t i = first; i < end; ++i) found[i] = seen[label(i)]++ * count / of_class[label(i)];
  });
  return found;
}

size_t Logistic::classes_present() const {
  std::vector<bool> present(classes_);
  for (size_t i = 0; i < own_; ++i) present[label(i)] = true;
  return static_cast<size_t>(std::count(present.begin(), present.end(), true));
}

Doubles Logistic::shares(const std::vector<size_t>& folds, size_t out) const {
  const auto is_there = [&](size_t i) { return folds.empty() || folds[i] != out; };
  Doubles found(count());
  each_place([&](size_t first, size_t end, double share) {
    std::vector<double> of_class(classes_);
    double classes = 0;
    for (size_t i = first; i < end; ++i) of_class[label(i)] += is_there(i);
    for (const double samples : of_class) classes += samples > 0;
    for (size_t i = first; i < end; ++i)
      if (is_there(i)) found[i] = share / (of_class[label(i)] * classes);
  });
  return found;
}

// Conjugate gradients (Polak and Ribiere). The product of two arrays is that of the rows that they stand for.
Doubles Logistic::fit(const Doubles& shares, double pull, double close, Doubles& found) const {
  const double strength = pull * products_.mean_square();
  Doubles added, along(found.size()), along_added(found.size()), last(found.size()), gradient, gradient_added;
  products_.multiply(found, classes_, added);
  double last_square = 0;
  for (int round = 0; round < kMostRounds; ++round) {
    all_slopes(added, shares, gradient);
    add(gradient, strength, found);
    products_.multiply(gradient, classes_, gradient_added);
    const double square = inner(gradient, gradient_added);
    if (square <= 2 * strength * close) break;
    const double keep = last_square > 0 ? std::max(0.0, square - inner(gradient, last)) / last_square : 0;
    turn(along, keep, gradient);
    turn(along_added, keep, gradient_added);
    if (inner(along, gradient_added) >= 0) {  // uphill
      turn(along, 0, gradient);
      turn(along_added, 0, gradient_added);
    }
    const double slope = strength * inner(found, along_added), curve = strength * inner(along, along_added);
    const double step = best_step(added, along_added, shares, slope, curve);
    add(found, step, along);
    add(added, step, along_added);
    last.swap(gradient_added);
    last_square = square;
  }
  add(added, 1, before_);
  return added;
}

Doubles Logistic::losses(const Doubles& logits) const {
  Doubles found(count());
  for (size_t i = 0; i < count(); ++i) {
    const double* own = &logits[i * classes_];
    found[i] = multi_label_ ? 0 : log_sum(own, shown(i));
    for (size_t c = 0; c < classes_; ++c) {
      if (multi_label_) found[i] += softplus(own[c]) / parts_;
      if (has_[i * classes_ + c]) found[i] -= own[c] / parts_;
    }
  }
  return found;
}

double Logistic::right(size_t sample, const Doubles& logits) const {
  const double* own = &logits[sample * classes_];
  if (!multi_label_) return static_cast<size_t>(std::max_element(own, own + classes_) - own) == label(sample);
  double answers = 0;
  for (size_t c = 0; c < classes_; ++c) answers += (own[c] > 0) == (has_[sample * classes_ + c] > 0);
  return answers / parts_;
}

double Logistic::surest(size_t sample, const Doubles& logits) const {
  const double* own = &logits[sample * classes_];
  return std::exp(*std::max_element(own, own + classes_) - log_sum(own, std::vector<bool>(classes_, true)));
}

size_t Logistic::label(size_t sample) const {
  if (multi_label_) return 0;
  const uint8_t* own = &has_[sample * classes_];
  return static_cast<size_t>(std::find(own, own + classes_, 1) - own);
}

double Logistic::slope(size_t sample, const double* logits, const double* along, double* slopes) const {
  double mean = 0, curve = 0;
  const std::vector<bool>& shown = this->shown(sample);
  const double sum = multi_label_ ? 0 : log_sum(logits, shown);
  for (size_t c = 0; c < classes_; ++c) {
    slopes[c] = 0;
    if (!shown[c]) continue;
    const double chance = multi_label_ ? 1 / (1 + std::exp(-logits[c])) : std::exp(logits[c] - sum);
    slopes[c] = (chance - has_[sample * classes_ + c]) / parts_;
    if (!along) continue;
    curve += chance * (multi_label_ ? 1 - chance : 1) * along[c] * along[c] / parts_;
    mean += chance * along[c];
  }
  return multi_label_ ? curve : curve - mean * mean;
}

void Logistic::all_slopes(const Doubles& added, const Doubles& shares, Doubles& out) const {
  out.resize(added.size());
  Doubles logits(classes_);
  for (size_t i = 0; i < count(); ++i) {
    for (size_t c = 0; c < classes_; ++c) logits[c] = before_[i * classes_ + c] + added[i * classes_ + c];
    slope(i, logits.data(), nullptr, &out[i * classes_]);
    for (size_t c = 0; c < classes_; ++c) out[i * classes_ + c] *= shares[i];
  }
}

// To the lowest loss along a direction: Newton's method between steps known to be too short and too long. The pull has the
// slope `slope` where it begins, and the curvature `curve`.
double Logistic::best_step(const Doubles& added, const Doubles& along, const Doubles& shares, double slope, double curve) const {
  double step = 0, too_short = 0, too_long = std::numeric_limits<double>::infinity(), first = 0;
  Doubles logits(classes_), slopes(classes_);
  for (int number = 0; number < kMostTries; ++number) {
    double down = slope + step * curve, bent = curve;
    for (size_t i = 0; i < count(); ++i) {
      const size_t at = i * classes_;
      for (size_t c = 0; c < classes_; ++c) logits[c] = before_[at + c] + added[at + c] + step * along[at + c];
      bent += shares[i] * this->slope(i, logits.data(), &along[at], slopes.data());
      for (size_t c = 0; c < classes_; ++c) down += shares[i] * slopes[c] * along[at + c];
    }
    if (number == 0)
      first = std::abs(down);
    else if (std::abs(down) <= kStraight * first)
      break;
    (down < 0 ? too_short : too_long) = step;
    step -= down / bent;
    if (!(too_short < step && step < too_long)) step = std::isinf(too_long) ? 2 * too_short : (too_short + too_long) / 2;
  }
  return step;
}

}  // namespace tinytl
