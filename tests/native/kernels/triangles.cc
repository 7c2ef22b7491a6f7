// Triangular matrices, against double precision: products, the factor, and both ways to solve by it.
#include "../../../runtime/native/kernels/triangle.h"
#include "testing.h"

namespace tinytl {
namespace {

constexpr int kLanes = Triangle::kPanel;

// The factor of `rows` with themselves plus a ridge.
void check_factor(int order, int count, float ridge) {
  const std::string name = name_of("triangle", {order, count});
  Triangle triangle(order);
  const int n = int(triangle.order());
  Floats rows = random_floats(int64_t(count) * n);
  for (int i = 0; i < count; ++i) std::fill(&rows[size_t(i * n + order)], &rows[size_t(i * n)] + n, 0.0f);
  triangle.add_products(rows.data(), count);
  std::vector<double> matrix(size_t(n) * size_t(n));
  const auto at = [&](int i, int k) -> double& { return matrix[size_t(i) * size_t(n) + size_t(k)]; };
  Floats got;
  Doubles wanted;
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k <= i; ++k) {
      for (int s = 0; s < count; ++s) at(i, k) += double(rows[size_t(s * n + i)]) * double(rows[size_t(s * n + k)]);
      at(k, i) = at(i, k);
      got.push_back(triangle.at(i, k));
      wanted.push_back(at(i, k));
    }
    triangle.at(i, i) += ridge;
    at(i, i) += double(ridge);
  }
  compare(name, "products", got, wanted, count);

  triangle.factor(0);
  Floats product;
  Doubles whole;
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k <= i; ++k) {
      double sum = 0;
      for (int j = 0; j <= k; ++j) sum += double(triangle.at(i, j)) * double(triangle.at(k, j));
      product.push_back(float(sum));
      whole.push_back(at(i, k));
    }
    for (int k = i + 1; k < (i / kLanes + 1) * kLanes; ++k)
      if (triangle.panel(i / kLanes)[k * kLanes + i % kLanes] != 0) fail(name, "above the diagonal", size_t(i), 1, 0);
  }
  compare(name, "factor", product, whole, n + count);

  const Floats right = random_floats(n * kLanes);
  Floats solved = right;
  triangle.solve(solved.data());
  triangle.solve_transposed(solved.data());
  Floats back;
  for (int i = 0; i < n; ++i)
    for (int lane = 0; lane < kLanes; ++lane) {
      double sum = 0;
      for (int k = 0; k < n; ++k) sum += at(i, k) * double(solved[size_t(k * kLanes + lane)]);
      back.push_back(float(sum));
    }
  compare(name, "solved", back, Doubles(right.begin(), right.end()), 100 * (n + count));
}

// Of inner products of fewer dimensions than samples: columns that are rounding are zero, and the rest is exact.
void check_rank(int samples, int rank) {
  const std::string name = name_of("rank", {samples, rank});
  Triangle triangle(samples);
  const int64_t blocks = triangle.order() / kLanes;
  std::vector<Floats> columns(size_t(blocks), Floats(size_t(rank * kLanes)));
  for (int i = 0; i < samples; ++i)
    for (int k = 0; k < rank; ++k) columns[size_t(i / kLanes)][size_t(k * kLanes + i % kLanes)] = random_floats(1)[0];
  for (int64_t q = 0; q < blocks; ++q)
    for (int64_t p = 0; p <= q; ++p) triangle.add_block(q, p, columns[size_t(q)].data(), columns[size_t(p)].data(), rank);
  Doubles wanted;
  for (int i = 0; i < samples; ++i)
    for (int j = 0; j <= i; ++j) {
      double sum = 0;
      for (int k = 0; k < rank; ++k)
        sum += double(columns[size_t(i / kLanes)][size_t(k * kLanes + i % kLanes)]) *
               double(columns[size_t(j / kLanes)][size_t(k * kLanes + j % kLanes)]);
      wanted.push_back(sum);
    }
  const Doubles exact = wanted;
  const auto square_of = [&](int i) { return exact[size_t(i * (i + 1) / 2 + i)]; };
  constexpr float kTolerance = 1e-4f;
  triangle.factor(kTolerance);
  int kept = 0;
  Floats got;
  for (int i = 0; i < samples; ++i) {
    kept += triangle.at(i, i) > 0;
    for (int j = 0; j <= i; ++j) {
      double sum = 0;
      for (int k = 0; k <= j; ++k) sum += double(triangle.at(i, k)) * double(triangle.at(j, k));
      // What was left of a column that became zero is missing: a pivot that was below the tolerance, and no more of
      // other rows than that and what is left of them have in common.
      double& product = wanted[got.size()];
      const double left = triangle.at(j, j) > 0 ? 0 : std::sqrt(double(kTolerance) * (double(kTolerance) + square_of(i)));
      if (std::abs(sum - product) <= left) product = sum;
      got.push_back(float(sum));
    }
  }
  const int most = std::min(rank + rank / 8, samples);  // what is nearly dependent may be rounding
  if (kept > most || kept < std::min(rank, samples) - rank / 8) fail(name, "columns", 0, kept, most);
  compare(name, "products", got, wanted, 1000 * rank);
}

}  // namespace

void test_triangles() {
  for (int order : {1, 5, 16, 17, 48, 130}) {
    for (int count : {1, 7, 64}) check_factor(order, count, 1);
    check_factor(order, 3 * order, 0.5f);
  }
  for (int samples : {3, 20, 70}) {
    for (int rank : {1, 8, 40}) check_rank(samples, rank);
  }
}

}  // namespace tinytl
