// Tests of the trainer's input and output. A plain program: it prints what failed and ends with 1, or with 0.
//
//   io_test                                           runs all tests, on files in a new folder under $TMPDIR
//   io_test sample SEED EPOCH COUNT HEIGHT WIDTH TO_HEIGHT TO_WIDTH CHANNELS   prints what sampling makes of a stored
//       image for an input of TO_HEIGHT x TO_WIDTH, for tests/test_native_sampling.py
//   io_test tensors FILE                              prints the checked header, or the exit code and the sentence
//   io_test dataset FILE                              the same for a dataset, with CRC-32s of labels and images
//   io_test copy FROM TO                              reads a safetensors file and writes it again
//   io_test report LIVE COLUMNS                       prints what a person reads of the events on standard input
//   io_test json                                      reads JSON on standard input, prints it again, or "refused"

#include <csignal>
#include <cstdlib>
#include <string>
#include <unistd.h>

#include "testing.h"

namespace tinytl {
namespace {

int run_tests() {
  const char* temporary = std::getenv("TMPDIR");
  g_folder = std::string(temporary == nullptr ? "/tmp" : temporary) + "/io_test.XXXXXX";
  if (::mkdtemp(g_folder.data()) == nullptr) std::abort();
  test_json();
  test_tensors();
  test_datasets();
  test_random_damage();
  test_sampling();
  if (std::system(("rm -r '" + g_folder + "'").c_str()) != 0) ++g_failed;
  std::printf(g_failed == 0 ? "all is well\n" : "%d checks failed\n", g_failed);
  return g_failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace tinytl

int main(int argc, char** argv) {
  using namespace tinytl;
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (argc == 1) return run_tests();
    if (mode == "sample" && argc == 10) return print_sample(argv + 2);
    if (mode == "tensors" && argc == 3) return print_tensors(argv[2]);
    if (mode == "dataset" && argc == 3) return print_dataset(argv[2]);
    if (mode == "copy" && argc == 4) return copy_tensors(argv[2], argv[3]);
    if (mode == "report" && argc == 4) return print_report(argv[2][0] == '1', std::atoi(argv[3]));
    if (mode == "json" && argc == 2) return print_json();
    fail(kUsage, "See the first lines of tests/native/io/main.cc.");
  } catch (const Failure& failure) {
    std::printf("%d %s\n", failure.exit_code, failure.message.c_str());
    return failure.exit_code;
  }
}
