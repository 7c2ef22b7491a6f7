// Linear layers: each weight is read once for all rows, so that packing would only add traffic.
#include <algorithm>

#include "epilogue.h"
#include "gemm.h"
#include "parallel.h"
#include "simd.h"

namespace tinytl {
namespace {

// Rows and vectors of each whose sums are in registers at a time.
constexpr int kRows = 4;
#if TINYTL_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int64_t kWorthAThread = 1 << 16;  // weights

// Rows of the weight, ahead of which a processor does not know by itself what comes next.
template <class Element>
TINYTL_INLINE void prefetch(const Element* row, int32_t columns) {
  for (int32_t n = 0; n < columns * static_cast<int32_t>(sizeof(Element)); n += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + n);
}

// sums[r][column] += over rows [k0, k1) of the weight, for `Vectors` vectors of columns from n0 on.
template <int Rows, class V, int Vectors, class Element>
TINYTL_INLINE void add_products(const LinearRows& rows, int32_t first, int64_t k0, int64_t k1, int32_t out,
                                const Element* w, float zero, int32_t n0, float* to, int32_t width) {
  constexpr int kL = lanes_of<V>;
  constexpr int64_t kAhead = 24;
  const float* x = rows.from + first * rows.stride;
  V sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int j = 0; j < Vectors; ++j) sums[r][j] = load<V>(to + r * width + j * kL);
  }
  for (int64_t k = k0; k < k1; ++k) {
    const Element* row = w + k * out + n0;
    prefetch(row + kAhead * out, Vectors * kL);
    V weights[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) weights[j] = load_centred<V>(row + j * kL, zero);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const V factor = broadcast<V>(x[r * rows.stride + k]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[r][j] += factor * weights[j];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int j = 0; j < Vectors; ++j) store(to + r * width + j * kL, sums[r][j]);
  }
}

// Calls body with a number of rows to take at a time, and the first of them, until all are taken.
template <class Body>
void some_at_a_time(int32_t count, const Body& body) {
  int32_t first = 0;
  for (; first + kRows <= count; first += kRows) body.template operator()<kRows>(first);
  for (; first + 2 <= count; first += 2) body.template operator()<2>(first);
  for (; first < count; ++first) body.template operator()<1>(first);
}

// Columns from n0 on, of all rows: so much of the weight at a time as stays in a second-level cache for the next rows.
template <class V, int Vectors, class Element>
void forward_columns(const LinearRows& rows, int32_t in, int32_t out, const Element* w, const float* scale, float zero,
                     const Epilogue& epilogue, int32_t n0) {
  constexpr int32_t kWidth = Vectors * lanes_of<V>;
  const int64_t depth = rows.count <= kRows ? in : 32768 / kWidth;
  alignas(64) float sums[kMostLinearRows * kWidth] = {};
  for (int64_t k = 0; k < in; k += depth) {
    some_at_a_time(rows.count, [&]<int Rows>(int32_t first) {
      add_products<Rows, V, Vectors>(rows, first, k, std::min<int64_t>(k + depth, in), out, w, zero, n0,
                                     sums + first * kWidth, kWidth);
    });
  }
  for (int32_t r = 0; r < rows.count; ++r) {
    for (int32_t j = 0; j < kWidth; j += lanes_of<V>) {
      const int32_t n = n0 + j;
      float* to = rows.to + r * rows.stride + n;
      V v = load<V>(sums + r * kWidth + j);
      if (scale) v *= load<V>(scale + n);
      if (epilogue.bias) v += load<V>(epilogue.bias + n);
      if (epilogue.accumulate) v += load<V>(to);
      store(to, clamp<V>(v, broadcast<V>(epilogue.bounds.low), broadcast<V>(epilogue.bounds.high)));
    }
  }
}

template <class Element>
void forward_slice(const LinearRows& rows, int32_t in, int32_t out, const Element* w, const float* scale, float zero,
                   const Epilogue& epilogue, int64_t begin, int64_t end) {
  const auto columns = [&]<class V, int Vectors>(int64_t n) {
    forward_columns<V, Vectors>(rows, in, out, w, scale, zero, epilogue, static_cast<int32_t>(n));
  };
  int64_t n = begin;
  for (; n + kVectors * kLanes <= end; n += kVectors * kLanes) columns.template operator()<Vector, kVectors>(n);
  for (; n + kLanes <= end; n += kLanes) columns.template operator()<Vector, 1>(n);
  for (; n + 4 <= end; n += 4) columns.template operator()<Quad, 1>(n);
  for (; n < end; ++n) columns.template operator()<float, 1>(n);
}

