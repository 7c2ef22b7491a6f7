#include "discriminant.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "../errors.h"
#include "../kernels/parallel.h"
#include "../kernels/triangle.h"

namespace tinytl {
namespace {

constexpr int kLanes = Triangle::kPanel;
constexpr int64_t kBatch = 4 * kLanes;  // samples in memory at a time
constexpr std::array kShrinkages{0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9};
constexpr double kWithoutPairs = 0.5;  // the shrinkage where no class has two samples
constexpr double kSure = 0.9;          // and how sure of these they are to be
constexpr int64_t kScores = 1 << 18;   // of samples left out, in memory
constexpr float kRounding = 1e-6f;     // of inner products
constexpr float kAbsent = -1;          // the logit of a class without samples, others being 0 on the mean

using Floats = std::vector<float>;

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// Rows [first, first + count) as columns [width][16]; count <= 16.
void transpose(const float* rows, int64_t count, int64_t width, float* columns) {
  for (int64_t lane = 0; lane < kLanes; ++lane)
    for (int64_t k = 0; k < width; ++k) columns[k * kLanes + lane] = lane < count ? rows[lane * width + k] : 0;
}

// What samples of known classes are like.
class LabelledRows {
 public:
  LabelledRows(const Rows& rows, const std::vector<int32_t>& labels, int classes)
      : rows_(rows), labels_(labels), counts_(static_cast<size_t>(classes)) {
    const auto width = static_cast<size_t>(rows.width());
    means_.resize(static_cast<size_t>(classes) * width);
    centre_.resize(width);
    each_batch([&](int64_t first, int64_t count, const float* batch) {
      for (int64_t i = 0; i < count; ++i) {
        const auto label = static_cast<size_t>(labels[static_cast<size_t>(first + i)]);
        const float share = 1 / static_cast<float>(++counts_[label]);
        float* mean = &means_[label * width];
        const float* row = batch + i * static_cast<int64_t>(width);
        for (size_t k = 0; k < width; ++k) mean[k] += share * (row[k] - mean[k]);
      }
    });
    float present = 0;
    for (size_t c = 0; c < counts_.size(); ++c) {
      if (!counts_[c]) continue;
      const float share = 1 / ++present;
      for (size_t k = 0; k < width; ++k) centre_[k] += share * (means_[c * width + k] - centre_[k]);
    }
    for (size_t c = 0; c < counts_.size(); ++c)
      for (size_t k = 0; k < width; ++k) means_[c * width + k] = counts_[c] ? means_[c * width + k] - centre_[k] : 0;
    has_pairs_ = std::any_of(counts_.begin(), counts_.end(), [](int64_t count) { return count > 1; });
    each_batch([&](int64_t first, int64_t count, float* batch) {
      take_means_off(first, count, batch);
      for (int64_t i = 0; i < count; ++i) scatter_ += dot(batch + i * width_(), batch + i * width_(), width_());
    });
  }

  int64_t count() const { return rows_.count(); }
  size_t label(int64_t sample) const { return static_cast<size_t>(labels_[static_cast<size_t>(sample)]); }
  int64_t of_class(size_t label) const { return counts_[label]; }
  bool has_pairs() const { return has_pairs_; }
  double scatter() const { return scatter_; }  // the sum of all squares of residuals
  const float* centre() const { return centre_.data(); }
  const float* mean(size_t label) const { return &means_[label * centre_.size()]; }  // less the centre

  // What is left of samples without their class's mean; without the centre, where no class has two of them.
  void take_means_off(int64_t first, int64_t count, float* batch) const {
    for (int64_t i = 0; i < count; ++i) {
      const float* mean = has_pairs_ ? this->mean(label(first + i)) : nullptr;
      float* row = batch + i * width_();
      for (int64_t k = 0; k < width_(); ++k)
        row[k] -= centre_[static_cast<size_t>(k)] + (mean ? mean[k] : 0);
    }
  }

  // Calls visit(first, count, rows) for all samples.
  template <typename Visit>
  void each_batch(Visit visit) const {
    Floats batch(static_cast<size_t>(kBatch * width_()));
    for (int64_t first = 0; first < count(); first += kBatch) {
      const int64_t size = std::min(kBatch, count() - first);
      rows_.read(first, size, batch.data());
      visit(first, size, batch.data());
    }
  }

