#include "scaled.h"

#include <algorithm>
#include <cmath>

#include "learning/marks.h"

namespace tinytl {
namespace {

constexpr double kLeast = 0.05, kMost = 20;  // scales of logits
constexpr int kHalvings = 30;

struct Loss {
  double value, slope;  // by the scale
};

Loss of_one(const float* logits, const uint8_t* has, size_t classes, double scale) {
  const auto most = static_cast<double>(*std::max_element(logits, logits + classes));
  double sum = 0, mean = 0, right = 0;
  for (size_t c = 0; c < classes; ++c) {
    const auto logit = static_cast<double>(logits[c]);
    const double power = std::exp(scale * (logit - most));
    sum += power;
    mean += power * logit;
    if (has[c]) right = logit;
  }
  return {std::log(sum) + scale * (most - right), mean / sum - right};
}

Loss of_any(const float* logits, const uint8_t* has, size_t classes, double scale) {
  Loss loss{0, 0};
  for (size_t c = 0; c < classes; ++c) {
    const double logit = static_cast<double>(logits[c]), scaled = scale * logit;
    loss.value += softplus(has[c] ? -scaled : scaled) / static_cast<double>(classes);
    loss.slope += logit * (1 / (1 + std::exp(-scaled)) - has[c]) / static_cast<double>(classes);
  }
  return loss;
}

}  // namespace

std::vector<double> scaled_losses(const std::vector<float>& logits, const std::vector<uint8_t>& has,
                                  const std::vector<double>& shares, bool multi_label) {
  const size_t classes = logits.size() / shares.size();
  std::vector<double> losses(shares.size());
  // Returns the slope of their mean.
  const auto at = [&](double scale) {
    double slope = 0;
    for (size_t i = 0; i < shares.size(); ++i) {
      const Loss loss = (multi_label ? of_any : of_one)(&logits[i * classes], &has[i * classes], classes, scale);
      losses[i] = loss.value;
      slope += shares[i] * loss.slope;
    }
    return slope;
  };
  double low = std::log(kLeast), high = std::log(kMost);
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = 0.5 * (low + high);
    (at(std::exp(middle)) > 0 ? high : low) = middle;
  }
  at(std::exp(0.5 * (low + high)));
  return losses;
}

}  // namespace tinytl
