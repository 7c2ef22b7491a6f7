// Checks a program before anything of it runs: every place, size and index that an operator will use.
#include <cstdint>

#include "errors.h"
#include "program.h"

namespace tinytl {
namespace {

class Checker {
 public:
  Checker(const Program& program, const std::string& path) : program_(program), path_(path), loaded_(program.parts.size()) {}

  void run() {
    const int64_t pixels = int64_t{program_.resolution} * program_.resolution;
    place(program_.photograph, program_.photograph_bytes, "the photograph");
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
    if (offset < 0 || offset % 4 != 0 || bytes <= 0 || offset + bytes > program_.arena_bytes) bad(what);
  }

  const Part& part(int32_t index, int64_t elements) const {
    if (index < 0 || static_cast<size_t>(index) >= program_.parts.size()) bad("parameter");
    const Part& found = program_.parts[static_cast<size_t>(index)];
    if (found.elements != elements) bad("parameter");
    return found;
  }

  const Parameter& parameter_of(const Part& part) const {
    return program_.parameters[static_cast<size_t>(part.parameter)];
  }

  // A weight that lies in memory, or was loaded by an operator before; with a scale for each output if it is int8.
  void weight(int32_t index, int64_t elements, int64_t outputs) {
    const Part& found = part(index, elements);
    if (!found.weight.f32 && !found.weight.bf16 && !found.weight.i8 && !loaded_[static_cast<size_t>(index)])
      bad("weight that was not loaded");
    const Parameter& parameter = parameter_of(found);
    if (parameter.storage == Storage::kInt8 && parameter.shape[0] != outputs && found.count != outputs) bad("weight");
  }

  void vector(int32_t index, int64_t elements) const {
    if (!part(index, elements).weight.f32) bad("parameter");
  }

