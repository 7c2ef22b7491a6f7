// What `tinytl-edge train` says and records.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "front.h"
#include "report.h"
#include "safetensors.h"

namespace tinytl {

class TrainFront : public Front {
 public:
  explicit TrainFront(const Job& job);

  bool hear(const char* kind, json::Writer& event) override;
  void tick() override;
  int failed(int exit_code, const char* message) override;

 private:
  void finish(json::Writer& event);
  bool pass_on(const std::string& line);
  void log(const std::string& line);
  void write_record(const char* status, const std::string& more);
  std::string above_plan(int64_t peak) const;

  const Job front_;
  const std::string run_;
  const bool json_;
  const double begin_;
  File events_;
  Report report_;
  std::vector<std::pair<float, int64_t>> curve_;  // seconds since the start, RSS
  int64_t looks_ = 0, keep_each_ = 1, first_pass_ = 0;
  double next_look_ = 0;
  bool is_read_ = true;  // by whoever stands behind standard output
};

}  // namespace tinytl
