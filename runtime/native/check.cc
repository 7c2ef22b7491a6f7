// Checks a program before anything of it runs: holds every word of every operator against the operator's declaration
// (operators.inc). A program that passes makes no kernel touch anything outside of its arena and its parameters:
//
//   - all sizes follow from an operator's geometry and attributes, which are bounded first, so that no product wraps,
//     here in 64 bits or in a kernel in 32;
//   - every place is aligned, lies in the arena with all of its size, and overlaps no other that is written;
//   - every part of a parameter has the layout, the size and the storage that the kernel takes, and lies in memory, or
//     in the arena since an operator before this one has loaded it;
//   - what else a kernel follows (bands of a resample, layers of dropout, runs of channels) is followed here before.
//
// Winners of max pooling are read from the arena, where anything may lie: its kernel compares them and never follows.
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "errors.h"
#include "program.h"

namespace tinytl {
namespace {

constexpr int64_t kLongest = 1 << 20;   // rows, columns, and how far a window reaches or a map is padded
constexpr int64_t kLargest = 1 << 29;   // elements of a map
constexpr int64_t kLongestStride = 4096;

#define SAME_WORD(word, member) static_assert(static_cast<size_t>(Word::word) * 4 == offsetof(Record, member))
SAME_WORD(kOpcode, opcode);
SAME_WORD(kX, x);
SAME_WORD(kOther, other);
SAME_WORD(kDy, dy);
SAME_WORD(kMask, mask);
SAME_WORD(kStatistics, statistics);
SAME_WORD(kY, y);
SAME_WORD(kDx, dx);
SAME_WORD(kDw, dw);
SAME_WORD(kDb, db);
SAME_WORD(kWeight, weight);
SAME_WORD(kBias, bias);
SAME_WORD(kAdds, adds);
SAME_WORD(kActivation, activation);
SAME_WORD(kNumber, number);
SAME_WORD(kEpsilon, epsilon);
SAME_WORD(kAlpha, alpha);
SAME_WORD(kBeta, beta);
SAME_WORD(kXFirst, x_first);
SAME_WORD(kYFirst, y_first);
SAME_WORD(kInHeight, geometry);
static_assert(static_cast<size_t>(Word::kDilationHeight) * 4 ==
              offsetof(Record, geometry) + offsetof(Geometry, dilation_height));
static_assert(static_cast<size_t>(Word::kGroups) * 4 == offsetof(Record, geometry) + offsetof(Geometry, groups));

// The product of numbers that are 1 or more, or `most` + 1 where it is larger than that.
int64_t product(std::initializer_list<int64_t> factors, int64_t most) {
  int64_t result = 1;
  for (const int64_t factor : factors)
    if (__builtin_mul_overflow(result, factor, &result) || result > most) return most + 1;
  return result;
}

// An operator's size in one direction.
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;

  int64_t reach() const { return (kernel - 1) * dilation + 1; }
  bool bounded() const {
    for (const int64_t size : {in, out, kernel, dilation})
      if (size < 1 || size > kLongest) return false;
    return stride >= 1 && stride <= kLongestStride && pad >= 0 && pad <= kLongest && reach() <= kLongest &&
           (out - 1) * stride <= in + 2 * kLongest;
  }
  // Does every window hold a pixel?
  bool always_holds() const { return pad < reach() && (out - 1) * stride - pad < in; }
  bool is_plain() const { return kernel == 1 && stride == 1 && pad == 0 && dilation == 1; }
};

class Checker {
 public:
  Checker(const Program& program, const std::string& path)
      : program_(program), path_(path), loaded_(program.parts.size(), -1) {}

  void run() {
    outer("stored_image", program_.stored_image, program_.stored_image_bytes);
    outer("image", program_.image, 4LL * program_.channels * program_.height * program_.width);
    outer("targets", program_.targets, 4LL * program_.outputs);
    outer("logits", program_.logits, 4LL * program_.outputs);
    const auto forward = static_cast<size_t>(program_.forward_ops);
    for (; index_ < program_.ops.size(); ++index_) {
      const Record& op = program_.ops[index_];
      if (op.opcode < 1 || op.opcode >= static_cast<int32_t>(kOpcodes)) bad("kind");
      declared_ = &kDeclarations[op.opcode];
      if (index_ < forward && !declared_->forward) bad("place in the forward part");
      check(op);
    }
    if (losses_ != 1) fail(kDamaged, "%s is damaged: it has %d losses.", path_.c_str(), losses_);
  }