  void gradient(int32_t offset, int64_t elements) const {
    if (offset >= 0) place(offset, 4 * elements, "gradient of a parameter");
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

  void check(const Record& op) {
    const Geometry& g = op.geometry;
    const auto kind = static_cast<Opcode>(op.opcode);
    const bool depthwise = kind >= Opcode::kDepthwise && kind <= Opcode::kDepthwiseDw;
    const bool windows = kind >= Opcode::kPointwise && kind <= Opcode::kConvDw;
    const bool pooling = kind == Opcode::kAveragePool || kind == Opcode::kAveragePoolDx || kind == Opcode::kMaxPool ||
                         kind == Opcode::kMaxPoolDx;
    sizes(g, windows || pooling);
    const int64_t in = int64_t{g.in_height} * g.in_width * g.in_channels;
    const int64_t out = int64_t{g.out_height} * g.out_width * g.out_channels;
    const int64_t taps = int64_t{g.kernel_height} * g.kernel_width;
    const int64_t weights = depthwise ? taps * g.in_channels : taps * (g.in_channels / g.groups) * g.out_channels;
    if (depthwise && (g.in_channels != g.out_channels || g.groups != g.in_channels)) bad("size");
    if (op.activation < 0 || op.activation > 6) bad("activation");
    const bool curve = op.activation > 2;
    if (curve && kind != Opcode::kActivate && kind != Opcode::kActivationDx) bad("activation");
    for (const int32_t index : {op.weight, op.bias})
      if (index < -1 || index >= static_cast<int32_t>(program_.parts.size())) bad("parameter");
    if (op.adds < 0 || op.adds > 1) bad("addition");
    switch (kind) {
      case Opcode::kPointwise:
      case Opcode::kDepthwise:
      case Opcode::kConv:
        place(op.x, 4 * in, "input");
        place(op.y, 4 * out, "output");
        weight(op.weight, weights, g.out_channels);
        if (op.bias >= 0) vector(op.bias, g.out_channels);
        if (op.mask >= 0) place(op.mask, (out + 7) / 8, "mask");
        if (op.adds && (kind != Opcode::kPointwise || op.mask >= 0 || op.activation != 0)) bad("addition");
        pointwise_shape(kind, g);
        return;
      case Opcode::kPointwiseDx:
      case Opcode::kDepthwiseDx:
      case Opcode::kConvDx:
        place(op.dy, 4 * out, "gradient");
        place(op.dx, 4 * in, "output");
        weight(op.weight, weights, g.out_channels);
        if (op.mask >= 0) place(op.mask, (in + 7) / 8, "mask");
        gradient(op.db, g.in_channels);
        if (op.adds && (kind == Opcode::kDepthwiseDx || op.mask >= 0 || op.db >= 0)) bad("addition");
        pointwise_shape(kind, g);
        return;
      case Opcode::kPointwiseDw:
      case Opcode::kDepthwiseDw:
      case Opcode::kConvDw:
        place(op.x, 4 * in, "input");
        place(op.dy, 4 * out, "gradient");
        place(op.dw, 4 * weights, "gradient of a parameter");
        pointwise_shape(kind, g);
        return;
      case Opcode::kActivate:
        same(g);
        place(op.x, 4 * in, "input");
        place(op.y, 4 * in, "output");
        if (op.mask >= 0) place(op.mask, (in + 7) / 8, "mask");
        if (op.mask >= 0 && curve) bad("mask");
        return;
      case Opcode::kActivationDx:
        same(g);
        if (!curve) bad("activation");
        place(op.x, 4 * in, "input");
        place(op.dy, 4 * in, "gradient");
        place(op.dx, 4 * in, "output");
        return;
      case Opcode::kMultiply:
      case Opcode::kMultiplyDx:
        same(g);
        place(kind == Opcode::kMultiply ? op.x : op.dy, 4 * in, "input");
        place(op.other, 4 * (op.number ? g.in_channels : in), "factor");
        place(kind == Opcode::kMultiply ? op.y : op.dx, 4 * in, "output");
        return;
      case Opcode::kMultiplyDother:
        place(op.dy, 4 * in, "gradient");
        place(op.x, 4 * in, "input");
        place(op.dx, 4 * (op.number ? g.in_channels : in), "output");
        return;
      case Opcode::kMaxPool:
      case Opcode::kMaxPoolDx:
        if (g.in_channels != g.out_channels || int64_t{g.kernel_height} * g.kernel_width > 256) bad("size");
        place(kind == Opcode::kMaxPool ? op.x : op.dx, 4 * in, "map");
        place(kind == Opcode::kMaxPool ? op.y : op.dy, 4 * out, "map");
        if (kind == Opcode::kMaxPoolDx || op.mask >= 0) place(op.mask, out, "index");
        return;
      case Opcode::kMaskGradient:
        same(g);
        place(op.dy, 4 * in, "gradient");
        place(op.dx, 4 * in, "output");
        place(op.mask, (in + 7) / 8, "mask");
        return;
      case Opcode::kBiasGradient:
        place(op.dy, 4 * in, "gradient");
        place(op.db, 4LL * g.in_channels, "gradient of a parameter");
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
        place(op.x, 4 * in, "input");
        place(op.y, 4 * out, "output");
        return;
      case Opcode::kAveragePoolDx:
      case Opcode::kUpsampleDx:
        if (g.in_channels != g.out_channels) bad("size");
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
        if (op.dw >= 0) place(op.x, 4 * in, "input");
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
        if (op.number != int{program_.several_labels}) bad("kind of loss");
        place(op.x, 4LL * program_.classes, "input");
        place(op.other, 4LL * program_.classes, "input");
        place(op.dx, 4LL * program_.classes, "output");
        return;
      case Opcode::kZero:
        place(op.y, 4 * in, "output");
        return;
      case Opcode::kUpdate: {
        const Part& updated = part(op.weight, in);
        if (!parameter_of(updated).trains()) bad("parameter");
        place(op.dw, (op.number ? 2 : 4) * in, "gradient of a parameter");
        return;
      }
      case Opcode::kAddRounded:
        place(op.x, 4 * in, "input");
        place(op.y, 2 * in, "output");
        return;
      case Opcode::kCompress:
        place(op.x, 4 * in, "input");
        place(op.y, compressed_bytes(op.number, in), "output");
        return;
      case Opcode::kDecompress:
        place(op.x, compressed_bytes(op.number, out), "input");
        place(op.y, 4 * out, "output");
        return;
      case Opcode::kLoad: {
        const Part& wanted = part(op.weight, in);
        if (!program_.streamed || parameter_of(wanted).trains()) bad("parameter");
        place(op.y, program_.bytes(wanted), "output");
        loaded_[static_cast<size_t>(op.weight)] = true;
        return;
      }
    }
    bad("kind");
  }

  void pointwise_shape(Opcode kind, const Geometry& g) const {
    if (kind <= Opcode::kPointwiseDw &&
        (g.in_height != g.out_height || g.in_width != g.out_width || g.kernel_height * g.kernel_width != 1 ||
         g.groups != 1))
      bad("size");
  }

  int64_t compressed_bytes(int32_t bits, int64_t elements) const {
    if (bits == 16) return 2 * elements;
    if (bits != 8) bad("number of bits");
    return (elements + 3) / 4 * 4 + 4 * ((elements + kCompressedBlock - 1) / kCompressedBlock);
  }

  void same(const Geometry& g) const {
    if (int64_t{g.in_height} * g.in_width * g.in_channels != int64_t{g.out_height} * g.out_width * g.out_channels)
      bad("size");
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
    gradient(op.dw, g.in_channels);
    gradient(op.db, g.in_channels);
  }

  const Program& program_;
  const std::string& path_;
  std::vector<bool> loaded_;
  size_t index_ = 0;
};

}  // namespace

void check_program(const Program& program, const std::string& path) { Checker(program, path).run(); }

}  // namespace tinytl
