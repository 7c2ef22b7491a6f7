// Checks a program before anything of it runs: every place, size and index that an operator will use.
#include <cstdint>

#include "errors.h"
#include "program.h"

namespace tinytl {
namespace {

class Checker {
 public:
  Checker(const Program& program, const std::string& path) : program_(program), path_(path) {}

  void run() {
    const int64_t pixels = int64_t{program_.resolution} * program_.resolution;
    place(program_.image, 12 * pixels, "the image");
    place(program_.targets, 4LL * program_.classes, "the targets");
    place(program_.logits, 4LL * program_.classes, "the logits");
    for (index_ = 0; index_ < program_.ops.size(); ++index_) check(program_.ops[index_]);
  }

 private:
  [[noreturn]] void bad(const char* what) const {
    fail(kDamaged, "%s is damaged: operator %zu has a bad %s.", path_.c_str(), index_, what);
  }

  void place(int64_t offset, int64_t bytes, const char* what) const {
    if (offset < 0 || offset % 16 != 0 || bytes <= 0 || offset + bytes > program_.arena_bytes) bad(what);
  }

  const Parameter& parameter(int32_t index, int64_t elements, bool trains) const {
    if (index < 0 || static_cast<size_t>(index) >= program_.parameters.size()) bad("parameter");
    const Parameter& found = program_.parameters[static_cast<size_t>(index)];
    if (found.elements != elements || (trains && !found.trains())) bad("parameter");
    return found;
  }

  void vector(int32_t index, int64_t elements, bool trains = false) const {
    if (!parameter(index, elements, trains).value) bad("parameter");
  }

  void sizes(const Geometry& g, bool windows) const {
    for (const int32_t n : {g.in_height, g.in_width, g.in_channels, g.out_height, g.out_width, g.out_channels,
                            g.kernel_height, g.kernel_width, g.stride_height, g.stride_width, g.groups})
      if (n < 1 || n > (1 << 20)) bad("size");
    if (int64_t{g.in_height} * g.in_width * g.in_channels > (1 << 29) ||
        int64_t{g.out_height} * g.out_width * g.out_channels > (1 << 29))
      bad("size");
    if (g.pad_top < 0 || g.pad_left < 0 || g.in_channels % g.groups != 0 || g.out_channels % g.groups != 0) bad("size");
    // Each window must begin within the padded map, so that no kernel counts past it.
    if (windows && ((g.out_height - 1) * int64_t{g.stride_height} - g.pad_top >= g.in_height ||
                    (g.out_width - 1) * int64_t{g.stride_width} - g.pad_left >= g.in_width ||
                    g.pad_top >= g.kernel_height || g.pad_left >= g.kernel_width))
      bad("window");
  }

