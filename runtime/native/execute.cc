#include "execute.h"

#include <sys/mman.h>

#include <cstring>

#include "errors.h"

namespace tinytl {

Execution::Execution(const Program& program) : program_(program) {
  // Pages that no operator touches never become resident.
  void* memory = mmap(nullptr, static_cast<size_t>(program.arena_bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) 
    fail(kMemoryLimit, "There is no room for an arena of %lld bytes.", static_cast<long long>(program.arena_bytes));
  arena_ = static_cast<uint8_t*>(memory);
}

Execution::~Execution() { munmap(arena_, static_cast<size_t>(program_.arena_bytes)); }

void Execution::forward(const MaskFiller* masks) {
  for (int32_t i = 0; i < program_.forward_ops; ++i) run(program_.ops[static_cast<size_t>(i)], masks);
}

float Execution::backward(float scale) {
  scale_ = scale;
  for (size_t i = static_cast<size_t>(program_.forward_ops); i < program_.ops.size(); ++i) run(program_.ops[i], nullptr);
  return loss_;
}

void Execution::run(const Record& op, const MaskFiller* masks) {
  const Geometry& g = op.geometry;
  const auto parameter = [&](int32_t index) -> const Parameter* {
    return index < 0 ? nullptr : &program_.parameters[static_cast<size_t>(index)];
  };
  const Parameter* weight = parameter(op.weight);
  const Parameter* bias = parameter(op.bias);
  const Weight w = weight ? weight->weight : Weight{};
  const float* b = bias ? bias->value : nullptr;
  const int32_t in_pixels = g.in_height * g.in_width, out_pixels = g.out_height * g.out_width;
  const int64_t elements = int64_t{in_pixels} * g.in_channels;
  uint8_t* mask = op.mask < 0 ? nullptr : arena_ + op.mask;
  const auto activation = static_cast<Activation>(op.activation);
  const Epilogue epilogue{b, activation, mask};

  switch (static_cast<Opcode>(op.opcode)) {
    case Opcode::kPointwise:
      return pointwise_forward(at(op.x), at(op.y), out_pixels, g.in_channels, g.out_channels, w, epilogue);
    case Opcode::kPointwiseDx:
      return pointwise_dx(at(op.dy), at(op.dx), out_pixels, g.in_channels, g.out_channels, w);
    case Opcode::kPointwiseDw:
      return pointwise_dw(at(op.x), at(op.dy), weight->gradient, out_pixels, g.in_channels, g.out_channels);
    case Opcode::kDepthwise:
      return depthwise_forward(at(op.x), at(op.y), g, w, epilogue);
    case Opcode::kDepthwiseDx:
      return depthwise_dx(at(op.dy), at(op.dx), g, w);
    case Opcode::kDepthwiseDw:
      return depthwise_dw(at(op.x), at(op.dy), weight->gradient, g);
    case Opcode::kConv:
      return conv_forward(at(op.x), at(op.y), g, w, epilogue);
    case Opcode::kConvDx:
      return conv_dx(at(op.dy), at(op.dx), g, w);
    case Opcode::kConvDw:
      return conv_dw(at(op.x), at(op.dy), weight->gradient, g);
    case Opcode::kActivate:
      return activate(at(op.x), at(op.y), elements, activation, mask);
    case Opcode::kMaskGradient:
      return mask_gradient(at(op.dy), at(op.dx), mask, elements);
    case Opcode::kBiasGradient:
      return bias_gradient(at(op.dy), bias->gradient, in_pixels, g.in_channels);
    case Opcode::kAdd:
      return add(at(op.x), at(op.other), at(op.y), elements);
    case Opcode::kAveragePool:
      return average_pool_forward(at(op.x), at(op.y), g);
    case Opcode::kAveragePoolDx:
      return average_pool_dx(at(op.dy), at(op.dx), g);
    case Opcode::kGlobalPool:
      return global_pool_forward(at(op.x), at(op.y), in_pixels, g.in_channels);
    case Opcode::kGlobalPoolDx:
      return global_pool_dx(at(op.dy), at(op.dx), out_pixels, g.out_channels);
    case Opcode::kUpsample:
      return upsample_forward(at(op.x), at(op.y), g);
    case Opcode::kUpsampleDx:
      return upsample_dx(at(op.dy), at(op.dx), g);
    case Opcode::kGroupNorm: {
      float epsilon;
      std::memcpy(&epsilon, &op.epsilon_bits, sizeof epsilon);
      return group_norm_forward(at(op.x), at(op.y), in_pixels, g.in_channels, op.number, epsilon, weight->value, b,
                                at(op.statistics));
    }
    case Opcode::kGroupNormBackward: {
      const Parameter* train_weight = parameter(op.train_weight);
      const Parameter* train_bias = parameter(op.train_bias);
      return group_norm_backward(at(op.x), at(op.dy), at(op.dx), in_pixels, g.in_channels, op.number, weight->value,
                                 at(op.statistics), train_weight ? train_weight->gradient : nullptr,
                                 train_bias ? train_bias->gradient : nullptr);
    }
    case Opcode::kAffine:
      return affine_forward(at(op.x), at(op.y), in_pixels, g.in_channels, weight->value, b);
    case Opcode::kAffineBackward: {
      const Parameter* train_weight = parameter(op.train_weight);
      const Parameter* train_bias = parameter(op.train_bias);
      return affine_backward(at(op.x), at(op.dy), at(op.dx), in_pixels, g.in_channels, weight->value,
                             train_weight ? train_weight->gradient : nullptr,
                             train_bias ? train_bias->gradient : nullptr);
    }
    case Opcode::kDropout: {
      float* factors = at(op.mask);
      const float* x = at(op.x);
      float* y = at(op.y);
      if (masks) {
        (*masks)(op.number, elements, factors);
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
      loss_ = softmax_cross_entropy(at(op.x), at(op.other), at(op.dx), program_.classes, scale_);
      return;
  }
  fail(kDamaged, "The program has an operator of unknown kind %d.", op.opcode);
}

}  // namespace tinytl
