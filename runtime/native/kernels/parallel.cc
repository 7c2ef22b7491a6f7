#include "parallel.h"

#include <sched.h>

#include <atomic>
#include <exception>
#include <thread>
#include <utility>

// Every job has a share for each thread. A thread takes its own first, then those that nobody has begun: where other
// programs keep a thread from its core, the rest go on without it.
namespace tinytl {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  asm volatile("yield");
#endif
}

// What threads look at while others write is on cache lines apart.
struct alignas(64) Share {
  std::atomic<uint32_t> turn{0};  // the last job in which somebody took it
};

int g_threads = 1;
Share* g_shares = nullptr;  // never given back, as the threads never end
alignas(64) struct {
  ShareWork work;
  const void* context;
  int slices;
} g_job;
alignas(64) std::atomic<uint32_t> g_turn{0};  // counts the jobs that other threads have a share in
alignas(64) std::atomic<int> g_left{0};       // shares that are not done
std::atomic<bool> g_failed{false};
std::exception_ptr g_failure;

void work_on(int share) {
  const int64_t slices = g_job.slices;
  const auto first = static_cast<int>(slices * share / g_threads);
  const auto end = static_cast<int>(slices * (share + 1) / g_threads);
  try {
    if (first < end) g_job.work(g_job.context, first, end);
  } catch (...) {
    if (!g_failed.exchange(true)) g_failure = std::current_exception();
  }
  if (g_left.fetch_sub(1, std::memory_order_acq_rel) == 1) g_left.notify_one();
}

// Returns how many shares of this job the thread took. A job that is over has none left, and one that has some is not
// over before they are done: so what is read of it is still there.
int take_shares(int thread, uint32_t turn) {
  int taken = 0;
  for (int i = 0; i < g_threads; ++i) {
    const int share = (thread + i) % g_threads;
    uint32_t before = turn - 1;
    if (!g_shares[share].turn.compare_exchange_strong(before, turn, std::memory_order_acq_rel)) continue;
    work_on(share);
    ++taken;
  }
  return taken;
}

// Operators follow each other closely, so looking for a while costs less than sleeping at once; who else could run
// on this core in the meantime does. Between steps the threads sleep.
void serve(int thread) {
  constexpr int kLooks = 100, kYields = 40;
  for (uint32_t done = 0;;) {
    uint32_t turn = done;
    for (int look = 0; look < kLooks * kYields && turn == done; ++look) {
      pause();
      if (look % kLooks == kLooks - 1) sched_yield();
      turn = g_turn.load(std::memory_order_acquire);
    }
    if (turn == done) {
      g_turn.wait(done, std::memory_order_acquire);
      turn = g_turn.load(std::memory_order_acquire);
    }
    take_shares(thread, turn);
    done = turn;
  }
}

void wait_for_others() {
  constexpr int kLooks = 1000;
  for (int look = 0; look < kLooks; ++look) {
    if (g_left.load(std::memory_order_acquire) == 0) return;
    pause();
  }
  for (int left = g_left.load(std::memory_order_acquire); left != 0; left = g_left.load(std::memory_order_acquire)) {
    g_left.wait(left, std::memory_order_acquire);
  }
}

}  // namespace

void start_threads(int count) {
  g_threads = count;
  g_shares = new Share[static_cast<size_t>(count)];
  for (int thread = 1; thread < count; ++thread) std::thread(serve, thread).detach();
}

void run_shares(int slices, ShareWork work, const void* context) {
  if (slices <= 1 || g_threads == 1) {
    if (slices > 0) work(context, 0, slices);
    return;
  }
  static int alone = 0;  // jobs in a row in which nobody helped: then it is not worth to wake them each time
  constexpr int kAlone = 16, kRarely = 64;
  g_job = {work, context, slices};
  g_left.store(g_threads, std::memory_order_relaxed);
  const uint32_t turn = g_turn.load(std::memory_order_relaxed) + 1;
  g_turn.store(turn, std::memory_order_release);
  if (alone < kAlone || turn % kRarely == 0) g_turn.notify_all();
  alone = take_shares(0, turn) == g_threads ? alone + 1 : 0;
  wait_for_others();
  if (g_failed.exchange(false)) std::rethrow_exception(std::exchange(g_failure, nullptr));
}

}  // namespace tinytl
