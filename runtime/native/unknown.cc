#include "unknown.h"

#include <algorithm>
#include <cstring>

#include "sampling.h"

namespace tinytl {
namespace {

constexpr double kDeviations = 1.645;  // below the middle of a normal distribution lies all but a twentieth
constexpr double kSurest = 1 - 1e-6;
constexpr size_t kFew = 10;         // right answers
constexpr double kStep = 1000;      // thresholds are multiples of 1 / kStep

int64_t below(const std::vector<Sure>& seen, double threshold, bool right) {
  return std::count_if(seen.begin(), seen.end(), [&](const Sure& answer) {
    return answer.right == right && static_cast<double>(answer.probability) < threshold;
  });
}

}  // namespace

double surest(const float* logits, int classes) {
  const float highest = *std::max_element(logits, logits + classes);
  double sum = 0;
  for (int i = 0; i < classes; ++i) sum += std::exp(static_cast<double>(logits[i] - highest));
  return 1 / sum;
}

Unknown Unknown::of(const std::vector<Sure>& seen, int classes) {
  std::vector<double> right;  // log-odds
  for (const Sure& answer : seen) {
    const double probability = std::min(static_cast<double>(answer.probability), kSurest);
    if (answer.right) right.push_back(std::log(probability / (1 - probability)));
  }
  Unknown found;
  if (right.size() < kFew) return found;
  std::sort(right.begin(), right.end());
  const size_t half = right.size() / 2;
  const double middle = right[half];
  double squares = 0;
  for (size_t i = 0; i < half; ++i) squares += std::pow(right[i] - middle, 2);
  const double spread = std::sqrt(squares / static_cast<double>(half));
  const double threshold = std::floor(kStep / (1 + std::exp(kDeviations * spread - middle))) / kStep;
  if (threshold <= 1.0 / classes) return found;  // no answer is less sure
  found.below = threshold;
  found.right = static_cast<int64_t>(right.size());
  found.wrong = static_cast<int64_t>(seen.size() - right.size());
  found.right_rejected = tinytl::below(seen, threshold, true);
  found.wrong_rejected = tinytl::below(seen, threshold, false);
  return found;
}

void write_unknown(json::Writer& out, const char* name, const Unknown& unknown) {
  if (!unknown.known()) {
    out.null(name);
    return;
  }
  out.begin_object(name)
      .number("below", unknown.below)
      .integer("right", unknown.right)
      .integer("right_rejected", unknown.right_rejected)
      .integer("wrong", unknown.wrong)
      .integer("wrong_rejected", unknown.wrong_rejected)
      .integer("junk", unknown.junk)
      .integer("junk_rejected", unknown.junk_rejected)
      .end_object();
}

Unknown read_unknown(const json::Value& object, const char* name) {
  Unknown found;
  const json::Value* told = object.find(name);
  const json::Value* below = told ? told->find("below") : nullptr;
  if (!below || !below->is_number()) return found;
  const auto integer = [&](const char* member) {
    const json::Value* value = told->find(member);
    return value && value->is_integer() ? value->integer() : 0;
  };
  found.below = below->number();
  found.right = integer("right");
  found.right_rejected = integer("right_rejected");
  found.wrong = integer("wrong");
  found.wrong_rejected = integer("wrong_rejected");
  found.junk = integer("junk");
  found.junk_rejected = integer("junk_rejected");
  return found;
}

void draw_junk(int number, size_t bytes, uint8_t* pixels) {
  constexpr int half = kJunk / 2;
  if (number < half) {
    std::memset(pixels, number * 255 / (half - 1), bytes);
    return;
  }
  const uint64_t stream = key({static_cast<uint64_t>(number)});
  for (size_t i = 0; i < bytes; ++i) pixels[i] = static_cast<uint8_t>(draw(stream, i) >> 56);
}

}  // namespace tinytl
