#include "front.h"

#include <cerrno>
#include <cstring>

#include "answer_fronts.h"
#include "errors.h"
#include "report.h"
#include "train_front.h"
#include "write_all.h"

namespace tinytl {

std::unique_ptr<Front> front_of(const Job& job) {
  if (job.is_null("front")) return nullptr;
  const std::string command = job.text("command");
  if (command == "evaluate") return std::make_unique<EvaluateFront>(job);
  if (command == "predict") return std::make_unique<PredictFront>(job);
  return std::make_unique<TrainFront>(job);
}

int Front::failed(int exit_code, const char* message) {
  if (exit_code == kNobodyReads) return exit_code;
  const std::string line = std::string("tinytl-edge: ") + message + "\n";
  write_all(2, line.data(), line.size());
  return exit_code;
}

bool print(const std::string& text) {
  if (write_all(1, text.data(), text.size())) return true;
  if (errno == EPIPE) return false;
  fail(kStorage, "The output could not be written: %s.", std::strerror(errno));
}

}  // namespace tinytl
