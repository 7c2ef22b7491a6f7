#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>

#include "epilogue.h"
#include "simd.h"

namespace tinytl {
namespace {

#if defined(__AVX512F__)
// The bits of 32 clamped elements, which comparisons leave in a register of bits.
TINYTL_INLINE uint32_t mask_word(const float* y, const Bounds& bounds) {
  const __m512 low = _mm512_set1_ps(bounds.low), high = _mm512_set1_ps(bounds.high);
  const auto half = [&](const float* from) -> uint32_t {
    const __m512 v = _mm512_loadu_ps(from);
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(v, low, _CMP_GT_OQ), v, high, _CMP_LT_OQ);
  };
  return half(y) | half(y + 16) << 16;
}
#else
typedef VectorOf<kLanes>::Bits Bits;
typedef VectorOf<4>::Bits Bits4;

TINYTL_INLINE uint32_t or_of_lanes(Bits4 v) {
  typedef uint64_t Pair __attribute__((vector_size(16)));
  const Pair pair = reinterpret_cast<Pair>(v);
  const uint64_t half = pair[0] | pair[1];
  return static_cast<uint32_t>(half | half >> 32);
}
#if TINYTL_VECTOR_BYTES >= 32
TINYTL_INLINE uint32_t or_of_lanes(Bits v) {
  return or_of_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3) | __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
#endif

// The bits of 32 clamped elements: each comparison selects its own bit of an int, and one reduction joins them all.
TINYTL_INLINE uint32_t mask_word(const float* y, const Bounds& bounds) {
  const Vector low = broadcast<Vector>(bounds.low), high = broadcast<Vector>(bounds.high);
  Bits own_bit, joined{};
  for (int j = 0; j < kLanes; ++j) own_bit[j] = 1u << j;
#pragma GCC unroll 8
  for (int j = 0; j < 32; j += kLanes) {
    const Vector v = load<Vector>(y + j);
    joined |= reinterpret_cast<Bits>((v > low) & (v < high)) & (own_bit << j);
  }
  return or_of_lanes(joined);
}
#endif

// Writes the mask bits of elements [first, first + count), whose clamped values lie at y; a clamped value is
// strictly inside the bounds exactly when the value before was. Ranges must be written in ascending order: the bits of a
// byte above the last element are zeroed, those below the first are kept.
void store_mask(const float* y, int64_t first, int64_t count, const Bounds& bounds, uint8_t* mask) {
  int64_t i = 0;
  for (; i < count && (first + i) % 8 != 0; ++i) {
    const int bit = static_cast<int>((first + i) % 8);
    uint8_t& byte = mask[(first + i) / 8];
    const bool passes = y[i] > bounds.low && y[i] < bounds.high;
    byte = static_cast<uint8_t>((byte & ((1 << bit) - 1)) | (passes ? 1 << bit : 0));
  }
  uint8_t* to = mask + (first + i) / 8;
  for (; i + 32 <= count; i += 32, to += 4) {
    const uint32_t word = mask_word(y + i, bounds);
    std::memcpy(to, &word, 4);
  }
  float rest[32];
  std::fill(rest, rest + 32, bounds.low);  // at the edge: its bit is zero
  std::copy(y + i, y + count, rest);
  const uint32_t word = mask_word(rest, bounds);
  std::memcpy(to, &word, static_cast<size_t>((count - i + 7) / 8));
}

// The elements of a vector, or zero where their bit of the mask is; the first has bit 0 or, of 4 lanes, maybe bit 4.
template <class V>
TINYTL_INLINE V masked(V v, const uint8_t* mask, int first_bit) {
#if defined(__AVX512F__)
  if constexpr (lanes_of<V> == 16) {
    uint16_t bits;
    std::memcpy(&bits, mask, sizeof(bits));
    return reinterpret_cast<V>(_mm512_maskz_mov_ps(bits, reinterpret_cast<__m512>(v)));
  }
#endif
  using Bits = typename VectorOf<lanes_of<V>>::Bits;
  uint32_t bits = mask[0];
  if (lanes_of<V> > 8) bits |= static_cast<uint32_t>(mask[1]) << 8;
  Bits own_bit;
  for (int j = 0; j < lanes_of<V>; ++j) own_bit[j] = 1u << j;
  return ((Bits{} + (bits >> first_bit)) & own_bit) != 0 ? v : V{};
}

constexpr int kMaskStep = kLanes < 8 ? 8 : kLanes;

// dx[i] = dy[i], or zero where bit first + i of the mask is.
void mask_range(const float* dy, float* dx, const uint8_t* mask, int64_t first, int64_t count) {
  auto mask_slowly = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dx[i] = (mask[(first + i) / 8] >> ((first + i) % 8)) & 1 ? dy[i] : 0.0f;
  };
  int64_t i = std::min<int64_t>((8 - first % 8) % 8, count);
  mask_slowly(0, i);
  for (; i + kMaskStep <= count; i += kMaskStep) {
#pragma GCC unroll 2
    for (int j = 0; j < kMaskStep; j += kLanes) {
      store(dx + i + j, masked<Vector>(load<Vector>(dy + i + j), mask + (first + i) / 8, j));
    }
  }
  mask_slowly(i, count);
}

