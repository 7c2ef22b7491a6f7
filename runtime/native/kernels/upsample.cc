#include <algorithm>

#include "kernels.h"
#include "parallel.h"

namespace tinytl {
namespace {

// The two input coordinates that an output coordinate lies between, and its distance from the first.
struct Between {
  int32_t before, after;
  float distance;
};

Between between(int32_t at, int32_t in, int32_t out) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  const float position = std::max((static_cast<float>(at) + 0.5f) * scale - 0.5f, 0.0f);
  const int32_t before = std::min(static_cast<int32_t>(position), in - 1);
  return {before, std::min(before + 1, in - 1), position - static_cast<float>(before)};
}

}  // namespace

void upsample_forward(const float* x, float* y, const Geometry& g) {
  const int64_t channels = g.in_channels;
  parallel(Slices(g.out_height, 1), [&](int64_t begin, int64_t end) {
    float* to = y + begin * g.out_width * channels;
    for (auto oy = static_cast<int32_t>(begin); oy < end; ++oy) {
      const Between v = between(oy, g.in_height, g.out_height);
      const float* above = x + int64_t{v.before} * g.in_width * channels;
      const float* below = x + int64_t{v.after} * g.in_width * channels;
      for (int32_t ox = 0; ox < g.out_width; ++ox, to += channels) {
        const Between h = between(ox, g.in_width, g.out_width);
        const int64_t left = h.before * channels, right = h.after * channels;
        for (int64_t c = 0; c < channels; ++c) {
          const float top = above[left + c] + (above[right + c] - above[left + c]) * h.distance;
          const float bottom = below[left + c] + (below[right + c] - below[left + c]) * h.distance;
          to[c] = top + (bottom - top) * v.distance;
        }
      }
    }
  });
}

void upsample_dx(const float* dy, float* dx, const Geometry& g) {
  const int64_t channels = g.in_channels;
  parallel_channels(g.in_channels, [&](int32_t begin, int32_t end) {
    for (int64_t p = 0; p < int64_t{g.in_height} * g.in_width; ++p) {
      std::fill(dx + p * channels + begin, dx + p * channels + end, 0.0f);
    }
    const float* from = dy;
    for (int32_t oy = 0; oy < g.out_height; ++oy) {
      const Between v = between(oy, g.in_height, g.out_height);
      for (int32_t ox = 0; ox < g.out_width; ++ox, from += channels) {
        const Between h = between(ox, g.in_width, g.out_width);
        for (int corner = 0; corner < 4; ++corner) {
          const int32_t row = corner < 2 ? v.before : v.after, column = corner % 2 == 0 ? h.before : h.after;
          const float share_y = corner < 2 ? 1 - v.distance : v.distance;
          const float share = share_y * (corner % 2 == 0 ? 1 - h.distance : h.distance);
          float* to = dx + (int64_t{row} * g.in_width + column) * channels;
          for (int32_t c = begin; c < end; ++c) to[c] += from[c] * share;
        }
      }
    }
  });
}

}  // namespace tinytl
