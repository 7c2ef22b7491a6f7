#include "label_regression.h"

#include "columns.h"

namespace tinytl {
namespace {

constexpr int kRounds = 50;  // of Newton's method
constexpr double kLeastCurvature = 1e-6;

struct Logistic {
  double scale = 0, shift = 0;
};

// Scores of samples that are left out, [sample][label], and how they become logits.
class Scores {
 public:
  Scores(const Marks& marks, int64_t samples, int64_t most) : marks_(marks) {
    const int64_t room = std::max<int64_t>(most / static_cast<int64_t>(marks.labels), 1);
    const int64_t each = (samples + room - 1) / room;
    for (int64_t i = 0; i < samples; i += each) chosen_.push_back(i);
    values_.resize(chosen_.size() * marks.labels);
  }

  const std::vector<int64_t>& samples() const { return chosen_; }
  float* of(size_t number) { return &values_[number * marks_.labels]; }

  // Of a label: those of the lowest loss.
  Logistic fit(size_t label, double smoothing) const {
    double has = 0;
    for (const int64_t sample : chosen_) has += marks_.has(sample, label);
    const auto count = static_cast<double>(chosen_.size());
    const double high = std::min((has + 1) / (has + 2), 1 - smoothing / 2);
    const double low = std::max(1 / (count - has + 2), smoothing / 2);
    const double mean = (has * high + (count - has) * low) / count;
    const Logistic constant{0, std::log(mean / (1 - mean))};
    Logistic best = constant;
    double lowest = at(label, best, high, low).loss;
    for (int round = 0; round < kRounds; ++round) {
      const At here = at(label, best, high, low);
      const double a = here.scale_twice + kLeastCurvature, b = here.both, c = here.shift_twice + kLeastCurvature;
      const double by_scale = (c * here.by_scale - b * here.by_shift) / (a * c - b * b);
      const double by_shift = (a * here.by_shift - b * here.by_scale) / (a * c - b * b);
      const auto moved = [&](double share) {
        return Logistic{best.scale - share * by_scale, best.shift - share * by_shift};
      };
      double share = 1;
      while (share > 1e-6 && at(label, moved(share), high, low).loss > lowest) share /= 2;
      best = moved(share);
      const double before = lowest;
      lowest = at(label, best, high, low).loss;
      if (before - lowest < 1e-9) break;
    }
    return best.scale > 0 ? best : constant;
  }

  // What logits of all labels come to: mean cross-entropy, and the share that is right.
  void judge(const std::vector<Logistic>& logistic, LinearFit& found) const {
    found.loss = found.accuracy = 0;
    for (size_t label = 0; label < marks_.labels; ++label)
      for (size_t n = 0; n < chosen_.size(); ++n) {
        const double logit = logistic[label].scale * score(n, label) + logistic[label].shift;
        const bool has = marks_.has(chosen_[n], label);
        found.loss += softplus(has ? -logit : logit) / static_cast<double>(values_.size());
        found.accuracy += ((logit > 0) == has) / static_cast<double>(values_.size());
      }
  }

 private:
  struct At {
    double loss = 0, by_scale = 0, by_shift = 0, scale_twice = 0, both = 0, shift_twice = 0;
  };

  double score(size_t number, size_t label) const {
    return static_cast<double>(values_[number * marks_.labels + label]);
  }

  // The mean cross-entropy of a label, its slopes and curvatures.
  At at(size_t label, const Logistic& logistic, double high, double low) const {
    At found;
    const auto count = static_cast<double>(chosen_.size());
    for (size_t n = 0; n < chosen_.size(); ++n) {
      const double value = score(n, label), logit = logistic.scale * value + logistic.shift;
      const double target = marks_.has(chosen_[n], label) ? high : low;
      const double chance = 1 / (1 + std::exp(-std::clamp(logit, -500.0, 500.0)));
      const double slope = (chance - target) / count, curve = chance * (1 - chance) / count;
      found.loss += (softplus(logit) - target * logit) / count;
      found.by_scale += slope * value;
      found.by_shift += slope;
      found.scale_twice += curve * value * value;
      found.both += curve * value;
      found.shift_twice += curve;
    }
    return found;
  }