// Masks and sums a channel block of `count` pixels, of a map whose channels are a multiple of 8. The pointers are those
// of the block in the first pixel.
template <class V>
TINYTL_INLINE void mask_and_sum(float* dx, const uint8_t* mask, int first_bit, int64_t count, int64_t channels,
                                float* db) {
  V sums[2] = {};
  auto add_pixel = [&](V& sum) {
    const V v = masked<V>(load<V>(dx), mask, first_bit);
    store(dx, v);
    sum += v;
    dx += channels;
    mask += channels / 8;
  };
  for (; count >= 2; count -= 2) {
    add_pixel(sums[0]);
    add_pixel(sums[1]);
  }
  if (count) add_pixel(sums[0]);
  store(db, V(load<V>(db) + (sums[0] + sums[1])));
}

// Channels [begin, end), multiples of 8, of `count` pixels.
void mask_and_sum_columns(float* pixels, const uint8_t* mask, int64_t count, int64_t channels, float* db, int32_t begin,
                          int32_t end) {
  int32_t c = begin;
  for (; c + kLanes <= end; c += kLanes) {
    mask_and_sum<Vector>(pixels + c, mask + c / 8, c % 8, count, channels, db + c);
  }
  if (c < end) mask_and_sum<VectorOf<8>::Type>(pixels + c, mask + c / 8, 0, count, channels, db + c);
}

}  // namespace

void Finish::operator()(float* map, int64_t first, int64_t count, int32_t channels) const {
  const int64_t first_element = first * channels, elements = count * channels;
  float* from = map + first_element;
  if (written_mask_) store_mask(from, first_element, elements, bounds_, written_mask_);
  if (mask_ && db_ && channels % 8 == 0) {
    mask_and_sum_columns(from, mask_ + first_element / 8, count, channels, db_, 0, channels);
    return;
  }
  if (mask_) mask_range(from, from, mask_, first_element, elements);
  if (db_) bias_gradient(from, db_, static_cast<int32_t>(count), channels);
}

void Finish::columns(float* map, int64_t first, int64_t count, int32_t channels, int32_t begin, int32_t end) const {
  const int64_t first_element = first * channels;
  if (mask_ && db_) {
    mask_and_sum_columns(map + first_element, mask_ + first_element / 8, count, channels, db_, begin, end);
  }
  for (int64_t at = first_element + begin; at < first_element + count * channels; at += channels) {
    float* from = map + at;
    if (written_mask_) store_mask(from, at, end - begin, bounds_, written_mask_);
    if (mask_ && !db_) mask_range(from, from, mask_, at, end - begin);
    if (db_ && !mask_) bias_gradient(from, db_ + begin, 1, end - begin);
  }
}

namespace {

// Sums of db by slice. Few enough slices of many channels keep this small.
constexpr int64_t kPartialFloats = 8192;
alignas(64) float g_partial_sums[kPartialFloats];

int most_slices(int32_t channels) {
  return static_cast<int>(std::clamp<int64_t>(kPartialFloats / std::max(channels, 1), 1, Slices::kMost));
}

// Slices must not share a byte of a mask that they write.
int64_t whole_bytes(int64_t unit, int64_t elements_an_item) {
  while (unit * elements_an_item % 8 != 0) unit *= 2;
  return unit;
}

}  // namespace

SlicedFinish::SlicedFinish(const Finish& finish, int32_t channels, int64_t pixels, int64_t items, int64_t unit, int min_items)
    : finish_(finish), channels_(channels), pixels_(pixels),
      slices_(items, finish.written_mask_ ? whole_bytes(unit, pixels * channels) : unit, min_items,
              finish.db_ ? most_slices(channels) : Slices::kMost) {
  if (finish_.db_ && slices_.count() > 1)
    std::fill(g_partial_sums, g_partial_sums + int64_t{slices_.count()} * channels_, 0.0f);
}

SlicedFinish::~SlicedFinish() {
  if (!finish_.db_ || slices_.count() == 1) return;
  for (int slice = 0; slice < slices_.count(); ++slice)
    for (int32_t c = 0; c < channels_; ++c) finish_.db_[c] += g_partial_sums[int64_t{slice} * channels_ + c];
}

void SlicedFinish::operator()(int slice, float* map, int64_t begin, int64_t end) const {
  Finish own = finish_;
  if (finish_.db_ && slices_.count() > 1) own.db_ = g_partial_sums + int64_t{slice} * channels_;
  own(map, begin * pixels_, (end - begin) * pixels_, channels_);
}

void mask_gradient(const float* dy, float* dx, const uint8_t* mask, int64_t elements) {
  parallel(Slices(elements, kElementsUnit),
           [&](int64_t begin, int64_t end) { mask_range(dy + begin, dx + begin, mask, begin, end - begin); });
}

void bias_gradient(const float* dy, float* db, int32_t pixels, int32_t channels) {
  // Pixels in fours: fewer passes over db, and shorter chains of roundings.
  int32_t p = 0;
  for (; p + 4 <= pixels; p += 4, dy += 4 * int64_t{channels}) {
    const float *d0 = dy, *d1 = d0 + channels, *d2 = d1 + channels, *d3 = d2 + channels;
    for (int32_t c = 0; c < channels; ++c) db[c] += (d0[c] + d1[c]) + (d2[c] + d3[c]);
  }
  for (; p < pixels; ++p, dy += channels) {
    for (int32_t c = 0; c < channels; ++c) db[c] += dy[c];
  }
}

void add(const float* a, const float* b, float* y, int64_t elements) {
  parallel(Slices(elements, kElementsUnit), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = a[i] + b[i];
  });
}

}  // namespace tinytl
