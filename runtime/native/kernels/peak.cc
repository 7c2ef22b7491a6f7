// What this core can do at most.
#include <ctime>

#include "kernels.h"
#include "simd.h"

namespace tinytl {

double peak_multiply_adds() {
  // As many independent sums as hide the latency of a multiply-add; the factors are opaque to the compiler.
  constexpr int kSums = 12;
  constexpr int64_t kRounds = 1 << 18;
  volatile float start = 0.5f;  // sums stay near 1: neither large nor denormal
  Vector factor = broadcast<Vector>(start), sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = broadcast<Vector>(start * static_cast<float>(i));
  double best = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int64_t round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + factor;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double seconds = static_cast<double>(end.tv_sec - begin.tv_sec) + 1e-9 * static_cast<double>(end.tv_nsec - begin.tv_nsec);
    const double rate = static_cast<double>(kRounds) * kSums * kLanes / seconds;
    if (rate > best) best = rate;
    volatile float sink = 0;
    for (int i = 0; i < kSums; ++i) sink = sink + sum_of<Vector>(sums[i]);
  }
  return best;
}

}  // namespace tinytl
