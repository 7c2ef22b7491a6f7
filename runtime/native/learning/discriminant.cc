#include "discriminant.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "../errors.h"
#include "../kernels/parallel.h"
#include "../kernels/triangle.h"
#include "labelled_rows.h"
#include "left_out.h"
#include "span.h"

namespace tinytl {
namespace {

constexpr int kGroup = Triangle::kPanel;
constexpr std::array kShrinkages{0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9};
constexpr double kWithoutPairs = 0.5;           // the shrinkage where no class has two samples
constexpr double kSure = 0.9;                   // and how sure of these they are to be
constexpr int64_t kScores = 1 << 18;            // of samples left out, in memory
constexpr double kLeastRest = 1e-6;             // of the determinant when a sample is left out; rounding may take it all
constexpr float kAbsent = -1;                   // the logit of a class without samples, others being 0 on the mean
constexpr double kLeastVariance = 1e-4;         // of a feature

using Floats = std::vector<float>;

class Fit {
 public:
  Fit(const Rows& rows, const std::vector<int32_t>& labels, size_t classes, const Terms& terms, int64_t scores)
      : weight(classes * static_cast<size_t>(rows.width())), bias(classes), samples_(rows, labels, classes),
        left_(samples_, scores), factor_(rows.width()), inner_(classes * classes), smoothing_(terms.smoothing) {
    if (!std::isfinite(samples_.scatter())) fail(kData, "The network's features of these images are no numbers.");
    each_ = samples_.scatter() / static_cast<double>(samples_.count()) / static_cast<double>(terms.features);
    each_ = std::max(each_, kLeastVariance);
  }

  // What a fit in rows of `width` numbers takes beside them, in bytes.
  static int64_t bytes(int64_t width, int64_t classes) {
    const int64_t numbers = (width / 2 + 2 * classes + LabelledRows::kBatch + 2 * kGroup) * width + classes * classes;
    return numbers * static_cast<int64_t>(sizeof(float));
  }

  // Finds the classifier.
  Discriminant best() {
    Discriminant found;
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
    factor_.clear();
    const auto scale = static_cast<float>(std::sqrt((1 - shrinkage) / static_cast<double>(samples_.count())));
    samples_.each_batch([&](int64_t first, int64_t count, float* batch) {
      samples_.take_means_off(first, count, batch);
      for (int64_t i = 0; i < count * width(); ++i) batch[i] *= scale;
      factor_.add_products(batch, count);
    });
    for (int64_t k = 0; k < width(); ++k) factor_.at(k, k) += static_cast<float>(shrinkage * each_);
    factor_.factor(0);
    const size_t classes = samples_.classes();
    Floats columns(static_cast<size_t>(width() * kGroup));
    for (size_t first = 0; first < classes; first += kGroup) {
      const size_t count = std::min<size_t>(kGroup, classes - first);
      transpose(samples_.mean(first), static_cast<int64_t>(count), width(), columns.data());
      factor_.solve(columns.data());
      factor_.solve_transposed(columns.data());
      for (size_t lane = 0; lane < count; ++lane) {
        float* to = weight_of(first + lane);
        for (int64_t k = 0; k < width(); ++k) to[k] = columns[static_cast<size_t>(k * kGroup) + lane];
      }
    }
    for (size_t a = 0; a < classes; ++a)
      for (size_t b = 0; b <= a; ++b)
        inner_[a * classes + b] = inner_[b * classes + a] = dot(weight_of(a), samples_.mean(b), width());
    leave_out(shrinkage);
  }

  void leave_out(double shrinkage) {
    const auto& chosen = left_.samples();
    const auto blocks = static_cast<int>((chosen.size() + kGroup - 1) / kGroup);
    parallel_shares(blocks, [&](int begin, int end) {
      Floats row(static_cast<size_t>(width())), columns(row.size() * kGroup);
      std::vector<double> along(samples_.classes() * kGroup);
      for (int block = begin; block < end; ++block) {
        const size_t first = static_cast<size_t>(block) * kGroup, count = std::min<size_t>(kGroup, chosen.size() - first);
        std::fill(columns.begin(), columns.end(), 0.0f);
        for (size_t lane = 0; lane < count; ++lane) {
          samples_.read(chosen[first + lane], 1, row.data());
          samples_.take_means_off(chosen[first + lane], 1, row.data());
          for (size_t k = 0; k < row.size(); ++k) columns[k * kGroup + lane] = row[k];
          for (size_t c = 0; c < samples_.classes(); ++c)
            along[c * kGroup + lane] = dot(weight_of(c), row.data(), width());
        }
        factor_.solve(columns.data());
        for (size_t lane = 0; lane < count; ++lane) {
          double h = 0;
          for (size_t k = 0; k < row.size(); ++k) {
            const auto value = static_cast<double>(columns[k * kGroup + lane]);
            h += value * value;
          }
          score(shrinkage, samples_.label(chosen[first + lane]), h, &along[lane], left_.scores(first + lane));
        }
      }
    });
  }

  // -(x - m_c')^T A'^-1 (x - m_c') / 2 of a sample, by h = r^T A^-1 r and along = m_c^T A^-1 r, every 16th.
  void score(double shrinkage, size_t own, double h, const double* along, float* scores) const {
    const auto n = static_cast<double>(samples_.of_class(own));
    const double part = (1 - shrinkage) * n / ((n - 1) * static_cast<double>(samples_.count()));
    const double rest = std::max(1 - part * h, kLeastRest);
    for (size_t c = 0; c < samples_.classes(); ++c) {
      double distance = 0;
      if (!samples_.has_pairs()) {  // nothing is left out
        distance = apart(own, c);
      } else if (c == own) {
        distance = n / (n - 1) * n / (n - 1) * h / rest;
      } else {
        const double across = along[own * kGroup] - along[c * kGroup];
        const double towards = h + across;  // r^T A^-1 (x - m_c)
        distance = h + 2 * across + apart(own, c) + part * towards * towards / rest;
      }
      scores[c] = static_cast<float>(-0.5 * distance);
    }
  }

  // Scales weights and biases; brings them around zero, which changes no probability; lets features not be centred.
  void settle(double scale, Discriminant& found) {
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
  const double smoothing_;
  double each_ = 0;
};

}  // namespace

Discriminant fit_discriminant(const Rows& rows, const std::vector<int32_t>& labels, int classes, const Terms& terms,
                              const TakeWeight& take) {
  const auto count = static_cast<size_t>(classes);
  const int64_t scores = std::clamp<int64_t>(terms.room / 32, kScores / 64, kScores);
  const int64_t room = terms.room - scores * static_cast<int64_t>(sizeof(float));
  if (rows.count() >= rows.width() && Fit::bytes(rows.width(), classes) <= room) {
    Fit fit(rows, labels, count, terms, scores);
    const Discriminant found = fit.best();
    for (size_t c = 0; c < count; ++c) take(c, &fit.weight[c * static_cast<size_t>(rows.width())], fit.bias[c]);
    return found;
  }
  int64_t basis = Triangle::padded(std::min(rows.count(), rows.width()));
  while (basis > kGroup && Span::bytes(basis, rows.width()) + Fit::bytes(basis, classes) > room) basis -= kGroup;
  const Span span(rows, basis, terms.folder);
  Fit fit(span.coordinates(), labels, count, terms, scores);
  const Discriminant found = fit.best();
  span.lead_back(fit.weight, [&](size_t c, const float* weight, float shift) { take(c, weight, fit.bias[c] + shift); });
  return found;
}

}  // namespace tinytl
