// Samples as coordinates in the space that some of them span around their mean: fewer numbers, of which all inner
// products are the same where the samples lie in that space, as all do when all of them span it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "../kernels/triangle.h"
#include "rows.h"

namespace tinytl {

class Span {
 public:
  // The space of `basis` samples, taken at equal distances; the coordinates lie in `folder`.
  Span(const Rows& rows, int64_t basis, const std::string& folder);

  const Rows& coordinates() const { return coordinates_; }
  // What the constructor takes at most, in bytes, of rows of `width` numbers.
  static int64_t bytes(int64_t basis, int64_t width);

  // Leads weights of coordinates [count][coordinates().width()] back to weights of the samples' own numbers, one after
  // another: visit(index, weight [rows.width()], bias), where the bias takes the mean out.
  using Visit = std::function<void(size_t, const float*, float)>;
  void lead_back(const std::vector<float>& weights, const Visit& visit) const;

 private:
  int64_t read_basis(int64_t block, std::vector<float>& rows) const;  // centred; returns how many of 16
  int64_t read_centred(int64_t first, int64_t count, float* rows) const;

  const Rows& rows_;
  const int64_t basis_;
  Triangle factor_;  // L, of which the basis' inner products are L L^T
  std::vector<float> mean_;
  RowFile coordinates_;
};

}  // namespace tinytl
