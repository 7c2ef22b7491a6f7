// Grouped and dense convolutions as sums over taps of small products, kept in registers from tap to tap.
#include <algorithm>

#include "epilogue.h"
#include "gemm.h"

namespace tinytl {
namespace {

constexpr int kMaxTaps = 64;  // in one pass; larger kernels accumulate in memory. A kernel is at most this wide.
constexpr int64_t kOutside = INT64_MIN / 4;

// Stands in for pixels outside the map.
constexpr int32_t kMaxDepth = 1024;
alignas(64) const float kZeros[kMaxDepth] = {};

// Where the pixels of one map meet those of the other, in one dimension.
struct Axis {
  int32_t source, target, kernel, stride, pad;
  bool backward;  // target: the input of the convolution, source: its output

  // The source coordinate that target coordinate `at` sees through `tap`, or -1.
  int32_t source_of(int32_t at, int32_t tap) const {
    int32_t from = backward ? at + pad - tap : at * stride - pad + tap;
    if (backward) {
      if (from < 0 || from % stride != 0) return -1;
      from /= stride;
    }
    return from >= 0 && from < source ? from : -1;
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
};

// A panel packed for taps [tap0, tap1) and channels [k0, k0 + depth) of a group.
struct PackedTaps {
  int32_t group, n0, columns;
  int width;
  int32_t tap0, tap1, k0, depth;
  bool first, last, whole_depth;
};

void gather_tiles(const Gather& g, const PackedTaps& packed, const TileOutput& output) {
  const int64_t source_channels = int64_t{g.groups} * g.depth, target_channels = int64_t{g.groups} * g.columns;
  const float* source = g.source + int64_t{packed.group} * g.depth + packed.k0;
  float* target = g.target + int64_t{packed.group} * g.columns + packed.n0;
  const float* panels = panel_buffer();
  const int64_t tap_floats = int64_t{packed.depth} * packed.width;
  // A kernel row inside the map is one long run of floats when nothing lies between its pixels.
  const bool mergeable = !g.backward && g.groups == 1 && packed.whole_depth && packed.tap0 == 0 &&
                         packed.tap1 == g.y.kernel * g.x.kernel;
  // Gradient pixels of one phase of the stride share their taps, so a tile never mixes phases.
  const int32_t phases_y = g.backward ? g.y.stride : 1, phases_x = g.backward ? g.x.stride : 1;
  for (int32_t phase = 0; phase < phases_y * phases_x; ++phase) {
    const int32_t phase_y = phase / phases_x, phase_x = phase % phases_x;
    const int32_t rows = (g.y.target - phase_y + phases_y - 1) / phases_y;
    const int32_t width = (g.x.target - phase_x + phases_x - 1) / phases_x;
    if (rows <= 0 || width <= 0) continue;
    int32_t row = 0, column = 0;
    for (int32_t pixel = 0; pixel < rows * width;) {
      const int32_t left = rows * width - pixel;
      const int tile_rows = left > kHalfTileRows ? kTileRows : kHalfTileRows;
      const int used = std::min<int32_t>(tile_rows, left);
      float unwanted[kPanelWidth] = {};
      int32_t ys[kTileRows], xs[kTileRows];
      float* c_rows[kTileRows];
      for (int i = 0; i < tile_rows; ++i) {
        ys[i] = phase_y + row * phases_y;
        xs[i] = phase_x + column * phases_x;
        c_rows[i] = i < used ? target + (int64_t{ys[i]} * g.x.target + xs[i]) * target_channels : unwanted;
        if (i + 1 < used && ++column == width) {
          column = 0;
          ++row;
        }
      }
      if (++column == width) {
        column = 0;
        ++row;
      }
      const float* a_rows[kMaxTaps * kTileRows];
      const float* b_taps[kMaxTaps];
      int segments = 0;
      bool merged = mergeable;
      for (int i = 0; merged && i < tile_rows; ++i) {
        const int32_t from = xs[i] * g.x.stride - g.x.pad;
        merged = from >= 0 && from + g.x.kernel <= g.x.source;
      }
      if (merged) {
        for (int32_t tap_y = 0; tap_y < g.y.kernel; ++tap_y) {
          bool inside = true;
          const float** a = a_rows + segments * tile_rows;
          for (int i = 0; i < tile_rows; ++i) {
            const int32_t from_y = g.y.source_of(ys[i], tap_y), from_x = xs[i] * g.x.stride - g.x.pad;
            inside &= from_y >= 0;
            a[i] = source + (int64_t{from_y} * g.x.source + from_x) * source_channels;
          }
          if (!inside) {
            merged = false;
            break;
          }
          b_taps[segments++] = panels + tap_y * g.x.kernel * tap_floats;
        }
      }
      if (!merged) {
        segments = 0;
        // Where each pixel finds its source, by row and by column of the kernel: the sum is negative outside the map.
        int64_t row_offsets[kMaxTaps][kTileRows], column_offsets[kMaxTaps][kTileRows];
        const int32_t tap_y0 = packed.tap0 / g.x.kernel, tap_y1 = (packed.tap1 - 1) / g.x.kernel + 1;
        for (int32_t tap_y = tap_y0; tap_y < tap_y1; ++tap_y) {
          for (int i = 0; i < tile_rows; ++i) {
            const int32_t from = g.y.source_of(ys[i], tap_y);
            row_offsets[tap_y - tap_y0][i] = from < 0 ? kOutside : from * g.x.source * source_channels;
          }
        }
        for (int32_t tap_x = 0; tap_x < g.x.kernel; ++tap_x) {
          for (int i = 0; i < tile_rows; ++i) {
            const int32_t from = g.x.source_of(xs[i], tap_x);
            column_offsets[tap_x][i] = from < 0 ? kOutside : from * source_channels;
          }
        }
        for (int32_t tap = packed.tap0; tap < packed.tap1; ++tap) {
          const int64_t* row_offset = row_offsets[tap / g.x.kernel - tap_y0];
          const int64_t* column_offset = column_offsets[tap % g.x.kernel];
          int64_t any = -1;  // its sign tells
          const float** a = a_rows + segments * tile_rows;
          for (int i = 0; i < tile_rows; ++i) {
            const int64_t offset = row_offset[i] + column_offset[i];
            any &= offset;
            a[i] = offset < 0 ? kZeros : source + offset;
          }
          if (any >= 0) b_taps[segments++] = panels + (tap - packed.tap0) * tap_floats;
        }
      }
      multiply_tile(tile_rows, packed.width, a_rows, b_taps, segments,
                    merged ? packed.depth * g.x.kernel : packed.depth, c_rows, packed.columns, output);
      pixel += used;
    }
  }
}

void gather(const Gather& g) {
  const int32_t taps = g.y.kernel * g.x.kernel;
  const int32_t depth_step = std::min({g.depth, kMaxDepth, kPanelDepth});
  const int32_t tap_step =
      depth_step < g.depth ? 1 : std::clamp<int32_t>(kPanelDepth / std::max(depth_step, 1), 1, kMaxTaps);
  const Bounds none, bounds = bounds_of(g.epilogue.activation);
  const int32_t out_channels = g.groups * (g.backward ? g.depth : g.columns);
  for (int32_t group = 0; group < g.groups; ++group) {
    for (int32_t n0 = 0; n0 < g.columns;) {
      PackedTaps packed{};
      packed.group = group;
      packed.n0 = n0;
      packed.width = panel_width(g.columns - n0);
      packed.columns = std::min<int32_t>(packed.width, g.columns - n0);
      for (packed.tap0 = 0; packed.tap0 < taps; packed.tap0 = packed.tap1) {
        packed.tap1 = std::min(packed.tap0 + tap_step, taps);
        for (packed.k0 = 0; packed.k0 < g.depth; packed.k0 += depth_step) {
          packed.depth = std::min(depth_step, g.depth - packed.k0);
          packed.whole_depth = packed.depth == g.depth;
          packed.first = packed.tap0 == 0 && packed.k0 == 0;
          packed.last = packed.tap1 == taps && packed.k0 + packed.depth == g.depth;
          for (int32_t tap = packed.tap0; tap < packed.tap1; ++tap) {
            const int64_t block = (int64_t{tap} * g.groups + group) * g.depth * g.columns;
            MatrixSource source;
            source.f32 = g.weight->f32 ? g.weight->f32 + block : nullptr;
            source.i8 = g.weight->f32 ? nullptr : g.weight->i8 + block;
            source.transposed = g.backward;
            source.stride = g.backward ? g.depth : g.columns;
            if (g.backward && source.i8) source.k_scale = g.weight->scale + int64_t{group} * g.depth;
            pack_panel(source, packed.k0, packed.depth, n0, packed.columns, packed.width,
                       panel_buffer() + int64_t{tap - packed.tap0} * packed.depth * packed.width);
          }
          PanelEpilogue epilogue;
          const bool scaled = packed.last && !g.backward && !g.weight->f32;
          epilogue.fill(scaled ? g.weight->scale : nullptr, packed.last ? g.epilogue.bias : nullptr,
                        group * g.columns + n0, packed.columns);
          gather_tiles(g, packed,
                       TileOutput{!packed.first, epilogue.scale, epilogue.bias, packed.last ? bounds.low : none.low,
                                  packed.last ? bounds.high : none.high});
        }
      }
      n0 += packed.columns;
    }
  }
  if (g.epilogue.mask) {
    store_mask(g.target, 0, int64_t{g.y.target} * g.x.target * out_channels, g.epilogue.activation, g.epilogue.mask);
  }
}

}  // namespace

void conv_forward(const float* x, float* y, const Geometry& g, const Weight& w, const Epilogue& epilogue) {
  gather({.source = x, .target = y,
          .y = {g.in_height, g.out_height, g.kernel_height, g.stride_height, g.pad_top, false},
          .x = {g.in_width, g.out_width, g.kernel_width, g.stride_width, g.pad_left, false}, .groups = g.groups,
          .depth = g.in_channels / g.groups, .columns = g.out_channels / g.groups, .weight = &w, .backward = false,
          .epilogue = epilogue});
}

void conv_dx(const float* dy, float* dx, const Geometry& g, const Weight& w) {
  gather({.source = dy, .target = dx,
          .y = {g.out_height, g.in_height, g.kernel_height, g.stride_height, g.pad_top, true},
          .x = {g.out_width, g.in_width, g.kernel_width, g.stride_width, g.pad_left, true}, .groups = g.groups,
          .depth = g.out_channels / g.groups, .columns = g.in_channels / g.groups, .weight = &w, .backward = true,
          .epilogue = {}});
}

void conv_dw(const float* x, const float* dy, float* dw, const Geometry& g) {
  constexpr int32_t kPixels = 256;  // of dy in one panel
  constexpr int kMaxSegments = 64;
  const int32_t depth = g.in_channels / g.groups, columns = g.out_channels / g.groups;
  const int32_t pixels = g.out_height * g.out_width;
  for (int32_t group = 0; group < g.groups; ++group) {
    for (int32_t n0 = 0; n0 < columns;) {
      const int width = panel_width(columns - n0);
      const int32_t used = std::min<int32_t>(width, columns - n0);
      const MatrixSource source{dy + int64_t{group} * columns, nullptr, nullptr, g.out_channels, false};
      for (int32_t p0 = 0; p0 < pixels; p0 += kPixels) {
        const int32_t p1 = std::min(p0 + kPixels, pixels);
        float* panel = panel_buffer();
        pack_panel(source, p0, p1 - p0, n0, used, width, panel);
        for (int32_t tap = 0; tap < g.kernel_height * g.kernel_width; ++tap) {
          const int32_t shift_y = tap / g.kernel_width - g.pad_top, shift_x = tap % g.kernel_width - g.pad_left;
          // Output columns whose source column lies inside the map.
          const int32_t first = shift_x < 0 ? (-shift_x + g.stride_width - 1) / g.stride_width : 0;
          const int32_t beyond =
              g.in_width > shift_x ? std::min(g.out_width, (g.in_width - 1 - shift_x) / g.stride_width + 1) : 0;
          float* c = dw + (int64_t{tap} * g.groups + group) * depth * columns + n0;
          TransposedSegment segments[kMaxSegments];
          int count = 0;
          auto flush = [&] {
            multiply_transposed(segments, count, int64_t{g.stride_width} * g.in_channels, width, c, columns, depth,
                                used);
            count = 0;
          };
          for (int32_t row = p0 / g.out_width; row <= (p1 - 1) / g.out_width; ++row) {
            const int32_t from_y = row * g.stride_height + shift_y;
            const int32_t x0 = std::max(first, p0 - row * g.out_width);
            const int32_t x1 = std::min(beyond, p1 - row * g.out_width);
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
}

}  // namespace tinytl
