// The rows of a linear classifier, and what they say of samples.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "marks.h"
#include "rows.h"

namespace tinytl {

struct Linear {
  size_t classes() const { return bias.size(); }
  float* row(size_t label) { return &weight[label * static_cast<size_t>(features)]; }
  const float* row(size_t label) const { return &weight[label * static_cast<size_t>(features)]; }

  // Of the first classes alone.
  Linear first(size_t count) const {
    return {features, {weight.begin(), weight.begin() + static_cast<int64_t>(count) * features},
            {bias.begin(), bias.begin() + static_cast<int64_t>(count)}};
  }

  int64_t features;
  std::vector<float> weight, bias;  // [classes][features], [classes]
};

// On the medium: a row for each class, its bias behind its weights.
std::unique_ptr<Rows> write_linear(const Linear& linear, const std::string& folder);
Linear read_linear(const Rows& rows, int64_t features);

// Of all samples, of rows the first that there are labels for: sums, the range of all logits, and how many there are of the first classes and how many are right.
struct Seen {
  double losses = 0;
  int64_t correct = 0;
  double low = 0, high = 0;
  int64_t of_first = 0, first_correct = 0;
};
Seen look(const Linear& linear, const Rows& rows, const std::vector<int32_t>& labels, size_t first_classes);
// Multi-label: means over labels, but every label is an answer; none is of the first.
Seen look(const Linear& linear, const Rows& rows, const Marks& marks);

}  // namespace tinytl
