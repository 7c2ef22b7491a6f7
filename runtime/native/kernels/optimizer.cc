#include <cmath>

#include "kernels.h"

namespace tinytl {

void sgd_update(float* parameter, const float* gradient, int64_t elements, float rate) {
  for (int64_t i = 0; i < elements; ++i) parameter[i] -= rate * gradient[i];
}

void momentum_update(float* parameter, const float* gradient, float* velocity, int64_t elements, float rate,
                     float momentum) {
  for (int64_t i = 0; i < elements; ++i) {
    const float v = momentum * velocity[i] + gradient[i];
    velocity[i] = v;
    parameter[i] -= rate * v;
  }
}

void adam_update(float* parameter, const float* gradient, float* m, float* v, int64_t elements, float rate,
                 int64_t step) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;
  const double power = static_cast<double>(step);  // 1 for the first update
  const float step_size = static_cast<float>(rate / (1 - std::pow(kBeta1, power)));
  const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(kBeta2, power)));
  for (int64_t i = 0; i < elements; ++i) {
    const float g = gradient[i];
    const float first = m[i] + static_cast<float>(1 - kBeta1) * (g - m[i]);
    const float second = static_cast<float>(kBeta2) * v[i] + static_cast<float>(1 - kBeta2) * g * g;
    m[i] = first;
    v[i] = second;
    parameter[i] -= step_size * first / (std::sqrt(second) * root + static_cast<float>(kEpsilon));
  }
}

}  // namespace tinytl