constexpr int32_t kChunk = 512;  // of outputs: what all rows have of them stays in a first-level cache

// dx[r][k] += the products of a chunk of a row of the weight with those of `Rows` gradients.
template <int Rows, class Element>
TINYTL_INLINE void add_dots(const float* scaled, const Element* row, int32_t columns, float zero, float* dx,
                            int64_t stride) {
  Vector sums[Rows][kVectors] = {};
  int32_t n = 0;
  for (; n + kVectors * kLanes <= columns; n += kVectors * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const Vector weights = load_centred<Vector>(row + n + j * kLanes, zero);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sums[r][j] += load<Vector>(scaled + r * kChunk + n + j * kLanes) * weights;
    }
  }
  for (; n + kLanes <= columns; n += kLanes) {
    const Vector weights = load_centred<Vector>(row + n, zero);
    for (int r = 0; r < Rows; ++r) sums[r][0] += load<Vector>(scaled + r * kChunk + n) * weights;
  }
  for (int r = 0; r < Rows; ++r) {
    Vector joined = sums[r][0];
    for (int j = 1; j < kVectors; ++j) joined += sums[r][j];
    float sum = sum_of<Vector>(joined);
    for (int32_t m = n; m < columns; ++m) sum += scaled[r * kChunk + m] * load_centred<float>(row + m, zero);
    dx[r * stride] += sum;
  }
}

// Rows [begin, end) of the weight.
template <class Element>
void dx_slice(const LinearRows& rows, int32_t out, const Element* w, const float* scale, float zero, bool accumulate,
              int64_t begin, int64_t end) {
  constexpr int64_t kAhead = 1;
  alignas(64) float scaled[kMostLinearRows * kChunk];
  for (int r = 0; r < rows.count && !accumulate; ++r)
    std::fill(rows.to + r * rows.stride + begin, rows.to + r * rows.stride + end, 0.0f);
  for (int32_t n0 = 0; n0 < out; n0 += kChunk) {
    const int32_t columns = std::min(kChunk, out - n0);
    for (int r = 0; r < rows.count; ++r) {
      const float* dy = rows.from + r * rows.stride + n0;
      for (int32_t n = 0; n < columns; ++n) scaled[r * kChunk + n] = scale ? dy[n] * scale[n0 + n] : dy[n];
    }
    for (int64_t k = begin; k < end; ++k) {
      const Element* row = w + k * out + n0;
      prefetch(row + kAhead * out, columns);
      some_at_a_time(rows.count, [&]<int Rows>(int32_t first) {
        add_dots<Rows>(scaled + first * kChunk, row, columns, zero, rows.to + first * rows.stride + k, rows.stride);
      });
    }
  }
}

template <class Byte>
Byte* mask_of(Byte* mask, const LinearRows& rows, int32_t row) {
  return mask ? mask + row * rows.stride * static_cast<int64_t>(sizeof(float)) : nullptr;
}

}  // namespace

void linear_forward(const LinearRows& rows, int32_t in, int32_t out, const Weight& w, const Epilogue& epilogue) {
  const float* scale = w.i8 ? w.scale : nullptr;
  const int least = static_cast<int>(kWorthAThread / (int64_t{in} * 4 * kLanes) + 1);
  with_elements(w, [&](auto elements) {
    parallel(Slices(out, 4 * kLanes, least), [&](int64_t begin, int64_t end) {
      forward_slice(rows, in, out, elements, scale, w.zero, epilogue, begin, end);
    });
  });
  for (int32_t row = 0; row < rows.count; ++row) {
    Epilogue of_row = epilogue;
    of_row.mask = mask_of(epilogue.mask, rows, row);
    Finish{of_row}(rows.to + row * rows.stride, 0, 1, out);
  }
}

void linear_dx(const LinearRows& rows, int32_t in, int32_t out, const Weight& w, const GradientEpilogue& epilogue) {
  const float* scale = w.i8 ? w.scale : nullptr;
  const int least = static_cast<int>(kWorthAThread / (int64_t{out} * 16) + 1);
  with_elements(w, [&](auto elements) {
    parallel(Slices(in, 16, least), [&](int64_t begin, int64_t end) {
      dx_slice(rows, out, elements, scale, w.zero, epilogue.accumulate, begin, end);
    });
  });
  for (int32_t row = 0; row < rows.count; ++row) {
    GradientEpilogue of_row = epilogue;
    of_row.mask = mask_of(epilogue.mask, rows, row);
    Finish{of_row}(rows.to + row * rows.stride, 0, 1, in);
  }
}

}  // namespace tinytl
