#include "execute.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <system_error>

#include "clock.h"
#include "errors.h"
#include "kernels/parallel.h"

namespace tinytl {

Execution::Execution(Program& program, int64_t threads)
    : program_(program), losses_(static_cast<size_t>(program.together)) {
  try {
    start_threads(static_cast<int>(threads));
  } catch (const std::system_error& error) {
    fail(kUsage, "The system has no room for %lld threads (%s).", static_cast<long long>(threads), error.what());
  }
  // Pages that no operator touches never become resident.
  void* memory = mmap(nullptr, static_cast<size_t>(program.whole_arena_bytes()), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    fail(kMemoryLimit, "There is no room for an arena of %lld bytes.", static_cast<long long>(program.whole_arena_bytes()));
  arena_ = static_cast<uint8_t*>(memory);
}

Execution::~Execution() { munmap(arena_, static_cast<size_t>(program_.whole_arena_bytes())); }

void Execution::give_back() { madvise(arena_, static_cast<size_t>(program_.whole_arena_bytes()), MADV_DONTNEED); }

void Execution::forward(const MaskFiller* masks) {
  run_range(0, program_.forward_ops, masks);
}

float Execution::backward(const Sample& sample) {
  return backward_jointly({sample}) ? backward_alone(sample) : losses_[0];
}

void Execution::forward_alone(const MaskFiller* masks) { run_range(0, program_.joint_first, masks); }

void Execution::forward_jointly(int32_t count, const MaskFiller* masks) {
  for (int32_t i = program_.joint_first; i < program_.forward_ops; ++i)
    run_jointly(program_.ops[static_cast<size_t>(i)], count, nullptr, masks);
}

bool Execution::backward_jointly(const std::vector<Sample>& samples) {
  for (int32_t i = program_.forward_ops; i < program_.joint_end; ++i) {
    const Record& op = program_.ops[static_cast<size_t>(i)];
    run_jointly(op, static_cast<int32_t>(samples.size()), &samples, nullptr);
    const auto is_finite = [](float loss) { return std::isfinite(loss); };
    if (op.opcode == static_cast<int32_t>(Opcode::kLoss) &&
        !std::all_of(losses_.begin(), losses_.begin() + static_cast<ptrdiff_t>(samples.size()), is_finite))
      return false;
  }
  return true;
}

float Execution::backward_alone(const Sample& sample) {
  sample_ = sample;
  const float& loss = losses_[static_cast<size_t>(place_)];
  for (int32_t i = program_.joint_end; i < static_cast<int32_t>(program_.ops.size()); ++i) {
    const Record& op = program_.ops[static_cast<size_t>(i)];
    run(op, nullptr);
    if (op.opcode == static_cast<int32_t>(Opcode::kLoss) && !std::isfinite(loss)) break;
  }
  return loss;
}

void Execution::run_range(int32_t begin, int32_t end, const MaskFiller* masks) {
  for (int32_t i = begin; i < end; ++i) run(program_.ops[static_cast<size_t>(i)], masks);
}

// An operator for the samples in places [0, count): what is loaded is for all of them, and they are updated by the last.
void Execution::run_jointly(const Record& op, int32_t count, const std::vector<Sample>* samples, const MaskFiller* masks) {
  const auto kind = static_cast<Opcode>(op.opcode);
  const bool linear = (kind == Opcode::kPointwise || kind == Opcode::kPointwiseDx) &&
                      op.geometry.out_height * op.geometry.out_width == 1;
  const int32_t first = kind == Opcode::kUpdate ? count - 1 : 0;
  const int32_t end = linear || kind == Opcode::kLoad ? 1 : count;
  rows_ = linear ? count : 1;
  for (int32_t place = first; place < end; ++place) {
    turn_to(place);
    if (samples) sample_ = (*samples)[static_cast<size_t>(place)];
    run(op, masks);
  }
  rows_ = 1;
  turn_to(0);
}

void Execution::update_part(const Record& op) {
  if (!sample_.ends_batch) return;
  const Part& part = program_.parts[static_cast<size_t>(op.weight)];
  const Parameter& parameter = program_.parameters[static_cast<size_t>(part.parameter)];
  const UpdateRule rule{program_.optimizer, static_cast<float>(parameter.rate * sample_.schedule), sample_.step,
                        sample_.seed + static_cast<uint64_t>(op.weight)};
  const bool rounded_sums = op.number != 0;
  Gradient gradient;
  if (rounded_sums) {
    gradient.bf16 = reinterpret_cast<const uint16_t*>(address(op.dw));
  } else {
    gradient.f32 = at(op.dw);
  }
  update(part.trained, gradient, rule);
  if (program_.accumulates) std::memset(address(op.dw), 0, static_cast<size_t>(part.elements) * (rounded_sums ? 2 : 4));
}

void Execution::run(const Record& op, const MaskFiller* masks) {
  const auto number = static_cast<size_t>(&op - program_.ops.data());
  const bool updates = op.opcode == static_cast<int32_t>(Opcode::kUpdate);  // may clear what it reads
  if (observer_ && updates) observer_(number, op, arena_);
  if (!times_) {
    execute(op, masks);
    if (observer_ && !updates) observer_(number, op, arena_);
    return;
  }
  const double begin = now();
  execute(op, masks);
  (*times_)[static_cast<size_t>(op.opcode)] += now() - begin;
}

void Execution::execute(const Record& op, const MaskFiller* masks) {
  const Geometry& g = op.geometry;
  const auto weight_of = [&](int32_t part) { return part < 0 ? Weight{} : program_.parts[static_cast<size_t>(part)].weight; };
  const Weight w = weight_of(op.weight);
  const float* b = weight_of(op.bias).f32;
  const int32_t in_pixels = g.in_height * g.in_width, out_pixels = g.out_height * g.out_width;
  const int64_t elements = int64_t{in_pixels} * g.in_channels;
  uint8_t* mask = op.mask < 0 ? nullptr : address(op.mask);
  const Curve curve{static_cast<Activation>(op.activation), op.alpha, op.beta};
  const Bounds bounds = curve.kind == Activation::kClamp ? Bounds{op.alpha, op.beta} : Bounds{};
  const auto bands = [&](int32_t part, int32_t results) {
    const auto length = static_cast<int32_t>(program_.parts[static_cast<size_t>(part)].elements / results);
    return Bands{weight_of(part).f32, length - 1};
  };
  const auto row_bands = [&] { return bands(op.weight, g.out_height); };
  const auto column_bands = [&] { return bands(op.bias, g.out_width); };
  const auto rows = [&](int32_t from, int32_t to) {
    return LinearRows{at(from), at(to), rows_, program_.bytes_a_sample() / static_cast<int64_t>(sizeof(float))};
  };
  // A product with a factor for each channel, or of two maps: one pixel of many channels.
  const int32_t factor_pixels = op.number ? in_pixels : 1;
  const auto factor_channels = static_cast<int32_t>(op.number ? g.in_channels : elements);
  const ResponseWindow response{op.number, op.alpha, op.beta, op.epsilon};
  const bool adds = op.adds == 1;
  const Epilogue epilogue{b, bounds, mask, adds};
  const GradientEpilogue gradient{mask, at(op.db), adds};

  switch (static_cast<Opcode>(op.opcode)) {
    case Opcode::kPointwise:
      if (out_pixels == 1) return linear_forward(rows(op.x, op.y), g.in_channels, g.out_channels, w, epilogue);
      return pointwise_forward(at(op.x), at(op.y), out_pixels, g.in_channels, g.out_channels, w, epilogue);
    case Opcode::kPointwiseDx:
      if (out_pixels == 1) return linear_dx(rows(op.dy, op.dx), g.in_channels, g.out_channels, w, gradient);
      return pointwise_dx(at(op.dy), at(op.dx), out_pixels, g.in_channels, g.out_channels, w, gradient);
    case Opcode::kPointwiseDw:
      return pointwise_dw(at(op.x), at(op.dy), at(op.dw), out_pixels, g.in_channels, g.out_channels);
    case Opcode::kDepthwise:
      return depthwise_forward(at(op.x), at(op.y), g, w, epilogue);
    case Opcode::kDepthwiseDx:
      return depthwise_dx(at(op.dy), at(op.dx), g, w, gradient);
    case Opcode::kDepthwiseDw:
      return depthwise_dw(at(op.x), at(op.dy), at(op.dw), g);
    case Opcode::kConv:
      return conv_forward(at(op.x), at(op.y), g, w, epilogue);
    case Opcode::kConvDx:
      return conv_dx(at(op.dy), at(op.dx), g, w, gradient);
    case Opcode::kConvDw:
      return conv_dw(at(op.x), at(op.dy), at(op.dw), g);
    case Opcode::kActivate:
      if (curve.kind == Activation::kClamp) return clamp_map(at(op.x), at(op.y), elements, bounds, mask);
      return curve_forward(at(op.x), at(op.y), elements, curve);
    case Opcode::kMaskGradient:
      return mask_gradient(at(op.dy), at(op.dx), mask, elements);
    case Opcode::kBiasGradient:
      return bias_gradient(at(op.dy), at(op.db), in_pixels, g.in_channels);
    case Opcode::kAdd:
      return add(at(op.x), at(op.other), at(op.y), elements);
    case Opcode::kAveragePool:
      return average_pool_forward(at(op.x), at(op.y), g, op.number != 0);
    case Opcode::kAveragePoolDx:
      return average_pool_dx(at(op.dy), at(op.dx), g, op.number != 0);
    case Opcode::kMaxPool:
      return max_pool_forward(at(op.x), at(op.y), mask, g);
    case Opcode::kMaxPoolDx:
      return max_pool_dx(at(op.dy), mask, at(op.dx), g);
    case Opcode::kActivationDx:
      return curve_dx(at(op.x), at(op.dy), at(op.dx), elements, curve);
    case Opcode::kMultiply:
      return multiply(at(op.x), at(op.other), at(op.y), factor_pixels, factor_channels);
    case Opcode::kMultiplyDx:
      return multiply(at(op.dy), at(op.other), at(op.dx), factor_pixels, factor_channels);
    case Opcode::kMultiplyDother:
      return multiply_dother(at(op.dy), at(op.x), at(op.dx), factor_pixels, factor_channels);
    case Opcode::kGlobalPool:
      return global_pool_forward(at(op.x), at(op.y), in_pixels, g.in_channels);
    case Opcode::kGlobalPoolDx:
      return global_pool_dx(at(op.dy), at(op.dx), out_pixels, g.out_channels);
    case Opcode::kUpsample:
      return upsample_forward(at(op.x), at(op.y), g);
    case Opcode::kUpsampleDx:
      return upsample_dx(at(op.dy), at(op.dx), g);
    case Opcode::kResample:
      return resample_forward(at(op.x), at(op.y), g, row_bands(), column_bands());
    case Opcode::kResampleDx:
      return resample_dx(at(op.dy), at(op.dx), g, row_bands(), column_bands());
    case Opcode::kPrelu:
      return prelu_forward(at(op.x), at(op.y), in_pixels, g.in_channels, w.f32);
    case Opcode::kPreluBackward:
      return prelu_backward(at(op.x), at(op.dy), at(op.dx), in_pixels, g.in_channels, w.f32, at(op.dw));
    case Opcode::kShuffle:
      return shuffle(at(op.x), at(op.y), in_pixels, g.in_channels, op.number);
    case Opcode::kCopy:
      return copy_channels(at(op.x) + op.x_first, g.in_channels, at(op.y) + op.y_first, g.out_channels, in_pixels,
                           op.number, adds);
    case Opcode::kChannelNorm:
      return channel_norm_forward(at(op.x), at(op.y), in_pixels, g.in_channels, op.number != 0, op.epsilon, w.f32, b,
                                  at(op.statistics));
    case Opcode::kChannelNormBackward:
      return channel_norm_backward(at(op.x), at(op.dy), at(op.dx), in_pixels, g.in_channels, op.number != 0, w.f32,
                                   at(op.statistics), at(op.dw), at(op.db));
    case Opcode::kResponseNorm:
      return response_norm_forward(at(op.x), at(op.y), in_pixels, g.in_channels, response);
    case Opcode::kResponseNormDx:
      return response_norm_dx(at(op.x), at(op.dy), at(op.dx), in_pixels, g.in_channels, response);
    case Opcode::kGroupNorm:
      return group_norm_forward(at(op.x), at(op.y), in_pixels, g.in_channels, op.number, op.epsilon, w.f32, b,
                                at(op.statistics));
    case Opcode::kGroupNormBackward:
      return group_norm_backward(at(op.x), at(op.dy), at(op.dx), in_pixels, g.in_channels, op.number, w.f32,
                                 at(op.statistics), at(op.dw), at(op.db));
    case Opcode::kAffine:
      return affine_forward(at(op.x), at(op.y), in_pixels, g.in_channels, w.f32, b);
    case Opcode::kAffineBackward:
      return affine_backward(at(op.x), at(op.dy), at(op.dx), in_pixels, g.in_channels, w.f32,
                             at(op.dw), at(op.db));
    case Opcode::kDropout: {
      float* factors = at(op.mask);
      const float* x = at(op.x);
      float* y = at(op.y);
      if (masks) {
        (*masks)(place_, op.number, elements, factors);
      } else {
        for (int64_t i = 0; i < elements; ++i) factors[i] = 1;
      }
      for (int64_t i = 0; i < elements; ++i) y[i] = x[i] * factors[i];
      return;
    }
    case Opcode::kDropoutDx: {
      const float* factors = at(op.mask);
      const float* dy = at(op.dy);
      float* dx = at(op.dx);
      for (int64_t i = 0; i < elements; ++i) dx[i] = dy[i] * factors[i];
      return;
    }
    case Opcode::kLoss:
      losses_[static_cast<size_t>(place_)] = (op.number ? sigmoid_cross_entropy : softmax_cross_entropy)(at(op.x), at(op.other), at(op.dx),
                                                                          program_.outputs, sample_.scale);
      return;
    case Opcode::kZero:
      std::memset(at(op.y), 0, static_cast<size_t>(elements) * sizeof(float));
      return;
    case Opcode::kUpdate:
      return update_part(op);
    case Opcode::kAddRounded:
      return add_rounded(at(op.x), reinterpret_cast<uint16_t*>(address(op.y)), elements,
                         sample_.seed + static_cast<uint64_t>(op.y));
    case Opcode::kCompress:
      return op.number == 16 ? compress_16(at(op.x), reinterpret_cast<uint16_t*>(address(op.y)), elements)
                             : compress_8(at(op.x), address(op.y), elements);
    case Opcode::kDecompress: {
      const int64_t made = int64_t{out_pixels} * g.out_channels;
      return op.number == 16 ? decompress_16(reinterpret_cast<const uint16_t*>(address(op.x)), at(op.y), made)
                             : decompress_8(address(op.x), at(op.y), made);
    }
    case Opcode::kLoad:
      return program_.load_part(program_.parts[static_cast<size_t>(op.weight)], address(op.y));
  }
  fail(kDamaged, "The program has an operator of unknown kind %d.", op.opcode);
}

}  // namespace tinytl
