#include "linear.h"

#include <algorithm>
#include <cmath>

#include "labelled_rows.h"

namespace tinytl {

std::unique_ptr<Rows> write_linear(const Linear& linear, const std::string& folder) {
  auto rows = std::make_unique<RowFile>(folder, linear.features + 1);
  std::vector<float> row(static_cast<size_t>(linear.features) + 1);
  for (size_t c = 0; c < linear.classes(); ++c) {
    const float* weight = &linear.weight[c * static_cast<size_t>(linear.features)];
    std::copy(weight, weight + linear.features, row.begin());
    row.back() = linear.bias[c];
    rows->append(row.data());
  }
  return rows;
}

Linear read_linear(const Rows& rows, int64_t features) {
  const auto classes = static_cast<size_t>(rows.count());
  Linear linear{features, std::vector<float>(classes * static_cast<size_t>(features)), std::vector<float>(classes)};
  std::vector<float> row(static_cast<size_t>(rows.width()));
  for (size_t c = 0; c < classes; ++c) {
    rows.read(static_cast<int64_t>(c), 1, row.data());
    std::copy(row.begin(), row.begin() + features, linear.row(c));
    linear.bias[c] = row[static_cast<size_t>(features)];
  }
  return linear;
}

Seen look(const Linear& linear, const Rows& rows, const std::vector<int32_t>& labels, size_t first_classes) {
  Seen seen;
  std::vector<double> logits(linear.classes());
  std::vector<float> row(static_cast<size_t>(rows.width()));
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto own = static_cast<size_t>(labels[i]);
    if (own >= linear.classes()) continue;
    rows.read(static_cast<int64_t>(i), 1, row.data());
    for (size_t c = 0; c < logits.size(); ++c)
      logits[c] = static_cast<double>(linear.bias[c]) + dot(linear.row(c), row.data(), linear.features);
    const auto likeliest = std::max_element(logits.begin(), logits.end());
    const bool right = likeliest == logits.begin() + static_cast<int64_t>(own);
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit - *likeliest);
    seen.losses += std::log(sum) + *likeliest - logits[own];
    seen.correct += right;
    seen.low = std::min(seen.low, *std::min_element(logits.begin(), logits.end()));
    seen.high = std::max(seen.high, *likeliest);
    seen.of_first += own < first_classes;
    seen.first_correct += right && own < first_classes;
  }
  return seen;
}

Seen look(const Linear& linear, const Rows& rows, const Marks& marks) {
  Seen seen;
  std::vector<float> row(static_cast<size_t>(rows.width()));
  for (int64_t i = 0; i < rows.count(); ++i) {
    rows.read(i, 1, row.data());
    for (size_t c = 0; c < linear.classes(); ++c) {
      const double logit = static_cast<double>(linear.bias[c]) + dot(linear.row(c), row.data(), linear.features);
      seen.losses += softplus(marks.has(i, c) ? -logit : logit) / static_cast<double>(linear.classes());
      seen.correct += (logit > 0) == marks.has(i, c);
      seen.low = std::min(seen.low, logit);
      seen.high = std::max(seen.high, logit);
    }
  }
  return seen;
}

}  // namespace tinytl
