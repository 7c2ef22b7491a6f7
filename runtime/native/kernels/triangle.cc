#include "triangle.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "simd.h"

namespace tinytl {
namespace {

constexpr int kPanel = Triangle::kPanel;
constexpr int kTile = 4;
constexpr int kVectors = kPanel / kLanes;

// sums[t][lane] = sum over i < count of a[i * a_stride + t] * b[i * b_stride + lane]
TINYTL_INLINE void tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t count,
                        Vector (&sums)[kTile][kVectors]) {
  for (auto& row : sums)
    for (Vector& sum : row) sum = Vector{};
  for (int64_t i = 0; i < count; ++i, a += a_stride, b += b_stride)
    for (int v = 0; v < kVectors; ++v) {
      const Vector values = load<Vector>(b + v * kLanes);
      for (int t = 0; t < kTile; ++t) sums[t][v] += broadcast<Vector>(a[t]) * values;
    }
}

// to[t][lane] += or -= sums
template <int Sign>
TINYTL_INLINE void add_tile(float* to, const Vector (&sums)[kTile][kVectors]) {
  for (int t = 0; t < kTile; ++t)
    for (int v = 0; v < kVectors; ++v) {
      float* at = to + t * kPanel + v * kLanes;
      const Vector before = load<Vector>(at);
      store(at, Sign > 0 ? before + sums[t][v] : before - sums[t][v]);
    }
}

// Calls work(panel) for all from `first` on, so that threads get about as much where work grows with the panel.
template <class Work>
void each_panel(int64_t first, int64_t end, const Work& work) {
  const int64_t count = end - first;
  parallel(static_cast<int>((count + 1) / 2), [&](int pair) {
    work(first + pair);
    if (end - 1 - pair != first + pair) work(end - 1 - pair);
  });
}

// Cholesky of a block [16 columns][16 rows], and zero above its diagonal.
void factor_block(float* block, float tolerance) {
  for (int k = 0; k < kPanel; ++k) {
    float* column = block + k * kPanel;
    const float pivot = column[k];
    const float scale = pivot > tolerance ? 1 / std::sqrt(pivot) : 0;
    for (int i = 0; i < kPanel; ++i) column[i] = i < k ? 0 : column[i] * scale;
    for (int j = k + 1; j < kPanel; ++j)
      for (int i = j; i < kPanel; ++i) block[j * kPanel + i] -= column[i] * column[j];
  }
}

float inverse(float pivot) { return pivot > 0 ? 1 / pivot : 0; }

}  // namespace

Triangle::Triangle(int64_t order) : panels_(padded(order) / kPanel) {
  values_.resize(static_cast<size_t>(kPanel * kPanel * (panels_ * (panels_ + 1) / 2)));
}

void Triangle::clear() { std::fill(values_.begin(), values_.end(), 0.0f); }

void Triangle::add_products(const float* rows, int64_t count) {
  const int64_t stride = order();
  each_panel(0, panels_, [&](int64_t q) {
    Vector sums[kTile][kVectors];
    for (int64_t k = 0; k < kPanel * (q + 1); k += kTile) {
      tile(rows + k, stride, rows + kPanel * q, stride, count, sums);
      add_tile<1>(panel(q) + k * kPanel, sums);
    }
  });
}

void Triangle::add_block(int64_t q, int64_t p, const float* left, const float* right, int64_t length) {
  Vector sums[kTile][kVectors];
  for (int64_t k = 0; k < kPanel; k += kTile) {
    tile(right + k, kPanel, left, kPanel, length, sums);
    add_tile<1>(panel(q) + (kPanel * p + k) * kPanel, sums);
  }
}

void multiply_columns(const float* left, const float* right, int64_t length, float* products) {
  Vector sums[kTile][kVectors];
  std::fill(products, products + kPanel * kPanel, 0.0f);
  for (int64_t i = 0; i < kPanel; i += kTile) {
    tile(left + i, kPanel, right, kPanel, length, sums);
    add_tile<1>(products + i * kPanel, sums);
  }
}

void Triangle::factor(float tolerance) {
  for (int64_t p = 0; p < panels_; ++p) {
    each_panel(p, panels_, [&](int64_t q) {
      Vector sums[kTile][kVectors];
      for (int64_t k = 0; k < kPanel; k += kTile) {
        tile(panel(p) + k, kPanel, panel(q), kPanel, kPanel * p, sums);
        add_tile<-1>(panel(q) + (kPanel * p + k) * kPanel, sums);
      }
    });
    const float* diagonal = panel(p) + kPanel * p * kPanel;
    factor_block(panel(p) + kPanel * p * kPanel, tolerance);
    each_panel(p + 1, panels_, [&](int64_t q) {  // X L^T = block, a column at a time
      float* block = panel(q) + kPanel * p * kPanel;
      for (int k = 0; k < kPanel; ++k) {
        const float scale = inverse(diagonal[k * kPanel + k]);
        for (int i = 0; i < kPanel; ++i) block[k * kPanel + i] *= scale;
        for (int j = k + 1; j < kPanel; ++j)
          for (int i = 0; i < kPanel; ++i) block[j * kPanel + i] -= block[k * kPanel + i] * diagonal[k * kPanel + j];
      }
    });
  }
}

void Triangle::solve(float* columns) const {
  for (int64_t q = 0; q < panels_; ++q) {
    const float* rows = panel(q);
    float* own = columns + kPanel * q * kPanel;
    Vector sums[kTile][kVectors];
    for (int64_t i = 0; i < kPanel; i += kTile) {
      tile(rows + i, kPanel, columns, kPanel, kPanel * q, sums);
      add_tile<-1>(own + i * kPanel, sums);
    }
    const float* diagonal = rows + kPanel * q * kPanel;
    for (int k = 0; k < kPanel; ++k) {
      const float scale = inverse(diagonal[k * kPanel + k]);
      for (int lane = 0; lane < kPanel; ++lane) own[k * kPanel + lane] *= scale;
      for (int i = k + 1; i < kPanel; ++i)
        for (int lane = 0; lane < kPanel; ++lane)
          own[i * kPanel + lane] -= diagonal[k * kPanel + i] * own[k * kPanel + lane];
    }
  }
}

void Triangle::solve_transposed(float* columns) const {
  for (int64_t q = panels_ - 1; q >= 0; --q) {
    const float* rows = panel(q);
    float* own = columns + kPanel * q * kPanel;
    const float* diagonal = rows + kPanel * q * kPanel;
    for (int k = kPanel - 1; k >= 0; --k) {
      for (int i = k + 1; i < kPanel; ++i)
        for (int lane = 0; lane < kPanel; ++lane)
          own[k * kPanel + lane] -= diagonal[k * kPanel + i] * own[i * kPanel + lane];
      const float scale = inverse(diagonal[k * kPanel + k]);
      for (int lane = 0; lane < kPanel; ++lane) own[k * kPanel + lane] *= scale;
    }
    for (int64_t k = 0; k < kPanel * q; ++k)
      for (int i = 0; i < kPanel; ++i)
        for (int lane = 0; lane < kPanel; ++lane)
          columns[k * kPanel + lane] -= rows[k * kPanel + i] * own[i * kPanel + lane];
  }
}

}  // namespace tinytl
