// A parameter's values as PyTorch has them, from the engine's layout and back; see export/step/ir.py.
#pragma once

#include "program.h"

namespace tinytl {

// `torch` and `engine` hold parameter.elements floats each.
void to_torch(const Parameter& parameter, const float* engine, float* torch);
void from_torch(const Parameter& parameter, const float* torch, float* engine);

}  // namespace tinytl
