// What `tinytl-edge evaluate` and `tinytl-edge predict` say, to the byte what tinytl_edge's command line says of a
// model file (runtime/answers.py; tests/test_one_process.py compares).
#pragma once

#include <string>
#include <vector>

#include "front.h"

namespace tinytl {

// The job's `front`: lines ("text" or "json") and classes.
class EvaluateFront : public Front {
 public:
  explicit EvaluateFront(const Job& job);
  bool hear(const char* kind, json::Writer& event) override;

 private:
  const bool json_;
  const std::vector<std::string> classes_;
};

// Beside these: images (their names, in the order of the data) and top (how many classes are shown).
class PredictFront : public Front {
 public:
  explicit PredictFront(const Job& job);
  bool hear(const char* kind, json::Writer& event) override;

 private:
  const bool json_, multi_label_;
  const std::vector<std::string> classes_, images_;
  const size_t top_;
  const double unknown_below_;  // the probability of the likeliest class
  size_t next_ = 0;
};

}  // namespace tinytl
