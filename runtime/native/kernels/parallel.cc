#include "parallel.h"

#include <atomic>
#include <exception>
#include <thread>
#include <utility>

namespace tinytl {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`, which `value`'s writer notifies of. Operators follow each other closely, so
// looking for a while costs less than sleeping at once; between steps the threads sleep.
template <class T>
T wait_for_other(const std::atomic<T>& value, T old) {
  constexpr int kLooks = 4000;
  for (int look = 0; look < kLooks; ++look) {
    const T now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

int g_threads = 1;
// Of the job at hand.
std::atomic<bool> g_failed{false};
std::exception_ptr g_failure;
// What threads look at while others write is on cache lines apart.
alignas(64) struct {
  ShareWork work;
  const void* context;
  int slices;
} g_job;
alignas(64) std::atomic<uint32_t> g_turn{0};  // counts the jobs that other threads have a share in
alignas(64) std::atomic<int> g_busy{0};       // of the other threads

void work_on_share(int thread) {
  const int64_t slices = g_job.slices;
  const auto first = static_cast<int>(slices * thread / g_threads);
  const auto beyond = static_cast<int>(slices * (thread + 1) / g_threads);
  if (first == beyond) return;
  try {
    g_job.work(g_job.context, first, beyond);
  } catch (...) {
    if (!g_failed.exchange(true)) g_failure = std::current_exception();
  }
}

void serve(int thread) {
  for (uint32_t turn = 0;;) {
    turn = wait_for_other(g_turn, turn);
    work_on_share(thread);
    if (g_busy.fetch_sub(1, std::memory_order_acq_rel) == 1) g_busy.notify_one();
  }
}

}  // namespace

void start_threads(int count) {
  // They serve as long as the process lives. Each must have been counted before the first turn.
  g_threads = count;
  for (int thread = 1; thread < count; ++thread) std::thread(serve, thread).detach();
}

void run_shares(int slices, ShareWork work, const void* context) {
  if (slices <= 1 || g_threads == 1) {
    if (slices > 0) work(context, 0, slices);
    return;
  }
  g_job = {work, context, slices};
  g_busy.store(g_threads - 1, std::memory_order_relaxed);
  g_turn.fetch_add(1, std::memory_order_release);
  g_turn.notify_all();
  work_on_share(0);
  for (int busy = g_busy.load(std::memory_order_acquire); busy != 0;) busy = wait_for_other(g_busy, busy);
  if (g_failed.exchange(false)) std::rethrow_exception(std::exchange(g_failure, nullptr));
}

}  // namespace tinytl
