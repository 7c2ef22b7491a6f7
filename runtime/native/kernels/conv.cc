// Grouped and dense convolutions as sums over taps of small products, kept in registers from tap to tap.
#include <algorithm>

#include "epilogue.h"
#include "gemm.h"
#include "parallel.h"

namespace tinytl {
namespace {

constexpr int kMaxTaps = 64;  // in one pass; larger kernels accumulate in memory
constexpr int64_t kOutside = INT64_MIN / 4;

// Stands in for pixels outside the map.
constexpr int32_t kMaxDepth = 1024;
alignas(64) const float kZeros[kMaxDepth] = {};

// Where the pixels of one map meet those of the other, in one dimension. The target's pixels fall into phases that share
// their taps: all of them in the forward pass, those of one remainder modulo the stride in the gradient.
struct Axis {
  int32_t source, target, kernel, stride, pad, dilation;
  bool backward;  // target: the input of the convolution, source: its output

  int32_t phases() const { return backward ? stride : 1; }
  int32_t pixels(int32_t phase) const { return (target - phase + phases() - 1) / phases(); }

  // A tap of a phase: its pixel t sees the source at t * step + offset.
  struct Tap {
    int32_t tap, step, offset;
  };
  // Of the taps [first, end), kMaxTaps at most.
  int taps(int32_t phase, int32_t first, int32_t end, Tap* to) const {
    int count = 0;
    for (int32_t tap = first; tap < end; ++tap) {
      const int32_t shift = tap * dilation - pad;
      if (!backward) {
        to[count++] = {tap, stride, shift};
      } else if ((phase - shift) % stride == 0) {
        to[count++] = {tap, 1, (phase - shift) / stride};
      }
    }
    return count;
  }
  // Steps of `floats` to the source pixels of a tile, or something very negative.
  void offsets(const Tap& tap, const int32_t* pixels, int count, int64_t floats, int64_t* to) const {
    for (int i = 0; i < count; ++i) {
      const int32_t from = pixels[i] * tap.step + tap.offset;
      to[i] = from >= 0 && from < source ? from * floats : kOutside;
    }
  }
};

// The forward pass and the input gradient: each pixel of the target gathers pixels of the source.
struct Gather {
  const float* source;
  float* target;
  Axis y, x;
  int32_t groups, depth, columns;  // a group's channels in the source and in the target
  const Weight* weight;
  bool backward;
  Epilogue epilogue;
  Finish finish;
};

// A panel packed for taps [tap0, tap1) and channels [k0, k0 + depth) of a group.
struct PackedTaps {
  int32_t group, n0, columns;
  int width;
  int32_t tap0, tap1, k0, depth;
  bool first, last, whole_depth;
};

constexpr int kPixelSlices = Slices::kMost;

// Where a slice of a phase's pixels begins, on whole tiles.
int64_t pixel_slice(int64_t pixels, int slice) {
  const int64_t tiles = (pixels + kTileRows - 1) / kTileRows;
  return std::min(tiles * slice / kPixelSlices * kTileRows, pixels);
}

// Slices [first_slice, end_slice) of the target's pixels, of each phase.
void gather_tiles(const Gather& g, const PackedTaps& packed, const TileOutput& output, int first_slice,
                  int end_slice) {
  const int64_t source_channels = int64_t{g.groups} * g.depth, target_channels = int64_t{g.groups} * g.columns;
  const float* source = g.source + int64_t{packed.group} * g.depth + packed.k0;
  float* target = g.target + int64_t{packed.group} * g.columns + packed.n0;
  const float* panels = panel_buffer();
  const int64_t tap_floats = int64_t{packed.depth} * packed.width;
  // A kernel row inside the map is one long run of floats when nothing lies between its pixels.
  const bool mergeable = !g.backward && g.groups == 1 && packed.whole_depth && packed.tap0 == 0 &&
                         packed.tap1 == g.y.kernel * g.x.kernel && g.y.dilation == 1 && g.x.dilation == 1;
  // The kernel's rows and columns that the packed taps lie in: of a row that is too long for one pass, a run.
  const int32_t row0 = packed.tap0 / g.x.kernel, row1 = (packed.tap1 - 1) / g.x.kernel + 1;
  const bool run = g.x.kernel > kMaxTaps;
  const int32_t column0 = run ? packed.tap0 % g.x.kernel : 0;
  const int32_t column1 = run ? column0 + packed.tap1 - packed.tap0 : g.x.kernel;
  for (int32_t phase = 0; phase < g.y.phases() * g.x.phases(); ++phase) {
    const int32_t phase_y = phase / g.x.phases(), phase_x = phase % g.x.phases();
    const int32_t rows = g.y.pixels(phase_y), width = g.x.pixels(phase_x);
    Axis::Tap taps_y[kMaxTaps], taps_x[kMaxTaps];
    const int count_y = g.y.taps(phase_y, row0, row1, taps_y), count_x = g.x.taps(phase_x, column0, column1, taps_x);
    if (rows * width == 0) continue;
    const int64_t end = pixel_slice(rows * width, end_slice);
    int64_t pixel = pixel_slice(rows * width, first_slice);
    auto row = static_cast<int32_t>(pixel / width), column = static_cast<int32_t>(pixel % width);
    while (pixel < end) {
      const int64_t left = end - pixel;
      const int tile_rows = left > kHalfTileRows ? kTileRows : kHalfTileRows;
      int32_t ys[kTileRows], xs[kTileRows];
      float* c_rows[kTileRows];
      for (int i = 0; i < tile_rows; ++i) {
        ys[i] = row;
        xs[i] = column;
        const int64_t y = phase_y + row * g.y.phases(), x = phase_x + column * g.x.phases();
        c_rows[i] = target + (y * g.x.target + x) * target_channels;
        if (i + 1 >= left) continue;  // a last tile repeats the last pixel, to the same effect
        if (++column == width) {
          column = 0;
          ++row;
        }
      }
      pixel += tile_rows;
      // Pixels of one row whose windows lie inside the map.
      const int last = tile_rows - 1, first_y = ys[0] * g.y.stride - g.y.pad;
      const bool merged = mergeable && ys[0] == ys[last] && first_y >= 0 && first_y + g.y.kernel <= g.y.source &&
                          xs[0] * g.x.stride >= g.x.pad &&
                          xs[last] * g.x.stride - g.x.pad + g.x.kernel <= g.x.source;
      const float* a_rows[kMaxTaps * kTileRows];
      const float* b_taps[kMaxTaps];
      int segments = 0;
      if (merged) {
        for (; segments < g.y.kernel; ++segments) {
          const float* from = source + int64_t{first_y + segments} * g.x.source * source_channels;
          for (int i = 0; i < tile_rows; ++i) {
            a_rows[segments * tile_rows + i] = from + (xs[i] * g.x.stride - g.x.pad) * source_channels;
          }
          b_taps[segments] = panels + segments * g.x.kernel * tap_floats;
        }
      } else {
        int64_t row_offsets[kMaxTaps][kTileRows], column_offsets[kMaxTaps][kTileRows];
        for (int y = 0; y < count_y; ++y) {
          g.y.offsets(taps_y[y], ys, tile_rows, g.x.source * source_channels, row_offsets[y]);
        }
        for (int x = 0; x < count_x; ++x) g.x.offsets(taps_x[x], xs, tile_rows, source_channels, column_offsets[x]);
        for (int y = 0; y < count_y; ++y) {
          for (int x = 0; x < count_x; ++x) {
            const int32_t tap = taps_y[y].tap * g.x.kernel + taps_x[x].tap;
            if (tap < packed.tap0 || tap >= packed.tap1) continue;
            int64_t any = -1;  // its sign tells
            const float** a = a_rows + segments * tile_rows;
            for (int i = 0; i < tile_rows; ++i) {
              const int64_t offset = row_offsets[y][i] + column_offsets[x][i];
              any &= offset;
              a[i] = offset < 0 ? kZeros : source + offset;
            }
            if (any >= 0) b_taps[segments++] = panels + (tap - packed.tap0) * tap_floats;
          }
        }
      }
      multiply_tile(tile_rows, packed.width, a_rows, b_taps, segments,
                    merged ? packed.depth * g.x.kernel : packed.depth, c_rows, 0, packed.columns, output);
    }
  }
}

void gather_share(const Gather& g, int first, int end) {
  const int32_t taps = g.y.kernel * g.x.kernel;
  const int32_t depth_step = std::min({g.depth, kMaxDepth, kPanelDepth});
  const int32_t tap_step =
      depth_step < g.depth ? 1 : std::clamp<int32_t>(kPanelDepth / std::max(depth_step, 1), 1, kMaxTaps);
  for (int32_t group = 0; group < g.groups; ++group) {
    for (int32_t n0 = 0; n0 < g.columns;) {
      PackedTaps packed{};
      packed.group = group;
      packed.n0 = n0;
      packed.width = panel_width(g.columns - n0);
      packed.columns = std::min<int32_t>(packed.width, g.columns - n0);
      for (packed.tap0 = 0; packed.tap0 < taps; packed.tap0 = packed.tap1) {
        packed.tap1 = std::min(packed.tap0 + tap_step, taps);
        if (g.x.kernel > kMaxTaps) packed.tap1 = std::min(packed.tap1, (packed.tap0 / g.x.kernel + 1) * g.x.kernel);
        for (packed.k0 = 0; packed.k0 < g.depth; packed.k0 += depth_step) {
          packed.depth = std::min(depth_step, g.depth - packed.k0);
          packed.whole_depth = packed.depth == g.depth;
          packed.first = packed.tap0 == 0 && packed.k0 == 0;
          packed.last = packed.tap1 == taps && packed.k0 + packed.depth == g.depth;
          for (int32_t tap = packed.tap0; tap < packed.tap1; ++tap) {
            const int64_t block = (int64_t{tap} * g.groups + group) * g.depth * g.columns;
            const int64_t out_channels = g.backward ? g.depth : g.columns;
            const MatrixSource source{.weight = *g.weight, .stride = out_channels, .transposed = g.backward,
                                      .scale = g.weight->i8 ? g.weight->scale + group * out_channels : nullptr,
                                      .first = block};
            pack_panel(source, packed.k0, packed.depth, n0, packed.columns, packed.width,
                       panel_buffer() + int64_t{tap - packed.tap0} * packed.depth * packed.width);
          }
          PanelBias bias;
          bias.fill(packed.last ? g.epilogue.bias : nullptr, group * g.columns + n0, packed.columns);
          const Bounds bounds = packed.last ? g.epilogue.bounds : Bounds{};
          gather_tiles(g, packed, TileOutput{g.epilogue.accumulate || !packed.first, bias.values, bounds}, first, end);
        }
      }
      n0 += packed.columns;
    }
  }
}

void gather(const Gather& g) {
  const int64_t pixels = int64_t{g.y.target} * g.x.target;
  parallel_shares(kPixelSlices, [&](int first, int end) { gather_share(g, first, end); });
  const SlicedFinish sliced(g.finish, g.groups * g.columns, 1, pixels, kTileRows);
  parallel(sliced.slices().count(), [&](int slice) {
    sliced(slice, g.target, sliced.slices().begin(slice), sliced.slices().end(slice));
  });
}

}  // namespace

void conv_forward(const float* x, float* y, const Geometry& g, const Weight& w, const Epilogue& epilogue) {
  gather({.source = x, .target = y,
          .y = {g.in_height, g.out_height, g.kernel_height, g.stride_height, g.pad_top, g.dilation_height, false},
          .x = {g.in_width, g.out_width, g.kernel_width, g.stride_width, g.pad_left, g.dilation_width, false}, .groups = g.groups,
          .depth = g.in_channels / g.groups, .columns = g.out_channels / g.groups, .weight = &w, .backward = false,
          .epilogue = epilogue, .finish = Finish(epilogue)});
}

void conv_dx(const float* dy, float* dx, const Geometry& g, const Weight& w, const GradientEpilogue& epilogue) {
  gather({.source = dy, .target = dx,
          .y = {g.out_height, g.in_height, g.kernel_height, g.stride_height, g.pad_top, g.dilation_height, true},
          .x = {g.out_width, g.in_width, g.kernel_width, g.stride_width, g.pad_left, g.dilation_width, true}, .groups = g.groups,
          .depth = g.out_channels / g.groups, .columns = g.in_channels / g.groups, .weight = &w, .backward = true,
          .epilogue = {.accumulate = epilogue.accumulate}, .finish = Finish(epilogue)});
}

void conv_dw(const float* x, const float* dy, float* dw, const Geometry& g) {
  constexpr int32_t kPixels = 256;  // of dy in one panel
  constexpr int kMaxSegments = 64;
  const int32_t depth = g.in_channels / g.groups, columns = g.out_channels / g.groups;
  const int32_t pixels = g.out_height * g.out_width;
  parallel_shares(g.kernel_height * g.kernel_width, [&](int first_tap, int end_tap) {
    for (int32_t group = 0; group < g.groups; ++group) {
      for (int32_t n0 = 0; n0 < columns;) {
        const int width = panel_width(columns - n0);
        const int32_t used = std::min<int32_t>(width, columns - n0);
        const MatrixSource source{.weight = {.f32 = dy + int64_t{group} * columns}, .stride = g.out_channels};
        for (int32_t p0 = 0; p0 < pixels; p0 += kPixels) {
          const int32_t p1 = std::min(p0 + kPixels, pixels);
          float* panel = panel_buffer();
          pack_panel(source, p0, p1 - p0, n0, used, width, panel);
          for (int tap = first_tap; tap < end_tap; ++tap) {
            const int32_t shift_y = tap / g.kernel_width * g.dilation_height - g.pad_top;
            const int32_t shift_x = tap % g.kernel_width * g.dilation_width - g.pad_left;
            // Output columns whose source column lies inside the map.
            const int32_t first = shift_x < 0 ? (-shift_x + g.stride_width - 1) / g.stride_width : 0;
            const int32_t end =
                g.in_width > shift_x ? std::min(g.out_width, (g.in_width - 1 - shift_x) / g.stride_width + 1) : 0;
            float* c = dw + (int64_t{tap} * g.groups + group) * depth * columns + n0;
            TransposedSegment segments[kMaxSegments];
            int count = 0;
            auto flush = [&] {
              multiply_transposed(segments, count, int64_t{g.stride_width} * g.in_channels, width, width, c, columns,
                                  depth, used);
              count = 0;
            };
            for (int32_t row = p0 / g.out_width; row <= (p1 - 1) / g.out_width; ++row) {
              const int32_t from_y = row * g.stride_height + shift_y;
              const int32_t x0 = std::max(first, p0 - row * g.out_width);
              const int32_t x1 = std::min(end, p1 - row * g.out_width);
              if (from_y < 0 || from_y >= g.in_height || x0 >= x1) continue;
              const int64_t from = int64_t{from_y} * g.in_width + x0 * g.stride_width + shift_x;
              segments[count++] = {x + from * g.in_channels + int64_t{group} * depth,
                                   panel + int64_t{row * g.out_width + x0 - p0} * width, x1 - x0};
              if (count == kMaxSegments) flush();
            }
            if (count > 0) flush();
          }
        }
        n0 += used;
      }
    }
  });
}

}  // namespace tinytl
