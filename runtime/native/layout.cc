#include "layout.h"

namespace tinytl {
namespace {

// Calls visit(torch_index, engine_index) for every element.
template <typename Visit>
void for_each(const Parameter& p, Visit visit) {
  const auto& s = p.shape;
  switch (p.layout) {
    case Layout::kVector:
      for (int64_t i = 0; i < p.elements; ++i) visit(i, i);
      return;
    case Layout::kLinear:  // [out, in] -> [in, out]
      for (int64_t out = 0, i = 0; out < s[0]; ++out)
        for (int64_t in = 0; in < s[1]; ++in, ++i) visit(i, in * s[0] + out);
      return;
    case Layout::kDepthwise:  // [channel, 1, h, w] -> [h, w, channel]
      for (int64_t c = 0, i = 0; c < s[0]; ++c)
        for (int64_t tap = 0; tap < s[2] * s[3]; ++tap, ++i) visit(i, tap * s[0] + c);
      return;
    case Layout::kConv: {  // [group * out, in, h, w] -> [h, w, group, in, out]
      const int64_t out_in_group = s[0] / p.groups, taps = s[2] * s[3];
      int64_t i = 0;
      for (int64_t group = 0; group < p.groups; ++group)
        for (int64_t out = 0; out < out_in_group; ++out)
          for (int64_t in = 0; in < s[1]; ++in)
            for (int64_t tap = 0; tap < taps; ++tap, ++i)
              visit(i, ((tap * p.groups + group) * s[1] + in) * out_in_group + out);
      return;
    }
  }
}

}  // namespace

void to_torch(const Parameter& parameter, const float* engine, float* torch) {
  for_each(parameter, [&](int64_t t, int64_t e) { torch[t] = engine[e]; });
}

void from_torch(const Parameter& parameter, const float* torch, float* engine) {
  for_each(parameter, [&](int64_t t, int64_t e) { engine[e] = torch[t]; });
}

}  // namespace tinytl
