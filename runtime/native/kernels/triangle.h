// Symmetric and lower triangular matrices, in half the memory.
#pragma once

#include <cstdint>
#include <vector>

namespace tinytl {

// A matrix of which the lower half is kept, in panels of 16 rows: panel q is [16 (q + 1) columns][16 rows]. Its order is
// rounded up to whole panels.
class Triangle {
 public:
  static constexpr int kPanel = 16;
  static int64_t padded(int64_t order) { return (order + kPanel - 1) / kPanel * kPanel; }

  explicit Triangle(int64_t order);

  int64_t order() const { return kPanel * panels_; }
  float* panel(int64_t q) { return values_.data() + kPanel * kPanel * (q * (q + 1) / 2); }
  const float* panel(int64_t q) const { return values_.data() + kPanel * kPanel * (q * (q + 1) / 2); }
  // Row i, column k <= i.
  float& at(int64_t i, int64_t k) { return panel(i / kPanel)[k * kPanel + i % kPanel]; }
  float at(int64_t i, int64_t k) const { return panel(i / kPanel)[k * kPanel + i % kPanel]; }

  void clear();
  // Adds the products of each row with itself; rows [count][order()].
  void add_products(const float* rows, int64_t count);
  // Adds the products of the samples in `left` with those in `right`, which are those of panel q and of the columns from
  // 16 p on: [length][16] each, p <= q.
  void add_block(int64_t q, int64_t p, const float* left, const float* right, int64_t length);
  // Makes it a factor L of itself, of which it is L L^T. Where a pivot is at or below the tolerance, what is left of its
  // column is taken for rounding: the column becomes zero.
  void factor(float tolerance);
  // Of 16 right-hand sides [order()][16], in place: L Y = B, and transposed, L^T X = Y. What belongs to a zero column
  // becomes zero.
  void solve(float* columns) const;
  void solve_transposed(float* columns) const;

 private:
  int64_t panels_;
  std::vector<float> values_;
};

// products[i][lane] = sum over k < length of left[k][i] * right[k][lane]; 16 of each.
void multiply_columns(const float* left, const float* right, int64_t length, float* products);

}  // namespace tinytl