 private:
  int64_t width_() const { return rows_.width(); }

  const Rows& rows_;
  const std::vector<int32_t>& labels_;
  std::vector<int64_t> counts_;
  Floats means_, centre_;
  double scatter_ = 0;
  bool has_pairs_ = false;
};

// Scores of samples [sample][class] as the classifier would be without them, and what is best to scale them by.
class LeftOut {
 public:
  LeftOut(const LabelledRows& samples, size_t classes) : classes_(classes) {
    for (size_t c = 0; c < classes; ++c) {
      present_.push_back(samples.of_class(c) > 0);
      classes_present_ += present_.back();
    }
    const auto most = std::max<int64_t>(kScores / static_cast<int64_t>(classes), 1);
    const int64_t each = (samples.count() + most - 1) / most;
    std::vector<int64_t> of_class(classes);
    for (int64_t i = 0; i < samples.count(); i += each) {
      if (samples.of_class(samples.label(i)) < 2 && samples.has_pairs()) continue;
      chosen_.push_back(i);
      ++of_class[samples.label(i)];
    }
    for (const int64_t i : chosen_) {
      labels_.push_back(samples.label(i));
      shares_.push_back(1 / static_cast<double>(of_class[samples.label(i)]));
      all_shares_ += shares_.back();
    }
    scores_.resize(chosen_.size() * classes);
  }

  const std::vector<int64_t>& samples() const { return chosen_; }
  float* scores(size_t number) { return &scores_[number * classes_]; }
  // Of scores times `scale`: the mean cross-entropy with label smoothing, its slope by the scale, how sure of the right
  // class on the mean.
  struct Loss {
    double value = 0, slope = 0, sure = 0;
  };
  Loss loss(double scale, double smoothing) const {
    Loss loss;
    for (size_t n = 0; n < chosen_.size(); ++n) {
      const float* scores = &scores_[n * classes_];
      const double own = static_cast<double>(scores[labels_[n]]);
      double sum = 0, mean = 0, all = 0;
      for (size_t c = 0; c < classes_; ++c) {  // nothing overflows behind what is cut off
        if (!present_[c]) continue;
        const double above = static_cast<double>(scores[c]) - own;
        const double chance = std::exp(std::min(scale * above, 500.0));
        sum += chance;
        mean += chance * above;
        all += smoothing / classes_present_ * above;
      }
      loss.value += shares_[n] * (std::log(sum) - scale * all);
      loss.slope += shares_[n] * (mean / sum - all);
      loss.sure += shares_[n] / sum;
    }
    loss.value /= all_shares_;
    loss.slope /= all_shares_;
    loss.sure /= all_shares_;
    return loss;
  }
  // The scale from which on a quantity that grows is positive.
  template <typename Quantity>
  static double where(Quantity quantity) {
    double low = std::log(1e-5), high = std::log(1e2);
    for (int i = 0; i < 40; ++i) {
      const double middle = 0.5 * (low + high);
      (quantity(std::exp(middle)) > 0 ? high : low) = middle;
    }
    return std::exp(0.5 * (low + high));
  }
  double best_scale(double smoothing) const {
    return where([&](double scale) { return loss(scale, smoothing).slope; });
  }
  double scale_of_sure() const {
    return where([&](double scale) { return loss(scale, 0).sure - kSure; });
  }
  // Where all are right, no scale would be large enough; as if one more were wrong.
  double least_smoothing() const { return 1 / static_cast<double>(chosen_.size() + 1); }
  double accuracy() const {
    double right = 0;
    for (size_t n = 0; n < chosen_.size(); ++n) {
      const float* scores = &scores_[n * classes_];
      bool beaten = false;
      for (size_t c = 0; c < classes_; ++c) beaten |= present_[c] && c != labels_[n] && scores[c] >= scores[labels_[n]];
      if (!beaten) right += shares_[n];
    }
    return right / all_shares_;
  }

