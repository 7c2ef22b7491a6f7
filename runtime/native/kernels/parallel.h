// The threads that share a kernel's work. What they compute does not depend on how many they are: a kernel's work falls
// into slices by its shape alone, and what slices sum is joined in their order.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tinytl {

// Lets `count` threads compute from now on, of which the caller is one; once, in front of all kernels. Throws
// std::system_error where the system has no room for them.
void start_threads(int count);

using ShareWork = void (*)(const void* context, int first, int end);
void run_shares(int slices, ShareWork work, const void* context);

// Calls work(first, end) on every thread with its share of [0, slices), neighbours on one thread, and returns when
// all are done; what one of them threw is thrown. Not to be called from within work.
template <class Work>
void parallel_shares(int slices, const Work& work) {
  run_shares(slices,
             [](const void* context, int first, int end) { (*static_cast<const Work*>(context))(first, end); },
             &work);
}

// Calls work(slice) for every slice in [0, slices).
template <class Work>
void parallel(int slices, const Work& work) {
  parallel_shares(slices, [&](int first, int end) {
    for (int slice = first; slice < end; ++slice) work(slice);
  });
}

// [0, items) in about equal slices of whole units, of which each has `min_units` or more; so many slices that two threads, or
// four where there are that many, get the same number.
class Slices {
 public:
  static constexpr int kMost = 16;

  Slices(int64_t items, int64_t unit, int min_units = 1, int most = kMost)
      : items_(items), unit_(unit), units_((items + unit - 1) / unit) {
    const auto wanted = static_cast<int>(std::min<int64_t>(units_ / min_units, most));
    count_ = wanted >= 4 ? wanted / 4 * 4 : wanted >= 2 ? 2 : std::min<int64_t>(units_, 1);
  }
  int count() const { return count_; }
  int64_t begin(int slice) const { return std::min(units_ * slice / count_ * unit_, items_); }
  int64_t end(int slice) const { return begin(slice + 1); }

 private:
  int64_t items_, unit_, units_;
  int count_;
};

// Calls work(begin, end) for every slice.
template <class Work>
void parallel(const Slices& slices, const Work& work) {
  parallel(slices.count(), [&](int slice) { work(slices.begin(slice), slices.end(slice)); });
}

// Elements of maps, that many at least to be worth another thread.
constexpr int64_t kElementsUnit = 4096;

// Calls work(begin, end) on every thread with its share of `channels`, in whole cache lines.
template <class Work>
void parallel_channels(int32_t channels, const Work& work) {
  const Slices slices(channels, 16, 1, channels);
  parallel_shares(slices.count(), [&](int first, int end) {
    work(static_cast<int32_t>(slices.begin(first)), static_cast<int32_t>(slices.begin(end)));
  });
}

// Convolutions to so few pixels are shared by channels: by rows each thread would have to make all of the weights ready
// for few multiplications.
constexpr int32_t kFewPixels = 64;

}  // namespace tinytl
