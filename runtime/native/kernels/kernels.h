// The arithmetic of a training step on one sample: float32, NHWC, one thread.
//
// Every kernel is a plain function over pointers into the arena; who calls it has checked every size.
#pragma once

#include <cstdint>

namespace tinytl {

// A convolution or linear weight: float32 while it trains, int8 with one scale an output channel when frozen.
// Layouts (row-major): dense and grouped [kh][kw][group][in/group][out/group], depthwise [kh][kw][channel],
// linear [in][out]. Exactly one of f32 and i8 is set; scale[out] goes with i8.
struct Weight {
  const float* f32 = nullptr;
  const int8_t* i8 = nullptr;
  const float* scale = nullptr;
};

enum class Activation : int32_t { kNone = 0, kRelu = 1, kRelu6 = 2 };

// What happens to a convolution's sums before they are stored: + bias, activation, one mask bit an element
// (1: the gradient passes; strictly inside the linear range), bit i of the mask is bit i % 8 of byte i / 8.
struct Epilogue {
  const float* bias = nullptr;  // [channels], or none
  Activation activation = Activation::kNone;
  uint8_t* mask = nullptr;  // [(elements + 7) / 8], or none
};

struct Geometry {
  int32_t in_height, in_width, in_channels;
  int32_t out_height, out_width, out_channels;
  int32_t kernel_height, kernel_width;
  int32_t stride_height, stride_width;
  int32_t pad_top, pad_left;
  int32_t groups;
};

// y[p][out] = sum_in x[p][in] w[in][out], for `pixels` pixels. A 1x1 convolution, or a linear layer of 1 pixel.
void pointwise_forward(const float* x, float* y, int32_t pixels, int32_t in, int32_t out, const Weight& w,
                       const Epilogue& epilogue);
// dx[p][in] = sum_out dy[p][out] w[in][out].
void pointwise_dx(const float* dy, float* dx, int32_t pixels, int32_t in, int32_t out, const Weight& w);
// dw[in][out] += sum_p x[p][in] dy[p][out].
void pointwise_dw(const float* x, const float* dy, float* dw, int32_t pixels, int32_t in, int32_t out);

void depthwise_forward(const float* x, float* y, const Geometry& g, const Weight& w, const Epilogue& epilogue);
void depthwise_dx(const float* dy, float* dx, const Geometry& g, const Weight& w);
void depthwise_dw(const float* x, const float* dy, float* dw, const Geometry& g);

void conv_forward(const float* x, float* y, const Geometry& g, const Weight& w, const Epilogue& epilogue);
void conv_dx(const float* dy, float* dx, const Geometry& g, const Weight& w);
void conv_dw(const float* x, const float* dy, float* dw, const Geometry& g);

// dx[i] = mask bit i ? dy[i] : 0; dx may be dy.
void mask_gradient(const float* dy, float* dx, const uint8_t* mask, int64_t elements);
// db[c] += sum_p dy[p][c].
void bias_gradient(const float* dy, float* db, int32_t pixels, int32_t channels);

// y = activation(x), y may be x.
void activate(const float* x, float* y, int64_t elements, Activation activation, uint8_t* mask);
// y[i] = a[i] + b[i]; y may be a or b.
void add(const float* a, const float* b, float* y, int64_t elements);

// Means over windows without padding; windows that would reach past the input are dropped (floor).
void average_pool_forward(const float* x, float* y, const Geometry& g);
void average_pool_dx(const float* dy, float* dx, const Geometry& g);
// y[c] = mean_p x[p][c]; dx[p][c] = dy[c] / pixels.
void global_pool_forward(const float* x, float* y, int32_t pixels, int32_t channels);
void global_pool_dx(const float* dy, float* dx, int32_t pixels, int32_t channels);

// Bilinear, half-pixel centres (align_corners=False); dx is the transposed map.
void upsample_forward(const float* x, float* y, const Geometry& g);
void upsample_dx(const float* dy, float* dx, const Geometry& g);

// y = (x - mean) / sqrt(var + epsilon) * weight + bias, mean and var over the pixels and the channels of a group;
// statistics[group] = {mean, 1 / sqrt(var + epsilon)} are kept for the backward pass.
void group_norm_forward(const float* x, float* y, int32_t pixels, int32_t channels, int32_t groups, float epsilon,
                        const float* weight, const float* bias, float* statistics);
// dweight and dbias are added to, or null.
void group_norm_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels,
                         int32_t groups, const float* weight, const float* statistics, float* dweight, float* dbias);

// y[p][c] = x[p][c] * weight[c] + bias[c]; the gradients are added to, or null; dx may be dy.
void affine_forward(const float* x, float* y, int32_t pixels, int32_t channels, const float* weight, const float* bias);
void affine_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels,
                     const float* weight, float* dweight, float* dbias);

// loss = -sum targets * log_softmax(logits); dlogits = (softmax(logits) * sum targets - targets) * scale.
float softmax_cross_entropy(const float* logits, const float* targets, float* dlogits, int32_t classes, float scale);

// The optimizers, elementwise; gradients are mean gradients of the batch. Adam as in torch.optim.Adam.
void sgd_update(float* parameter, const float* gradient, int64_t elements, float rate);
void momentum_update(float* parameter, const float* gradient, float* velocity, int64_t elements, float rate,
                     float momentum);
void adam_update(float* parameter, const float* gradient, float* m, float* v, int64_t elements, float rate,
                 int64_t step);

}  // namespace tinytl
