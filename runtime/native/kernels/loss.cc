#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace tinytl {

float softmax_cross_entropy(const float* logits, const float* targets, float* dlogits, int32_t classes, float scale) {
  float max_logit = logits[0];
  for (int32_t i = 1; i < classes; ++i) max_logit = std::max(max_logit, logits[i]);
  double exponentials = 0, target_sum = 0;
  for (int32_t i = 0; i < classes; ++i) {
    exponentials += std::exp(static_cast<double>(logits[i] - max_logit));
    target_sum += targets[i];
  }
  const double log_sum = std::log(exponentials);
  double loss = 0;
  for (int32_t i = 0; i < classes; ++i) {
    const double log_probability = static_cast<double>(logits[i] - max_logit) - log_sum;
    const double target = targets[i];
    if (target != 0) loss -= target * log_probability;
    if (dlogits) dlogits[i] = static_cast<float>((std::exp(log_probability) * target_sum - target) * scale);
  }
  return static_cast<float>(loss);
}

float sigmoid_cross_entropy(const float* logits, const float* targets, float* dlogits, int32_t classes, float scale) {
  double loss = 0;
  for (int32_t i = 0; i < classes; ++i) {
    const double logit = logits[i], target = targets[i];
    const double e = std::exp(-std::abs(logit));  // never overflows
    loss += std::max(logit, 0.0) - logit * target + std::log1p(e);
    const double probability = (logit < 0 ? e : 1) / (1 + e);
    if (dlogits) dlogits[i] = static_cast<float>((probability - target) * scale / classes);
  }
  return static_cast<float>(loss / classes);
}

}  // namespace tinytl