 private:
  [[noreturn]] void bad(const char* what) const {
    fail(kDamaged, "%s is damaged: operator %zu has a bad %s.", path_.c_str(), index_, what);
  }
  void need(bool holds, const char* what) const {
    if (!holds) bad(what);
  }

  bool in_arena(int64_t offset, int64_t bytes) const {
    return offset >= 0 && offset % 4 == 0 && bytes > 0 && bytes <= program_.arena_bytes &&
           offset <= program_.arena_bytes - bytes &&
           (offset >= program_.shared_bytes || offset + bytes <= program_.shared_bytes);
  }
  void outer(const char* name, int64_t offset, int64_t bytes) const {
    if (!in_arena(offset, bytes)) fail(kDamaged, "%s is damaged: its %s lies nowhere.", path_.c_str(), name);
  }

  void check(const Record& op) {
    std::memcpy(words_.data(), &op, sizeof op);
    used_.fill(false);
    used_[0] = true;
    spots_count_ = 0;
    geometry(op.geometry);
    for (const DeclaredAttribute& attribute : declared_->attributes)
      if (attribute.type != AttributeType{}) check_attribute(op, attribute);
    bool may_add = false;
    for (const DeclaredPlace& place : declared_->places) {
      if (!place.use) break;
      may_add |= (place.use & kMayAdd) != 0;
      check_place(op, place);
    }
    for (const DeclaredPart& part : declared_->parts)
      if (part.kind != PartKind{}) check_part(op, part);
    overlaps();
    const bool plain = op.activation == 0 && op.mask < 0 && op.db < 0;
    need(op.adds == 0 || (op.adds == 1 && may_add && plain), "addition");
    used_[static_cast<size_t>(Word::kAdds)] = true;
    for (size_t word = 0; word < static_cast<size_t>(Word::kInHeight); ++word)
      need(used_[word] || words_[word] == (word < static_cast<size_t>(Word::kAdds) ? -1 : 0), "word");
    order(op);
  }

  // What a single declaration does not say.
  void order(const Record& op) {
    const auto kind = static_cast<Opcode>(op.opcode);
    if (kind == Opcode::kLoss) ++losses_;
    // Where the loss is no number, nothing has been updated.
    need(kind != Opcode::kUpdate || losses_ == 1, "place in front of the loss");
    need(kind != Opcode::kAffineBackward || op.dw < 0 || op.x >= 0, "input");
  }

  void geometry(const Geometry& g) {
    const Axis rows{g.in_height, g.out_height, g.kernel_height, g.stride_height, g.pad_top, g.dilation_height};
    const Axis columns{g.in_width, g.out_width, g.kernel_width, g.stride_width, g.pad_left, g.dilation_width};
    need(rows.bounded() && columns.bounded() && g.in_channels >= 1 && g.out_channels >= 1 && g.groups >= 1, "size");
    in_ = product({g.in_height, g.in_width, g.in_channels}, kLargest);
    out_ = product({g.out_height, g.out_width, g.out_channels}, kLargest);
    need(in_ <= kLargest && out_ <= kLargest, "size");
    const bool channels_stay = g.in_channels == g.out_channels;
    const int64_t in_pixels = int64_t{g.in_height} * g.in_width, out_pixels = int64_t{g.out_height} * g.out_width;
    switch (declared_->rule) {
      case Rule::kConvolution:
        return need(g.in_channels % g.groups == 0 && g.out_channels % g.groups == 0, "number of groups");
      case Rule::kDepthwise:
        return need(channels_stay && g.groups == g.in_channels, "number of groups");
      case Rule::kPooling:
        need(rows.always_holds() && columns.always_holds() && rows.dilation == 1 && columns.dilation == 1, "window");
        return need(channels_stay && g.groups == 1, "size");
      default:
        need(rows.is_plain() && columns.is_plain() && g.groups == 1, "window");
    }
    switch (declared_->rule) {
      case Rule::kPointwise:
      case Rule::kPixels:
        return need(in_pixels == out_pixels, "size");
      case Rule::kResizing:
        return need(channels_stay, "size");
      case Rule::kSame:
        return need(in_ == out_, "size");
      case Rule::kByChannel:
        return need(out_ == g.in_channels, "size");
      case Rule::kOfOnePixel:
        return need(in_ == g.out_channels, "size");
      default:
        return;
    }
  }