  const Marks marks_;
  std::vector<int64_t> chosen_;
  std::vector<float> values_;
};

class Fit {
 public:
  Fit(const Rows& rows, const Marks& marks, size_t labels, const Terms& terms, int64_t scores)
      : weight(labels * static_cast<size_t>(rows.width())), bias(labels), of_one_(static_cast<size_t>(rows.count())),
        samples_(rows, of_one_, 1), marks_(marks), rates_(labels), along_(weight.size()),
        scores_(marks, rows.count(), scores), factor_(rows.width()), smoothing_(terms.smoothing),
        each_(variance_of(samples_.scatter(), rows.count(), terms.features)) {
    const double share = 1 / static_cast<double>(samples_.count());
    for (size_t c = 0; c < labels; ++c)
      for (int64_t i = 0; i < samples_.count(); ++i) rates_[c] += share * marks_.has(i, c);
    samples_.each_batch([&](int64_t first, int64_t count, float* batch) {
      samples_.take_means_off(first, count, batch);
      for (int64_t i = 0; i < count; ++i)
        for (size_t c = 0; c < labels; ++c) {
          const auto part = static_cast<float>(share * wanted(first + i, c));
          float* to = &along_[c * static_cast<size_t>(width())];
          for (int64_t k = 0; k < width(); ++k) to[k] += part * batch[i * width() + k];
        }
    });
  }

  // What a fit in rows of `width` numbers takes beside them, in bytes.
  static int64_t bytes(int64_t width, int64_t labels) {
    return bytes_in_room(width, labels);
  }

  // Finds the classifier.
  LinearFit best() {
    LinearFit found;
    double lowest = 0;
    for (const double shrinkage : kShrinkages) {
      solve(shrinkage);
      LinearFit here;
      scores_.judge(logistic(0), here);
      if (found.shrinkage > 0 && here.loss >= lowest) continue;
      lowest = here.loss;
      found.shrinkage = shrinkage;
    }
    if (found.shrinkage != kShrinkages.back()) solve(found.shrinkage);
    const std::vector<Logistic> to_logits = logistic(smoothing_);
    scores_.judge(to_logits, found);
    found.left_out = static_cast<int64_t>(scores_.samples().size());
    for (size_t c = 0; c < bias.size(); ++c) {
      for (int64_t k = 0; k < width(); ++k) weight_of(c)[k] *= static_cast<float>(to_logits[c].scale);
      bias[c] = static_cast<float>(to_logits[c].shift - dot(weight_of(c), samples_.centre(), width()));
    }
    return found;
  }

  std::vector<float> weight, bias;  // [labels][width], [labels]

 private:
  int64_t width() const { return samples_.width(); }
  float* weight_of(size_t label) { return &weight[label * static_cast<size_t>(width())]; }
  double wanted(int64_t sample, size_t label) const { return marks_.has(sample, label) - rates_[label]; }

  std::vector<Logistic> logistic(double smoothing) const {
    std::vector<Logistic> found;
    for (size_t c = 0; c < bias.size(); ++c) found.push_back(scores_.fit(c, smoothing));
    return found;
  }

  // The factor of A, the weights that scores are by, and the scores of samples left out.
  void solve(double shrinkage) {
    samples_.factor_shrunk(shrinkage, each_, &factor_);
    solve_rows(factor_, along_.data(), bias.size(), weight.data());
    for (float& value : weight) value *= static_cast<float>(1 - shrinkage);
    const auto read = [&](size_t number, float* row) {
      const int64_t sample = scores_.samples()[number];
      samples_.read(sample, 1, row);
      samples_.take_means_off(sample, 1, row);
      for (size_t c = 0; c < bias.size(); ++c)
        scores_.of(number)[c] = static_cast<float>(dot(weight_of(c), row, width()));
    };
    const auto see = [&](size_t number, double length) {
      const double own = (1 + (1 - shrinkage) * length) / static_cast<double>(samples_.count());
      for (size_t c = 0; c < bias.size(); ++c) {
        const double is = wanted(scores_.samples()[number], c);
        float& score = scores_.of(number)[c];
        score = static_cast<float>(is - (is - static_cast<double>(score)) / std::max(1 - own, kLeastRest));
      }
    };
    each_length(factor_, scores_.samples().size(), read, see);
  }

  const std::vector<int32_t> of_one_;  // all are of one class: what is left of a sample is what the mean does not tell
  const LabelledRows samples_;
  const Marks marks_;
  std::vector<double> rates_;
  std::vector<float> along_;  // c of each label
  Scores scores_;
  Triangle factor_;
  const double smoothing_, each_;
};

}  // namespace

LinearFit fit_labels(const Rows& rows, const Marks& marks, const Terms& terms, const TakeWeight& take) {
  return fit_in_room<Fit>(rows, marks, static_cast<int>(marks.labels), terms, take);
}

}  // namespace tinytl
