// Images of none of the classes: how sure a classifier has to be of its likeliest class not to say "unknown".
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "json.h"

namespace tinytl {

// An answer: the probability of the likeliest class, and whether that is the right one.
struct Sure {
  float probability;
  bool right;
};

// The probability of the likeliest of classes.
double surest(const float* logits, int classes);

struct Unknown {
  double below = NAN;  // that probability; NAN where nothing tells it
  int64_t right = 0, right_rejected = 0;  // answers that it was found by
  int64_t wrong = 0, wrong_rejected = 0;
  int64_t junk = 0, junk_rejected = 0;  // grey and noisy images

  // The probability that rejects about a twentieth of right answers: as if their log-odds were normally distributed, as
  // wide as the half below their median. (Of a few dozen answers no twentieth can be counted.) Nothing where these are few.
  static Unknown of(const std::vector<Sure>& seen, int classes);
  bool known() const { return !std::isnan(below); }
};

// As a member of an object: an object, or null.
void write_unknown(json::Writer& out, const char* name, const Unknown& unknown);
Unknown read_unknown(const json::Value& object, const char* name);

// Images without anything on them: the first half grey, from black to white, the others noise.
constexpr int kJunk = 32;
void draw_junk(int number, size_t bytes, uint8_t* pixels);

}  // namespace tinytl
