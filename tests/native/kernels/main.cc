// Checks every kernel against a plain double-precision reference, with one thread and with three, which must give the
// same bits.
#include <utility>

#include "../../../runtime/native/kernels/parallel.h"
#include "testing.h"

namespace tinytl {
namespace {

void test_all() {
  g_random.seed(7);
  for (const auto test : {test_pointwise, test_convolutions, test_elementwise, test_activations, test_channels,
                          test_pools, test_resampling, test_norms, test_losses, test_optimizers, test_compression,
                          test_triangles}) {
    test();
  }
}

// A failure on any thread reaches the caller, and the next job runs.
void test_failing_work() {
  for (int failing = 0; failing < 3; ++failing) {
    ++g_cases;
    bool caught = false;
    try {
      parallel(3, [&](int slice) {
        if (slice == failing) throw failing;
      });
    } catch (int number) {
      caught = number == failing;
    }
    if (!caught) fail("failing work", "slice", size_t(failing), 0, 1);
  }
}

}  // namespace
}  // namespace tinytl

int main() {
  using namespace tinytl;
  test_all();
  const std::vector<uint64_t> alone = std::exchange(g_hashes, {});
  start_threads(3);
  test_all();
  test_failing_work();
  for (size_t i = 0; i < alone.size(); ++i) {
    if (g_hashes[i] != alone[i]) fail("three threads", "comparison", i, double(g_hashes[i]), double(alone[i]));
  }
  std::printf("%d checks, %d failures\n", g_cases, g_failures);
  return g_failures ? 1 : 0;
}

