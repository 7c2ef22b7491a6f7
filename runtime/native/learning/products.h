// Products of all pairs of samples, each with a 1 behind it that stands for a classifier's biases.
#pragma once

#include <cstdint>
#include <vector>

#include "rows.h"

namespace tinytl {

class Products {
 public:
  // Of the samples chosen of `rows`, kept where that takes no more than `room` bytes, otherwise computed again and again.
  Products(const Rows& rows, const std::vector<int64_t>& chosen, int64_t room);

  size_t samples() const { return chosen_.size(); }
  double mean_square() const { return mean_square_; }  // a sample's product with itself
  // out = products in, both [samples][columns].
  void multiply(const std::vector<double>& in, size_t columns, std::vector<double>& out) const;
  // Sums of samples, out[column] = sum of in[sample][column] sample: [columns][rows.width() + 1].
  void sum(const std::vector<double>& in, size_t columns, std::vector<double>& out) const;

 private:
  void keep();
  size_t read(size_t first, std::vector<float>& block) const;  // returns how many

  const Rows& rows_;
  const std::vector<int64_t> chosen_;
  const size_t width_;
  std::vector<double> kept_;  // [samples][samples]
  double mean_square_ = 0;
};

}  // namespace tinytl