  void check(const Record& op) const {
    const Geometry& g = op.geometry;
    const auto kind = static_cast<Opcode>(op.opcode);
    const bool depthwise = kind >= Opcode::kDepthwise && kind <= Opcode::kDepthwiseDw;
    const bool windows = kind >= Opcode::kPointwise && kind <= Opcode::kConvDw;
    sizes(g, windows || kind == Opcode::kAveragePool || kind == Opcode::kAveragePoolDx);
    const int64_t in = int64_t{g.in_height} * g.in_width * g.in_channels;
    const int64_t out = int64_t{g.out_height} * g.out_width * g.out_channels;
    const int64_t taps = int64_t{g.kernel_height} * g.kernel_width;
    const int64_t weights = depthwise ? taps * g.in_channels : taps * (g.in_channels / g.groups) * g.out_channels;
    if (depthwise && (g.in_channels != g.out_channels || g.groups != g.in_channels)) bad("size");
    if (op.activation < 0 || op.activation > 2) bad("activation");
    switch (kind) {
      case Opcode::kPointwise:
      case Opcode::kDepthwise:
      case Opcode::kConv:
        place(op.x, 4 * in, "input");
        place(op.y, 4 * out, "output");
        parameter(op.weight, weights, false);
        if (op.bias >= 0) vector(op.bias, g.out_channels);
        if (op.mask >= 0) place(op.mask, (out + 7) / 8, "mask");
        pointwise_shape(kind, g);
        return;
      case Opcode::kPointwiseDx:
      case Opcode::kDepthwiseDx:
      case Opcode::kConvDx:
        place(op.dy, 4 * out, "gradient");
        place(op.dx, 4 * in, "output");
        parameter(op.weight, weights, false);
        pointwise_shape(kind, g);
        return;
      case Opcode::kPointwiseDw:
      case Opcode::kDepthwiseDw:
      case Opcode::kConvDw:
        place(op.x, 4 * in, "input");
        place(op.dy, 4 * out, "gradient");
        parameter(op.weight, weights, true);
        pointwise_shape(kind, g);
        return;
      case Opcode::kActivate:
        same(g);
        place(op.x, 4 * in, "input");
        place(op.y, 4 * in, "output");
        if (op.mask >= 0) place(op.mask, (in + 7) / 8, "mask");
        return;
      case Opcode::kMaskGradient:
        same(g);
        place(op.dy, 4 * in, "gradient");
        place(op.dx, 4 * in, "output");
        place(op.mask, (in + 7) / 8, "mask");
        return;
      case Opcode::kBiasGradient:
        place(op.dy, 4 * in, "gradient");
        vector(op.bias, g.in_channels, true);
        return;
      case Opcode::kAdd:
        same(g);
        place(op.x, 4 * in, "input");
        place(op.other, 4 * in, "input");
        place(op.y, 4 * in, "output");
        return;
      case Opcode::kAveragePool:
      case Opcode::kUpsample:
        if (g.in_channels != g.out_channels) bad("size");
        if (kind == Opcode::kAveragePool) inside(g);
        place(op.x, 4 * in, "input");
        place(op.y, 4 * out, "output");
        return;
      case Opcode::kAveragePoolDx:
      case Opcode::kUpsampleDx:
        if (g.in_channels != g.out_channels) bad("size");
        if (kind == Opcode::kAveragePoolDx) inside(g);
        place(op.dy, 4 * out, "gradient");
        place(op.dx, 4 * in, "output");
        return;
      case Opcode::kGlobalPool:
        place(op.x, 4 * in, "input");
        place(op.y, 4LL * g.in_channels, "output");
        return;
      case Opcode::kGlobalPoolDx:
        place(op.dy, 4LL * g.out_channels, "gradient");
        place(op.dx, 4 * out, "output");
        return;
      case Opcode::kGroupNorm:
        groups(op, g);
        place(op.x, 4 * in, "input");
        place(op.y, 4 * in, "output");
        vector(op.weight, g.in_channels);
        vector(op.bias, g.in_channels);
        return;
      case Opcode::kGroupNormBackward:
        groups(op, g);
        place(op.x, 4 * in, "input");
        backward_of_scale(op, g, in);
        return;
      case Opcode::kAffine:
        same(g);
        place(op.x, 4 * in, "input");
        place(op.y, 4 * in, "output");
        vector(op.weight, g.in_channels);
        vector(op.bias, g.in_channels);
        return;
      case Opcode::kAffineBackward:
        if (op.train_weight >= 0) place(op.x, 4 * in, "input");
        backward_of_scale(op, g, in);
        return;
      case Opcode::kDropout:
      case Opcode::kDropoutDx:
        same(g);
        place(op.mask, 4 * in, "mask");
        place(kind == Opcode::kDropout ? op.x : op.dy, 4 * in, "input");
        place(kind == Opcode::kDropout ? op.y : op.dx, 4 * in, "output");
        if (kind == Opcode::kDropout &&
            (op.number < 0 || static_cast<size_t>(op.number) >= program_.dropouts.size() ||
             program_.dropouts[static_cast<size_t>(op.number)].elements != in))
          bad("dropout");
        return;
      case Opcode::kLoss:
        place(op.x, 4LL * program_.classes, "input");
        place(op.other, 4LL * program_.classes, "input");
        place(op.dx, 4LL * program_.classes, "output");
        return;
    }
    bad("kind");
  }

  void pointwise_shape(Opcode kind, const Geometry& g) const {
    if (kind <= Opcode::kPointwiseDw &&
        (g.in_height != g.out_height || g.in_width != g.out_width || g.kernel_height * g.kernel_width != 1 ||
         g.groups != 1))
      bad("size");
  }

  void same(const Geometry& g) const {
    if (int64_t{g.in_height} * g.in_width * g.in_channels != int64_t{g.out_height} * g.out_width * g.out_channels)
      bad("size");
  }

  // Pooling windows lie within the map.
  void inside(const Geometry& g) const {
    if ((g.out_height - 1) * int64_t{g.stride_height} + g.kernel_height > g.in_height ||
        (g.out_width - 1) * int64_t{g.stride_width} + g.kernel_width > g.in_width)
      bad("window");
  }

  void groups(const Record& op, const Geometry& g) const {
    same(g);
    if (op.number < 1 || g.in_channels % op.number != 0) bad("number of groups");
    place(op.statistics, 8LL * op.number, "statistics");
  }

  void backward_of_scale(const Record& op, const Geometry& g, int64_t elements) const {
    place(op.dy, 4 * elements, "gradient");
    place(op.dx, 4 * elements, "output");
    vector(op.weight, g.in_channels);
    if (op.train_weight >= 0) vector(op.train_weight, g.in_channels, true);
    if (op.train_bias >= 0) vector(op.train_bias, g.in_channels, true);
  }

  const Program& program_;
  const std::string& path_;
  size_t index_ = 0;
};

}  // namespace

void check_program(const Program& program, const std::string& path) { Checker(program, path).run(); }

}  // namespace tinytl
