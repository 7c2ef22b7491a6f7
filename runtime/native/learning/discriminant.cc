#include "discriminant.h"

#include "columns.h"
#include "left_out.h"

namespace tinytl {
namespace {

constexpr double kWithoutPairs = 0.5;           // the shrinkage where no class has two samples
constexpr double kSure = 0.9;                   // and how sure of these they are to be
constexpr float kAbsent = -1;                   // the logit of a class without samples, others being 0 on the mean

using Floats = std::vector<float>;

class Fit {
 public:
  Fit(const Rows& rows, const std::vector<int32_t>& labels, size_t classes, const Terms& terms, int64_t scores)
      : weight(classes * static_cast<size_t>(rows.width())), bias(classes), samples_(rows, labels, classes),
        left_(samples_, scores), factor_(rows.width()), inner_(classes * classes), smoothing_(terms.smoothing),
        each_(variance_of(samples_.scatter(), rows.count(), terms.features)) {}

  // What a fit in rows of `width` numbers takes beside them, in bytes.
  static int64_t bytes(int64_t width, int64_t classes) {
    return bytes_in_room(width, classes) + classes * classes * static_cast<int64_t>(sizeof(double));
  }

  // Finds the classifier.
  LinearFit best() {
    LinearFit found;
    if (samples_.has_pairs()) {
      const double least = left_.least_smoothing();
      double lowest = 0;
      for (const double shrinkage : kShrinkages) {
        solve(shrinkage);
        const double loss = left_.loss(left_.best_scale(least), least);
        if (found.shrinkage > 0 && loss >= lowest) continue;
        lowest = loss;
        found.shrinkage = shrinkage;
      }
      if (found.shrinkage != kShrinkages.back()) solve(found.shrinkage);
      found.left_out = static_cast<int64_t>(left_.samples().size());
      settle(left_.best_scale(std::max(least, smoothing_)), found);
    } else {
      found.shrinkage = kWithoutPairs;
      solve(kWithoutPairs);
      settle(left_.scale_of(kSure), found);
    }
    return found;
  }

  Floats weight, bias;  // [classes][width], [classes]

 private:
  int64_t width() const { return samples_.width(); }
  float* weight_of(size_t c) { return &weight[c * static_cast<size_t>(width())]; }
  const float* weight_of(size_t c) const { return &weight[c * static_cast<size_t>(width())]; }
  double inner(size_t a, size_t b) const { return inner_[a * samples_.classes() + b]; }  // m_a^T A^-1 m_b
  double apart(size_t a, size_t b) const { return inner(a, a) + inner(b, b) - 2 * inner(a, b); }

  // The factor of A, weights A^-1 m_c, and scores of the samples left out.
  void solve(double shrinkage) {
    samples_.factor_shrunk(shrinkage, each_, &factor_);
    const size_t classes = samples_.classes();
    solve_rows(factor_, samples_.mean(0), classes, weight.data());
    for (size_t a = 0; a < classes; ++a)
      for (size_t b = 0; b <= a; ++b)
        inner_[a * classes + b] = inner_[b * classes + a] = dot(weight_of(a), samples_.mean(b), width());
    leave_out(shrinkage);
  }

  void leave_out(double shrinkage) {
    const auto& chosen = left_.samples();
    // A sample's scores are first, in their place, m_c^T A^-1 r.
    const auto read = [&](size_t number, float* row) {
      samples_.read(chosen[number], 1, row);
      samples_.take_means_off(chosen[number], 1, row);
      for (size_t c = 0; c < samples_.classes(); ++c)
        left_.scores(number)[c] = static_cast<float>(dot(weight_of(c), row, width()));
    };
    each_length(factor_, chosen.size(), read, [&](size_t number, double length) {
      score(shrinkage, samples_.label(chosen[number]), length, left_.scores(number));
    });
  }

  // -(x - m_c')^T A'^-1 (x - m_c') / 2 of a sample, by h = r^T A^-1 r, in the place of m_c^T A^-1 r.
  void score(double shrinkage, size_t own, double h, float* scores) const {
    const auto n = static_cast<double>(samples_.of_class(own));
    const double part = (1 - shrinkage) * n / ((n - 1) * static_cast<double>(samples_.count()));
    const double rest = std::max(1 - part * h, kLeastRest), along = static_cast<double>(scores[own]);
    for (size_t c = 0; c < samples_.classes(); ++c) {
      double distance = 0;
      if (!samples_.has_pairs()) {  // nothing is left out
        distance = apart(own, c);
      } else if (c == own) {
        distance = n / (n - 1) * n / (n - 1) * h / rest;
      } else {
        const double across = along - static_cast<double>(scores[c]);
        const double towards = h + across;  // r^T A^-1 (x - m_c)
        distance = h + 2 * across + apart(own, c) + part * towards * towards / rest;
      }
      scores[c] = static_cast<float>(-0.5 * distance);
    }
  }

  // Scales weights and biases; brings them around zero, which changes no probability; lets features not be centred.
  void settle(double scale, LinearFit& found) {
    if (found.left_out) {
      found.loss = left_.loss(scale, 0);
      found.accuracy = left_.accuracy();
      found.answers = left_.answers(scale);
    }
    Floats mean(static_cast<size_t>(width()));
    double mean_bias = 0, present = 0;
    for (size_t c = 0; c < bias.size(); ++c) present += samples_.of_class(c) > 0;
    for (size_t c = 0; c < bias.size(); ++c) {
      if (!samples_.of_class(c)) continue;
      for (size_t k = 0; k < mean.size(); ++k) mean[k] += weight_of(c)[k] / static_cast<float>(present);
      mean_bias -= 0.5 * inner(c, c) / present;
    }
    for (size_t c = 0; c < bias.size(); ++c) {
      bias[c] = kAbsent;
      if (!samples_.of_class(c)) continue;  // its weights are zero, as its mean is
      float* own = weight_of(c);
      for (size_t k = 0; k < mean.size(); ++k) own[k] = static_cast<float>(scale) * (own[k] - mean[k]);
      bias[c] = static_cast<float>(scale * (-0.5 * inner(c, c) - mean_bias) - dot(own, samples_.centre(), width()));
    }
  }

  const LabelledRows samples_;
  LeftOut left_;
  Triangle factor_;
  std::vector<double> inner_;
  const double smoothing_, each_;
};

}  // namespace

LinearFit fit_discriminant(const Rows& rows, const std::vector<int32_t>& labels, int classes, const Terms& terms,
                           const TakeWeight& take) {
  return fit_in_room<Fit>(rows, labels, classes, terms, take);
}

}  // namespace tinytl
