#include "products.h"

#include <algorithm>

#include "../kernels/parallel.h"

namespace tinytl {
namespace {

constexpr size_t kBlock = 16;  // samples in memory at a time

double product(const float* a, const float* b, size_t width) {
  double sum = 1;
  for (size_t k = 0; k < width; ++k) sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  return sum;
}

}  // namespace

Products::Products(const Rows& rows, const std::vector<int64_t>& chosen, int64_t room)
    : rows_(rows), chosen_(chosen), width_(static_cast<size_t>(rows.width())) {
  std::vector<float> block(kBlock * width_);
  for (size_t first = 0; first < samples(); first += kBlock) {
    const size_t size = read(first, block);
    for (size_t i = 0; i < size; ++i)
      mean_square_ += product(&block[i * width_], &block[i * width_], width_) / static_cast<double>(samples());
  }
  if (static_cast<int64_t>(samples() * samples() * sizeof(double)) <= room) keep();
}

void Products::keep() {
  const size_t count = samples();
  kept_.resize(count * count);
  std::vector<float> left(kBlock * width_), right(kBlock * width_);
  for (size_t a = 0; a < count; a += kBlock) {
    const size_t rows = read(a, left);
    for (size_t b = 0; b <= a; b += kBlock) {
      const size_t columns = read(b, right);
      parallel(static_cast<int>(rows), [&](int row) {
        const auto i = static_cast<size_t>(row);
        for (size_t j = 0; j < columns; ++j) {
          if (a + i < b + j) continue;
          const double found = product(&left[i * width_], &right[j * width_], width_);
          kept_[(a + i) * count + b + j] = kept_[(b + j) * count + a + i] = found;
        }
      });
    }
  }
}

void Products::multiply(const std::vector<double>& in, size_t columns, std::vector<double>& out) const {
  const size_t count = samples();
  out.assign(count * columns, 0);
  if (!kept_.empty()) {
    parallel(Slices(static_cast<int64_t>(count), 1, 8), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double* to = &out[static_cast<size_t>(i) * columns];
        const double* with = &kept_[static_cast<size_t>(i) * count];
        for (size_t j = 0; j < count; ++j)
          for (size_t c = 0; c < columns; ++c) to[c] += with[j] * in[j * columns + c];
      }
    });
    return;
  }
  std::vector<double> sums;
  sum(in, columns, sums);
  std::vector<float> block(kBlock * width_);
  for (size_t first = 0; first < count; first += kBlock) {
    const size_t size = read(first, block);
    parallel(static_cast<int>(columns), [&](int column) {
      const double* own = &sums[static_cast<size_t>(column) * (width_ + 1)];
      for (size_t i = 0; i < size; ++i) {
        double& to = out[(first + i) * columns + static_cast<size_t>(column)];
        to = own[width_];
        for (size_t k = 0; k < width_; ++k) to += own[k] * static_cast<double>(block[i * width_ + k]);
      }
    });
  }
}

void Products::sum(const std::vector<double>& in, size_t columns, std::vector<double>& out) const {
  out.assign(columns * (width_ + 1), 0);
  std::vector<float> block(kBlock * width_);
  for (size_t first = 0; first < samples(); first += kBlock) {
    const size_t size = read(first, block);
    parallel(static_cast<int>(columns), [&](int column) {
      double* own = &out[static_cast<size_t>(column) * (width_ + 1)];
      for (size_t i = 0; i < size; ++i) {
        const double share = in[(first + i) * columns + static_cast<size_t>(column)];
        for (size_t k = 0; k < width_; ++k) own[k] += share * static_cast<double>(block[i * width_ + k]);
        own[width_] += share;
      }
    });
  }
}

size_t Products::read(size_t first, std::vector<float>& block) const {
  const size_t size = std::min(kBlock, samples() - first);
  for (size_t i = 0; i < size; ++i) rows_.read(chosen_[first + i], 1, &block[i * width_]);
  return size;
}

}  // namespace tinytl
