#include "span.h"

#include <algorithm>

#include "columns.h"

namespace tinytl {
namespace {

constexpr int kGroup = Triangle::kPanel;
constexpr float kRounding = 1e-6f;  // of inner products, as a share of the largest

}  // namespace

int64_t Span::bytes(int64_t basis, int64_t width) {
  const int64_t order = Triangle::padded(basis);
  return (order * order / 2 + kGroup * (3 * width + order)) * static_cast<int64_t>(sizeof(float));
}

Span::Span(const Rows& rows, int64_t basis, const std::string& folder)
    : rows_(rows), basis_(std::min(basis, rows.count())), factor_(basis_), mean_(static_cast<size_t>(rows.width())),
      coordinates_(folder, factor_.order()) {
  const int64_t width = rows.width(), blocks = factor_.order() / kGroup, all = (rows.count() + kGroup - 1) / kGroup;
  std::vector<float> block(static_cast<size_t>(kGroup * width)), left(block.size()), right(block.size());
  for (int64_t b = 0; b < all; ++b) {
    const int64_t size = std::min<int64_t>(kGroup, rows.count() - b * kGroup);
    rows.read(b * kGroup, size, block.data());
    for (int64_t i = 0; i < size; ++i)
      for (int64_t k = 0; k < width; ++k)
        mean_[static_cast<size_t>(k)] += block[static_cast<size_t>(i * width + k)] / static_cast<float>(rows.count());
  }
  for (int64_t q = 0; q < blocks; ++q) {
    transpose(block.data(), read_basis(q, block), width, left.data());
    for (int64_t p = 0; p <= q; ++p) {
      if (p < q) transpose(block.data(), read_basis(p, block), width, right.data());
      factor_.add_block(q, p, left.data(), p < q ? right.data() : left.data(), width);
    }
  }
  float longest = 0;
  for (int64_t i = 0; i < basis_; ++i) longest = std::max(longest, factor_.at(i, i));
  factor_.factor(kRounding * longest);

  std::vector<float> columns(static_cast<size_t>(factor_.order() * kGroup)), row(static_cast<size_t>(factor_.order()));
  for (int64_t b = 0; b < all; ++b) {
    const int64_t size = read_centred(b * kGroup, std::min<int64_t>(kGroup, rows.count() - b * kGroup), block.data());
    transpose(block.data(), size, width, left.data());
    for (int64_t p = 0; p < blocks; ++p) {
      transpose(block.data(), read_basis(p, block), width, right.data());
      multiply_columns(right.data(), left.data(), width, &columns[static_cast<size_t>(p * kGroup * kGroup)]);
    }
    factor_.solve(columns.data());
    for (int64_t lane = 0; lane < size; ++lane) {
      for (size_t k = 0; k < row.size(); ++k) row[k] = columns[k * kGroup + static_cast<size_t>(lane)];
      coordinates_.append(row.data());
    }
  }
}

void Span::lead_back(const std::vector<float>& weights, const Visit& visit) const {
  const auto own = static_cast<size_t>(factor_.order()), wide = static_cast<size_t>(rows_.width());
  const size_t count = weights.size() / own;
  std::vector<float> found(kGroup * wide), columns(own * kGroup), block(kGroup * wide);
  for (size_t first = 0; first < count; first += kGroup) {
    const size_t group = std::min<size_t>(kGroup, count - first);
    transpose(&weights[first * own], static_cast<int64_t>(group), factor_.order(), columns.data());
    factor_.solve_transposed(columns.data());
    std::fill(found.begin(), found.end(), 0.0f);
    for (int64_t b = 0; b < factor_.order() / kGroup; ++b) {
      const int64_t size = read_basis(b, block);
      for (int64_t i = 0; i < size; ++i)
        for (size_t lane = 0; lane < group; ++lane) {
          const float share = columns[static_cast<size_t>(b * kGroup + i) * kGroup + lane];
          for (size_t k = 0; k < wide; ++k) found[lane * wide + k] += share * block[static_cast<size_t>(i) * wide + k];
        }
    }
    for (size_t lane = 0; lane < group; ++lane) {
      double along = 0;
      for (size_t k = 0; k < wide; ++k)
        along += static_cast<double>(found[lane * wide + k]) * static_cast<double>(mean_[k]);
      visit(first + lane, &found[lane * wide], static_cast<float>(-along));
    }
  }
}

int64_t Span::read_centred(int64_t first, int64_t count, float* rows) const {
  if (count <= 0) return 0;
  rows_.read(first, count, rows);
  const auto width = static_cast<size_t>(rows_.width());
  for (int64_t i = 0; i < count; ++i)
    for (size_t k = 0; k < width; ++k) rows[static_cast<size_t>(i) * width + k] -= mean_[k];
  return count;
}

int64_t Span::read_basis(int64_t block, std::vector<float>& rows) const {
  int64_t count = 0;
  for (; count < kGroup && block * kGroup + count < basis_; ++count)
    read_centred((block * kGroup + count) * rows_.count() / basis_, 1, &rows[static_cast<size_t>(count * rows_.width())]);
  return count;
}

}  // namespace tinytl