 private:
  const size_t classes_;
  std::vector<bool> present_;
  double classes_present_ = 0;
  std::vector<int64_t> chosen_;
  std::vector<size_t> labels_;
  std::vector<double> shares_;  // of the loss: each class has as much
  double all_shares_ = 0;
  Floats scores_;
};

// The classifier by one shrinkage, before it is scaled.
class Fit {
 public:
  Fit(const LabelledRows& samples, size_t classes, int64_t width)
      : weight(classes * static_cast<size_t>(width)), samples_(samples), classes_(classes), width_(width),
        inner_(classes * classes) {}

  // The factor of A, and weights A^-1 m_c.
  void solve(double shrinkage, double ridge, Triangle& factor) {
    factor.clear();
    const auto scale = static_cast<float>(std::sqrt((1 - shrinkage) / static_cast<double>(samples_.count())));
    samples_.each_batch([&](int64_t first, int64_t count, float* batch) {
      samples_.take_means_off(first, count, batch);
      for (int64_t i = 0; i < count * width_; ++i) batch[i] *= scale;
      factor.add_products(batch, count);
    });
    for (int64_t k = 0; k < width_; ++k) factor.at(k, k) += static_cast<float>(ridge);
    factor.factor(0);
    Floats columns(static_cast<size_t>(width_ * kLanes));
    for (size_t first = 0; first < classes_; first += kLanes) {
      const auto count = static_cast<int64_t>(std::min<size_t>(kLanes, classes_ - first));
      transpose(samples_.mean(first), count, width_, columns.data());
      factor.solve(columns.data());
      factor.solve_transposed(columns.data());
      for (int64_t lane = 0; lane < count; ++lane) {
        float* to = &weight[(first + static_cast<size_t>(lane)) * static_cast<size_t>(width_)];
        for (int64_t k = 0; k < width_; ++k) to[k] = columns[static_cast<size_t>(k * kLanes + lane)];
      }
    }
    for (size_t a = 0; a < classes_; ++a)
      for (size_t b = 0; b <= a; ++b)
        inner_[a * classes_ + b] = inner_[b * classes_ + a] =
            static_cast<float>(dot(&weight[a * static_cast<size_t>(width_)], samples_.mean(b), width_));
  }

  float inner(size_t a, size_t b) const { return inner_[a * classes_ + b]; }  // m_a^T A^-1 m_b

  // Scores of the samples left out, -(x - m_c')^T A'^-1 (x - m_c') / 2.
  void leave_out(double shrinkage, const Triangle& factor, const Rows& rows, LeftOut& left) const {
    const auto& chosen = left.samples();
    const auto blocks = static_cast<int>((chosen.size() + kLanes - 1) / kLanes);
    parallel_shares(blocks, [&](int begin, int end) {
      Floats batch(static_cast<size_t>(kLanes * width_)), columns(batch.size());
      std::vector<float> along(classes_ * kLanes);
      for (int block = begin; block < end; ++block) {
        const size_t first = static_cast<size_t>(block) * kLanes;
        const auto count = static_cast<int64_t>(std::min<size_t>(kLanes, chosen.size() - first));
        for (int64_t lane = 0; lane < count; ++lane) {
          const int64_t sample = chosen[first + static_cast<size_t>(lane)];
          float* row = &batch[static_cast<size_t>(lane * width_)];
          rows.read(sample, 1, row);
          samples_.take_means_off(sample, 1, row);
          for (size_t c = 0; c < classes_; ++c)  // m_c^T A^-1 r
            along[c * kLanes + static_cast<size_t>(lane)] =
                static_cast<float>(dot(&weight[c * static_cast<size_t>(width_)], row, width_));
        }
        transpose(batch.data(), count, width_, columns.data());
        factor.solve(columns.data());
        for (int64_t lane = 0; lane < count; ++lane) {
          double h = 0;  // r^T A^-1 r
          for (int64_t k = 0; k < width_; ++k) {
            const auto value = static_cast<double>(columns[static_cast<size_t>(k * kLanes + lane)]);
            h += value * value;
          }
          const size_t number = first + static_cast<size_t>(lane);
          score(shrinkage, samples_.label(chosen[number]), h, &along[static_cast<size_t>(lane)], left.scores(number));
        }
      }
    });
  }

  Floats weight;  // [classes][width]

