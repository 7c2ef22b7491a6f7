#include "aligned.h"

#include <algorithm>
#include <cmath>

#include "discriminant.h"
#include "labelled_rows.h"

namespace tinytl {
namespace {

constexpr double kShare = 0.6;

using Doubles = std::vector<double>;

// The last of some rows.
class LastRows : public Rows {
 public:
  LastRows(const Rows& rows, int64_t first) : rows_(rows), first_(first) {}

  int64_t count() const override { return rows_.count() - first_; }
  int64_t width() const override { return rows_.width(); }
  void read(int64_t first, int64_t count, float* out) const override { rows_.read(first_ + first, count, out); }

 private:
  const Rows& rows_;
  int64_t first_;
};

// The mean of samples, and how far they lie from it: the sum of squares.
class Gathered {
 public:
  explicit Gathered(int64_t width) : sums_(static_cast<size_t>(width)) {}

  void add(const float* row) {
    ++count_;
    for (size_t k = 0; k < sums_.size(); ++k) {
      const auto number = static_cast<double>(row[k]);
      sums_[k] += number;
      squares_ += number * number;
    }
  }

  double mean(size_t k) const { return sums_[k] / count_; }
  // Of the mean, by chance.
  double variance() const {
    double scatter = squares_;
    for (const double sum : sums_) scatter -= sum * sum / count_;
    return scatter / (count_ * count_);
  }

 private:
  Doubles sums_;
  double squares_ = 0, count_ = 0;
};

double product(const float* row, const Doubles& other) {
  double sum = 0;
  for (size_t k = 0; k < other.size(); ++k) sum += static_cast<double>(row[k]) * other[k];
  return sum;
}

// What a classifier says of a row, where it is (`off` null) or moved.
void answer(const Linear& linear, const float* row, const Doubles* off, Doubles& logits) {
  for (size_t c = 0; c < logits.size(); ++c)
    logits[c] = static_cast<double>(linear.bias[c]) + dot(linear.row(c), row, linear.features) - (off ? (*off)[c] : 0);
}

size_t likeliest(const Doubles& logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double sure(const Doubles& logits) {
  const double most = logits[likeliest(logits)];
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - most);
  return 1 / sum;
}

Doubles times(const Linear& linear, const Doubles& moved) {
  Doubles off;
  for (size_t c = 0; c < linear.classes(); ++c) off.push_back(product(linear.row(c), moved));
  return off;
}

}  // namespace

Aligned align(const Rows& rows, const std::vector<int32_t>& labels, const Linear& before, const Terms& terms) {
  const size_t classes = before.classes();
  const int64_t here = rows.count() - static_cast<int64_t>(labels.size());
  std::vector<float> row(static_cast<size_t>(rows.width()));
  Gathered own(before.features);
  std::vector<Gathered> known(classes, Gathered(before.features));
  for (int64_t i = 0; i < rows.count(); ++i) {
    rows.read(i, 1, row.data());
    (i < here ? own : known[static_cast<size_t>(labels[static_cast<size_t>(i - here)])]).add(row.data());
  }
  const auto count = static_cast<double>(classes);
  Doubles moved(static_cast<size_t>(before.features));
  double by_chance = own.variance(), far = 0;
  for (const Gathered& one : known) by_chance += one.variance() / (count * count);
  if (!std::isfinite(by_chance)) fail(kData, "The network's features of these images are no numbers.");
  for (size_t k = 0; k < moved.size(); ++k) {
    moved[k] = own.mean(k);
    for (const Gathered& one : known) moved[k] -= one.mean(k) / count;
    far += moved[k] * moved[k];
  }
  known.clear();

  Aligned found;
  found.share = kShare * std::max(1 - by_chance / std::max(far, 1e-30), 0.0);
  const Doubles off = times(before, moved);
  for (const double each : off) found.off.push_back(found.share * each);

  Linear second{before.features, std::vector<float>(before.weight.size()), std::vector<float>(classes)};
  fit_discriminant(LastRows(rows, here), labels, static_cast<int>(classes), terms,
                   [&](size_t label, const float* weight, float bias) {
                     std::copy_n(weight, before.features, second.row(label));
                     second.bias[label] = bias;
                   });
  const Doubles second_off = times(second, moved);
  Doubles ours(classes), others(classes);
  int64_t agreed_before = 0, agreed = 0;
  for (int64_t i = 0; i < here; ++i) {
    rows.read(i, 1, row.data());
    for (const bool is_moved : {false, true}) {
      answer(before, row.data(), is_moved ? &off : nullptr, ours);
      answer(second, row.data(), is_moved ? &second_off : nullptr, others);
      (is_moved ? found.sure : found.sure_before) += sure(ours) / static_cast<double>(here);
      (is_moved ? agreed : agreed_before) += likeliest(ours) == likeliest(others);
    }
  }
  found.agreed_before = static_cast<double>(agreed_before) / static_cast<double>(here);
  found.agreed = static_cast<double>(agreed) / static_cast<double>(here);
  return found;
}

}  // namespace tinytl