  int32_t use(Word word) {
    used_[static_cast<size_t>(word)] = true;
    return words_[static_cast<size_t>(word)];
  }

  void check_attribute(const Record& op, const DeclaredAttribute& attribute) {
    const int32_t value = use(attribute.word);
    const Geometry& g = op.geometry;
    const bool within = value >= attribute.low && value <= attribute.high;
    switch (attribute.type) {
      case AttributeType::kWhole:
        return need(within, "attribute");
      case AttributeType::kDivisor:
        return need(value >= 1 && g.in_channels % value == 0, "number of groups");
      case AttributeType::kLayer: {
        const std::vector<DropoutLayer>& layers = program_.dropouts;
        need(value >= 0 && static_cast<size_t>(value) < layers.size(), "dropout");
        return need(layers[static_cast<size_t>(value)].elements == in_, "dropout");
      }
      case AttributeType::kBits:
        return need(value == 8 || value == 16, "number of bits");
      case AttributeType::kLoss:
        return need(value == static_cast<int32_t>(program_.multi_label) && in_ == program_.outputs, "loss");
      case AttributeType::kPositive: {
        float number;
        std::memcpy(&number, &value, sizeof number);
        return need(std::isfinite(number) && number > 0, "epsilon");
      }
      case AttributeType::kRun: {
        const int32_t channels = attribute.word == Word::kXFirst ? g.in_channels : g.out_channels;
        return need(value >= 0 && op.number >= 1 && op.number <= channels && value <= channels - op.number, "run");
      }
      case AttributeType::kActivation: {
        need(within, "activation");
        const int numbers = kActivationNumbers[value];
        if (numbers > 0) use(Word::kAlpha);
        if (numbers > 1) use(Word::kBeta);
        if (static_cast<Activation>(value) == Activation::kClamp) return need(op.alpha <= op.beta, "clamp");
        need(std::isfinite(op.alpha) && std::isfinite(op.beta), "activation");
        return need(op.mask < 0, "mask");
      }
    }
  }

  int64_t bytes_of(const Record& op, Extent extent) const {
    const Geometry& g = op.geometry;
    switch (extent) {
      case Extent::kIn: return 4 * in_;
      case Extent::kOut: return 4 * out_;
      case Extent::kInBits: return (in_ + 7) / 8;
      case Extent::kOutBits: return (out_ + 7) / 8;
      case Extent::kInChannels: return 4LL * g.in_channels;
      case Extent::kOutChannels: return 4LL * g.out_channels;
      case Extent::kClasses: return 4LL * program_.outputs;
      case Extent::kWeights: return 4 * weights(g);
      case Extent::kFactors: return 4 * (op.number ? int64_t{g.in_channels} : in_);
      case Extent::kGroupStatistics: return 8LL * op.number;
      case Extent::kPixelStatistics: return 8LL * g.in_height * g.in_width;
      case Extent::kWinners: {
        const int64_t window = product({g.kernel_height, g.kernel_width}, 65536);
        need(window <= 65536, "window");
        return window <= 256 ? out_ : 2 * out_;
      }
      case Extent::kRoundedIn: return 2 * in_;
      case Extent::kGradient: return (op.number ? 2 : 4) * in_;
      case Extent::kCodedIn: return coded(op.number, in_);
      case Extent::kCodedOut: return coded(op.number, out_);
      case Extent::kStored: return program_.bytes(part(op.weight));
    }
    bad("size");
  }

  static int64_t coded(int32_t bits, int64_t elements) {
    if (bits == 16) return 2 * elements;
    return (elements + 3) / 4 * 4 + 4 * ((elements + kCompressedBlock - 1) / kCompressedBlock);
  }

  int64_t weights(const Geometry& g) const {
    return product({g.kernel_height, g.kernel_width, g.in_channels / g.groups, g.out_channels}, kLargest);
  }

  void check_place(const Record& op, const DeclaredPlace& place) {
    const int64_t offset = use(place.word);
    if (offset == -1 && (place.use & kOptional)) return;
    const int64_t bytes = bytes_of(op, place.extent);
    need(in_arena(offset, bytes), "place");
    spots_[spots_count_++] = {offset, offset + bytes, place.use};
  }

  const Part& part(int32_t index) const {
    need(index >= 0 && static_cast<size_t>(index) < program_.parts.size(), "parameter");
    return program_.parts[static_cast<size_t>(index)];
  }