 private:
  // `along`: m_c^T A^-1 r, every 16th.
  void score(double shrinkage, size_t own, double h, const float* along, float* scores) const {
    const auto n = static_cast<double>(samples_.of_class(own));
    const bool pairs = samples_.has_pairs();
    const double part = pairs ? (1 - shrinkage) * n / ((n - 1) * static_cast<double>(samples_.count())) : 0;
    const double rest = std::max(1 - part * h, 1e-6);
    const auto own_along = static_cast<double>(along[own * kLanes]);
    for (size_t c = 0; c < classes_; ++c) {
      double distance = 0;
      if (!pairs) {  // r = x - centre = m_y: nothing is left out
        distance = static_cast<double>(inner(own, own)) + static_cast<double>(inner(c, c)) -
                   2 * static_cast<double>(inner(own, c));
      } else if (c == own) {
        distance = n / (n - 1) * n / (n - 1) * h / rest;
      } else {
        const double across = own_along - static_cast<double>(along[c * kLanes]);
        const double apart = static_cast<double>(inner(own, own)) + static_cast<double>(inner(c, c)) -
                             2 * static_cast<double>(inner(own, c));
        const double towards = h + across;  // r^T A^-1 (x - m_c)
        distance = h + 2 * across + apart + part * towards * towards / rest;
      }
      scores[c] = static_cast<float>(-0.5 * distance);
    }
  }

  const LabelledRows& samples_;
  const size_t classes_;
  const int64_t width_;
  Floats inner_;
};

Discriminant fit(const Rows& rows, const std::vector<int32_t>& labels, size_t classes, int64_t features,
                 double smoothing) {
  const int64_t width = rows.width();
  const LabelledRows samples(rows, labels, static_cast<int>(classes));
  if (!std::isfinite(samples.scatter())) fail(kData, "The network's features of these images are no numbers.");
  double each = samples.scatter() / static_cast<double>(samples.count()) / static_cast<double>(features);
  if (each <= 0) each = 1;  // all the same
  LeftOut left(samples, classes);
  Fit fit(samples, classes, width);
  Triangle factor(width);
  Discriminant best;
  double best_scale = 1, lowest = 0;
  const double least = left.least_smoothing();
  for (double shrinkage : kShrinkages) {
    if (!samples.has_pairs()) shrinkage = kWithoutPairs;
    fit.solve(shrinkage, shrinkage * each, factor);
    fit.leave_out(shrinkage, factor, rows, left);
    const double loss = samples.has_pairs() ? left.loss(left.best_scale(least), least).value : 0;
    if (best.weight.empty() || loss < lowest) {
      lowest = loss;
      best_scale = samples.has_pairs() ? left.best_scale(std::max(least, smoothing)) : left.scale_of_sure();
      best.weight = fit.weight;
      best.bias.resize(classes);
      for (size_t c = 0; c < classes; ++c) best.bias[c] = -0.5f * fit.inner(c, c);
      best.shrinkage = shrinkage;
      best.loss = left.loss(best_scale, 0).value;
      best.accuracy = left.accuracy();
    }
    if (!samples.has_pairs()) break;
  }
  best.left_out = samples.has_pairs() ? static_cast<int64_t>(left.samples().size()) : 0;

  // Scaled; around zero, which changes no probability; and of features that are not centred.
  const auto w = static_cast<size_t>(width);
  Floats mean(w);
  float mean_bias = 0, present = 0;
  for (size_t c = 0; c < classes; ++c) present += samples.of_class(c) > 0;
  for (size_t c = 0; c < classes; ++c) {
    if (!samples.of_class(c)) continue;
    for (size_t k = 0; k < w; ++k) mean[k] += best.weight[c * w + k] / present;
    mean_bias += best.bias[c] / present;
  }
  const auto scale = static_cast<float>(best_scale);
  for (size_t c = 0; c < classes; ++c) {
    float* weight = &best.weight[c * w];
    if (!samples.of_class(c)) {
      best.bias[c] = kAbsent;
      continue;  // its weights are zero, as its mean is
    }
    for (size_t k = 0; k < w; ++k) weight[k] = scale * (weight[k] - mean[k]);
    best.bias[c] = scale * (best.bias[c] - mean_bias) - static_cast<float>(dot(weight, samples.centre(), width));
  }
  return best;
}

// Coordinates of samples in the space that they span around their mean.
class Coordinates : public Rows {
 public:
  explicit Coordinates(const Rows& rows) : count_(rows.count()), factor_(rows.count()), mean_(static_cast<size_t>(rows.width())) {
    const int64_t width = rows.width(), blocks = factor_.order() / kLanes;
    Floats block(static_cast<size_t>(kLanes * width)), left(block.size()), right(block.size());
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t size = read_block(rows, b, block);
      for (int64_t i = 0; i < size; ++i)
        for (int64_t k = 0; k < width; ++k)
          mean_[static_cast<size_t>(k)] += block[static_cast<size_t>(i * width + k)] / static_cast<float>(count_);
    }
    for (int64_t q = 0; q < blocks; ++q) {
      columns_of(rows, q, block, left);
      for (int64_t p = 0; p <= q; ++p) {
        if (p < q) columns_of(rows, p, block, right);
        factor_.add_block(q, p, left.data(), p < q ? right.data() : left.data(), width);
      }
    }
    float longest = 0;
    for (int64_t i = 0; i < count_; ++i) longest = std::max(longest, factor_.at(i, i));
    factor_.factor(kRounding * longest);
  }

