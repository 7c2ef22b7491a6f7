#include "labelled_rows.h"

#include <cmath>

namespace tinytl {

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

LabelledRows::LabelledRows(const Rows& rows, const std::vector<int32_t>& labels, size_t classes)
    : rows_(rows), labels_(labels), counts_(classes) {
  const auto wide = static_cast<size_t>(width());
  means_.resize(classes * wide);
  centre_.resize(wide);
  each_batch([&](int64_t first, int64_t count, const float* batch) {
    for (int64_t i = 0; i < count; ++i) {
      const float share = 1 / static_cast<float>(++counts_[label(first + i)]);
      float* mean = &means_[label(first + i) * wide];
      const float* row = batch + i * width();
      for (size_t k = 0; k < wide; ++k) mean[k] += share * (row[k] - mean[k]);
    }
  });
  float present = 0;
  for (size_t c = 0; c < classes; ++c) {
    if (!counts_[c]) continue;
    has_pairs_ |= counts_[c] > 1;
    const float share = 1 / ++present;
    for (size_t k = 0; k < wide; ++k) centre_[k] += share * (means_[c * wide + k] - centre_[k]);
  }
  for (size_t c = 0; c < classes; ++c)
    for (size_t k = 0; k < wide; ++k) means_[c * wide + k] = counts_[c] ? means_[c * wide + k] - centre_[k] : 0;
  each_batch([&](int64_t first, int64_t count, float* batch) {
    take_means_off(first, count, batch);
    for (int64_t i = 0; i < count; ++i) scatter_ += dot(batch + i * width(), batch + i * width(), width());
  });
}

void LabelledRows::take_means_off(int64_t first, int64_t count, float* batch) const {
  for (int64_t i = 0; i < count; ++i) {
    const float* mean = has_pairs_ ? this->mean(label(first + i)) : nullptr;
    float* row = batch + i * width();
    for (int64_t k = 0; k < width(); ++k) row[k] -= centre_[static_cast<size_t>(k)] + (mean ? mean[k] : 0);
  }
}

void LabelledRows::factor_shrunk(double shrinkage, double each, Triangle* factor) const {
  factor->clear();
  const auto scale = static_cast<float>(std::sqrt((1 - shrinkage) / static_cast<double>(count())));
  each_batch([&](int64_t first, int64_t size, float* batch) {
    take_means_off(first, size, batch);
    for (int64_t i = 0; i < size * width(); ++i) batch[i] *= scale;
    factor->add_products(batch, size);
  });
  for (int64_t k = 0; k < width(); ++k) factor->at(k, k) += static_cast<float>(shrinkage * each);
  factor->factor(0);
}

}  // namespace tinytl
