#include "layout.h"

#include <cmath>

#include "bfloat16.h"

namespace tinytl {
namespace {

// Calls visit(part, index in the part, index in the row) for every element of a row.
template <typename Visit>
void for_each(const Program& program, const Parameter& p, int64_t row, Visit visit) {
  const int64_t taps = p.layout == Layout::kConv || p.layout == Layout::kDepthwise ? p.shape[2] * p.shape[3] : 1;
  for (int32_t number = p.first_part; number < p.first_part + p.parts; ++number) {
    const Part& part = program.parts[static_cast<size_t>(number)];
    const bool by_output = part.axis == 0;
    if (by_output && (row < part.first || row >= part.first + part.count)) continue;
    const int64_t out = by_output ? row - part.first : row;
    const int64_t outputs = by_output ? part.count : p.shape[0];
    const int64_t inputs = p.layout == Layout::kVector ? 1 : by_output ? p.shape[1] : part.count;
    const int64_t first_input = by_output ? 0 : part.first;
    const int64_t group_outputs = outputs / p.groups, group = out / group_outputs, out_in_group = out % group_outputs;
    for (int64_t in = 0; in < inputs; ++in)
      for (int64_t tap = 0; tap < taps; ++tap)
        visit(part, ((tap * p.groups + group) * inputs + in) * group_outputs + out_in_group,
              (first_input + in) * taps + tap);
  }
}

}  // namespace

void get_row(const Program& program, const Parameter& parameter, int64_t row, float* values) {
  for_each(program, parameter, row, [&](const Part& part, int64_t at, int64_t to) {
    values[to] = part.trained.bf16 ? from_bfloat16(part.trained.bf16[at]) : part.trained.f32[at];
  });
}

void set_row(Program& program, const Parameter& parameter, int64_t row, const float* values) {
  for_each(program, parameter, row, [&](const Part& part, int64_t at, int64_t from) {
    if (part.trained.bf16) {
      part.trained.bf16[at] = to_bfloat16(values[from]);
    } else {
      part.trained.f32[at] = values[from];
    }
  });
}

bool all_finite(const Program& program) {
  for (const Part& part : program.parts) {
    if (!program.parameters[static_cast<size_t>(part.parameter)].trains()) continue;
    for (int64_t i = 0; i < part.elements; ++i)
      if (!std::isfinite(part.trained.bf16 ? from_bfloat16(part.trained.bf16[i]) : part.trained.f32[i])) return false;
  }
  return true;
}

}  // namespace tinytl
