// Rows of a parameter as PyTorch has them, from the engine's layout and parts and back; see export/step/ir.py.
#pragma once

#include "program.h"

namespace tinytl {

// A row is what lies at one index of PyTorch's first axis: elements / shape[0] floats.
void get_row(const Program& program, const Parameter& parameter, int64_t row, float* values);
void set_row(Program& program, const Parameter& parameter, int64_t row, const float* values);

// Are all trainables numbers?
bool all_finite(const Program& program);

}  // namespace tinytl