  int64_t count() const override { return count_; }
  int64_t width() const override { return factor_.order(); }
  void read(int64_t first, int64_t count, float* out) const override {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < width(); ++k)
        out[i * width() + k] = k <= first + i ? factor_.at(first + i, k) : 0;
  }

  // Weights of coordinates [classes][width()] as those of the rows, and biases to go with them.
  void lead_back(const Rows& rows, Discriminant& found) const {
    const size_t classes = found.bias.size(), own = static_cast<size_t>(width()), wide = static_cast<size_t>(rows.width());
    Floats weight(classes * wide), columns(own * kLanes), block(kLanes * wide);
    for (size_t first = 0; first < classes; first += kLanes) {
      const size_t group = std::min<size_t>(kLanes, classes - first);
      transpose(&found.weight[first * own], static_cast<int64_t>(group), width(), columns.data());
      factor_.solve_transposed(columns.data());
      for (int64_t b = 0; b < width() / kLanes; ++b) {
        const int64_t size = read_block(rows, b, block);
        for (int64_t i = 0; i < size; ++i)
          for (size_t lane = 0; lane < group; ++lane) {
            const float share = columns[static_cast<size_t>(b * kLanes + i) * kLanes + lane];
            float* to = &weight[(first + lane) * wide];
            for (size_t k = 0; k < wide; ++k)
              to[k] += share * (block[static_cast<size_t>(i) * wide + k] - mean_[k]);
          }
      }
    }
    for (size_t c = 0; c < classes; ++c)
      found.bias[c] -= static_cast<float>(dot(&weight[c * wide], mean_.data(), rows.width()));
    found.weight = std::move(weight);
  }

 private:
  int64_t read_block(const Rows& rows, int64_t number, Floats& block) const {
    const int64_t size = std::min<int64_t>(kLanes, count_ - number * kLanes);
    if (size > 0) rows.read(number * kLanes, size, block.data());
    return std::max<int64_t>(size, 0);
  }

  // Samples of a block, centred, as columns [width][16].
  void columns_of(const Rows& rows, int64_t number, Floats& block, Floats& columns) const {
    const int64_t size = read_block(rows, number, block);
    for (int64_t i = 0; i < size; ++i)
      for (size_t k = 0; k < mean_.size(); ++k) block[static_cast<size_t>(i) * mean_.size() + k] -= mean_[k];
    transpose(block.data(), size, rows.width(), columns.data());
  }

  const int64_t count_;
  Triangle factor_;  // L, of which the inner products are L L^T
  Floats mean_;
};

}  // namespace

Discriminant fit_discriminant(const Rows& rows, const std::vector<int32_t>& labels, int classes, int64_t features,
                               double smoothing) {
  if (rows.count() >= rows.width()) return fit(rows, labels, static_cast<size_t>(classes), features, smoothing);
  const Coordinates coordinates(rows);
  Discriminant found = fit(coordinates, labels, static_cast<size_t>(classes), features, smoothing);
  coordinates.lead_back(rows, found);
  return found;
}

}  // namespace tinytl