  void check_part(const Record& op, const DeclaredPart& declared) {
    const int32_t index = use(declared.word);
    if (index == -1 && declared.optional) return;
    const Geometry& g = op.geometry;
    const Part& found = part(index);
    const Parameter& parameter = program_.parameters[static_cast<size_t>(found.parameter)];
    const bool vector = parameter.layout == Layout::kVector;
    switch (declared.kind) {
      case PartKind::kWeight: {
        need(fits(found, parameter, g), "weight");
        if (found.weight.f32 || found.weight.bf16 || found.weight.i8) return;
        const int64_t at = loaded_[static_cast<size_t>(index)];
        need(at >= 0, "weight that was not loaded");
        spots_[spots_count_++] = {at, at + program_.bytes(found), kRead};
        return;
      }
      case PartKind::kInVector:
        return need(vector && found.elements == g.in_channels, "parameter");
      case PartKind::kOutVector:
        return need(vector && found.elements == g.out_channels, "parameter");
      case PartKind::kRowBands:
        return need(vector && !parameter.trains() && bands(found, g.in_height, g.out_height), "band");
      case PartKind::kColumnBands:
        return need(vector && !parameter.trains() && bands(found, g.in_width, g.out_width), "band");
      case PartKind::kTrained:
        return need(parameter.trains() && found.elements == in_, "parameter");
      case PartKind::kLoaded:
        need(program_.streamed && !parameter.trains() && !vector && found.elements == in_, "parameter");
        loaded_[static_cast<size_t>(index)] = op.y;
        return;
    }
  }

  // Is it the weight of this geometry? Its scales, where it has any, are then as many as its outputs.
  bool fits(const Part& part, const Parameter& p, const Geometry& g) const {
    const Layout wanted = declared_->rule == Rule::kDepthwise ? Layout::kDepthwise : Layout::kConv;
    if (p.layout == Layout::kVector || (p.layout == Layout::kDepthwise) != (wanted == Layout::kDepthwise)) return false;
    const int64_t outputs = part.axis == 0 ? part.count : p.shape[0];
    if (outputs != g.out_channels || part.elements != weights(g)) return false;
    const bool window = p.layout != Layout::kLinear;
    const int64_t height = window ? p.shape[2] : 1, width = window ? p.shape[3] : 1;
    if (p.layout == Layout::kDepthwise) return part.axis == 0 && height == g.kernel_height && width == g.kernel_width;
    if (p.groups != g.groups) return false;
    // A product takes a whole map as one pixel.
    return declared_->rule == Rule::kPointwise || (height == g.kernel_height && width == g.kernel_width);
  }

  // For each output a band of inputs: where it begins, and the weights of those from there.
  static bool bands(const Part& part, int32_t inputs, int32_t outputs) {
    const float* band = part.weight.f32;
    const int64_t length = part.elements / outputs;
    if (!band || part.elements % outputs != 0 || length < 2 || length - 1 > inputs) return false;
    for (int32_t i = 0; i < outputs; ++i, band += length)
      if (!(*band >= 0 && *band <= static_cast<float>(inputs - (length - 1))) || *band != std::floor(*band)) return false;
    return true;
  }

  // What is written overlaps nothing else, but that the first result may take the place of an operand.
  void overlaps() const {
    bool first = true;
    for (size_t i = 0; i < spots_count_; ++i) {
      const Spot& written = spots_[i];
      if (!(written.use & kWrite)) continue;
      for (size_t j = 0; j < spots_count_; ++j) {
        const Spot& other = spots_[j];
        const bool same = first && (other.use & kInPlace) && other.begin == written.begin && other.end == written.end;
        need(i == j || same || other.end <= written.begin || written.end <= other.begin, "overlap");
      }
      first = false;
    }
  }

  struct Spot {
    int64_t begin, end;
    int use;
  };

  const Program& program_;
  const std::string& path_;
  std::vector<int32_t> loaded_;  // where each part lies, or -1
  size_t index_ = 0;
  int losses_ = 0;
  // Of the operator that is checked:
  const Declaration* declared_ = nullptr;
  std::array<int32_t, kWords> words_{};
  std::array<bool, kWords> used_{};
  int64_t in_ = 0, out_ = 0;  // elements of its maps
  std::array<Spot, 8> spots_{};
  size_t spots_count_ = 0;
};

}  // namespace

void check_program(const Program& program, const std::string& path) { Checker(program, path).run(); }

}  // namespace tinytl
