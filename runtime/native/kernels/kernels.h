// The arithmetic of a training step on one sample: float32, NHWC.
//
// Every kernel is a plain function over pointers into the arena; who calls it has checked every size. Threads share the
// work of a kernel within it (parallel.h); the caller is one thread.
#pragma once

#include <cstdint>

namespace tinytl {

// A convolution or linear weight: float32, bfloat16 (the upper half of a float32), or int8 codes that stand for
// (code - zero) * scale[output channel, of all groups]. Layouts (row-major): dense and grouped
// [kh][kw][group][in/group][out/group], depthwise [kh][kw][channel], linear [in][out]. Exactly one of f32, bf16 and i8
// is set; scale goes with i8.
struct Weight {
  const float* f32 = nullptr;
  const uint16_t* bf16 = nullptr;
  const int8_t* i8 = nullptr;
  const float* scale = nullptr;
  float zero = 0;
};

// A clamp, which convolutions take in and whose gradient a mask bit an element decides; then curves, which stand by
// themselves and whose gradient needs their input.
enum class Activation : int32_t {
  kNone = 0,
  kClamp = 1,        // from alpha to beta
  kHardSwish = 2,    // x clip(alpha x + beta, 0, 1)
  kHardSigmoid = 3,  // clip(alpha x + beta, 0, 1)
  kSigmoid = 4,
  kSilu = 5,       // x sigmoid(x)
  kLeakyRelu = 6,  // alpha x of x < 0
  kElu = 7,        // alpha (exp(x) - 1) of x < 0
  kGelu = 8,       // x (1 + erf(x / sqrt 2)) / 2
  kGeluTanh = 9,   // its approximation, x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
  kSoftplus = 10,  // log(1 + exp(x))
  kTanh = 11,
  kMish = 12,        // x tanh(softplus(x))
  kSqrt = 13,
  kReciprocal = 14,  // 1 / x
};

// Of a clamp; as they are here, it clamps nothing.
struct Bounds {
  float low = -__builtin_inff();
  float high = __builtin_inff();

  bool clamps() const { return low > -__builtin_inff() || high < __builtin_inff(); }
};

struct Curve {
  Activation kind;
  float alpha = 0, beta = 0;
};

// What happens to a convolution's sums before they are stored: + bias, clamp, one mask bit an element
// (1: the gradient passes; strictly inside the bounds), bit i of the mask is bit i % 8 of byte i / 8.
struct Epilogue {
  const float* bias = nullptr;  // [channels], or none
  Bounds bounds = {};
  uint8_t* mask = nullptr;  // [(elements + 7) / 8], or none
  bool accumulate = false;  // added to what y holds, of a pointwise convolution only
};

// What happens to the gradient of a map before it is stored: added to what dx holds (not of a depthwise convolution), set
// to zero where the mask's bit is zero, summed over the pixels into db.
struct GradientEpilogue {
  const uint8_t* mask = nullptr;  // one bit an element of dx, or none
  float* db = nullptr;            // [channels of dx], added to, or none
  bool accumulate = false;
};

struct Geometry {
  int32_t in_height, in_width, in_channels;
  int32_t out_height, out_width, out_channels;
  int32_t kernel_height, kernel_width;
  int32_t stride_height, stride_width;
  int32_t pad_top, pad_left;
  int32_t dilation_height, dilation_width;
  int32_t groups;
};

// What a linear layer reads and writes for several samples: row r of each begins r * stride floats behind the first, and
// so does its mask.
struct LinearRows {
  const float* from;
  float* to;
  int32_t count;  // at most kMostLinearRows
  int64_t stride;
};
constexpr int32_t kMostLinearRows = 16;
// Row by row y[out] = sum_in x[in] w[in][out], and dx[in] = sum_out dy[out] w[in][out]. Masks are those of the first row;
// db is added to by all.
void linear_forward(const LinearRows& rows, int32_t in, int32_t out, const Weight& w, const Epilogue& epilogue);
void linear_dx(const LinearRows& rows, int32_t in, int32_t out, const Weight& w, const GradientEpilogue& epilogue);

// y[p][out] = sum_in x[p][in] w[in][out], for `pixels` pixels. A 1x1 convolution, or a linear layer of 1 pixel.
void pointwise_forward(const float* x, float* y, int32_t pixels, int32_t in, int32_t out, const Weight& w,
                       const Epilogue& epilogue);
// dx[p][in] = sum_out dy[p][out] w[in][out].
void pointwise_dx(const float* dy, float* dx, int32_t pixels, int32_t in, int32_t out, const Weight& w,
                  const GradientEpilogue& epilogue);
// dw[in][out] += sum_p x[p][in] dy[p][out].
void pointwise_dw(const float* x, const float* dy, float* dw, int32_t pixels, int32_t in, int32_t out);

void depthwise_forward(const float* x, float* y, const Geometry& g, const Weight& w, const Epilogue& epilogue);
void depthwise_dx(const float* dy, float* dx, const Geometry& g, const Weight& w, const GradientEpilogue& epilogue);
void depthwise_dw(const float* x, const float* dy, float* dw, const Geometry& g);

void conv_forward(const float* x, float* y, const Geometry& g, const Weight& w, const Epilogue& epilogue);
void conv_dx(const float* dy, float* dx, const Geometry& g, const Weight& w, const GradientEpilogue& epilogue);
void conv_dw(const float* x, const float* dy, float* dw, const Geometry& g);

// dx[i] = mask bit i ? dy[i] : 0; dx may be dy.
void mask_gradient(const float* dy, float* dx, const uint8_t* mask, int64_t elements);
// db[c] += sum_p dy[p][c].
void bias_gradient(const float* dy, float* db, int32_t pixels, int32_t channels);

// A map in fewer bits while nobody reads it: as bfloat16, or as int8 codes [elements, up to a multiple of 4] and behind
// them the scales of blocks, the largest magnitude / 127.
constexpr int kCompressedBlock = 64;
void compress_16(const float* x, uint16_t* y, int64_t elements);
void decompress_16(const uint16_t* x, float* y, int64_t elements);
void compress_8(const float* x, uint8_t* y, int64_t elements);
void decompress_8(const uint8_t* x, float* y, int64_t elements);

// y = x within bounds, y may be x; mask, or none, as a convolution's.
void clamp_map(const float* x, float* y, int64_t elements, const Bounds& bounds, uint8_t* mask);
// y = curve(x), y may be x.
void curve_forward(const float* x, float* y, int64_t elements, const Curve& curve);
// dx = dy * slope of the curve at x; dx may be dy.
void curve_dx(const float* x, const float* dy, float* dx, int64_t elements, const Curve& curve);
// y[p][c] = x[p][c], times slope[c] where it is negative; y may be x.
void prelu_forward(const float* x, float* y, int32_t pixels, int32_t channels, const float* slope);
// dslope is added to, or null; dx may be dy.
void prelu_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels, const float* slope,
                    float* dslope);

// y[p][c] = x[p][c % groups * (channels / groups) + c / groups]: what shuffles channels / groups groups of channels.
void shuffle(const float* x, float* y, int32_t pixels, int32_t channels, int32_t groups);
// y[p][i] = x[p][i] or, where it accumulates, += x[p][i], for `count` channels: x and y point to the first of each in
// pixel 0.
void copy_channels(const float* x, int32_t x_channels, float* y, int32_t y_channels, int32_t pixels, int32_t count,
                   bool accumulate);

// y[p][c] = x[p][c] * other[c]; y may be x. Two maps of one shape are one pixel of many channels. With dy as x it is
// also dx.
void multiply(const float* x, const float* other, float* y, int32_t pixels, int32_t channels);
// dother[c] = sum_p dy[p][c] x[p][c].
void multiply_dother(const float* dy, const float* x, float* dother, int32_t pixels, int32_t channels);

// y[i] = a[i] + b[i]; y may be a or b.
void add(const float* a, const float* b, float* y, int64_t elements);

// Means over windows. Of a window that reaches past the input include_pad counts what lies in the padding (which is as
// wide behind as before), and what lies past that never counts, as in PyTorch.
void average_pool_forward(const float* x, float* y, const Geometry& g, bool include_pad = true);
void average_pool_dx(const float* dy, float* dx, const Geometry& g, bool include_pad = true);
// The largest of each window; index[i] is the element of the window, row by row, that y[i] is: the first of equals;
// or index is none. It is of bytes where a window has at most 256 elements, otherwise of uint16_t. A window has at most
// 65536 elements, and at least one within the input.
void max_pool_forward(const float* x, float* y, void* index, const Geometry& g);
void max_pool_dx(const float* dy, const void* index, float* dx, const Geometry& g);
// y[c] = mean_p x[p][c]; dx[p][c] = dy[c] / pixels.
void global_pool_forward(const float* x, float* y, int32_t pixels, int32_t channels);
void global_pool_dx(const float* dy, float* dx, int32_t pixels, int32_t channels);

// Bilinear, half-pixel centres (align_corners=False); dx is the transposed map.
void upsample_forward(const float* x, float* y, const Geometry& g);
void upsample_dx(const float* dy, float* dx, const Geometry& g);

// A linear map of the rows of a map, or of its columns: for each of its results a band of inputs, first where it begins,
// then the weights of so many as there are taps.
struct Bands {
  const float* values;  // [results][1 + taps]
  int32_t taps;
};
// y[i][j] = sum over a, b of rows[i][a] * columns[j][b] * x[first row + a][first column + b]: pads, crops, slices, resizes
// and pools. dx is the transposed map.
void resample_forward(const float* x, float* y, const Geometry& g, const Bands& rows, const Bands& columns);
void resample_dx(const float* dy, float* dx, const Geometry& g, const Bands& rows, const Bands& columns);

// y = (x - mean) / sqrt(var + epsilon) * weight + bias, mean and var over the pixels and the channels of a group;
// statistics[group] = {mean, 1 / sqrt(var + epsilon)} are kept for the backward pass.
void group_norm_forward(const float* x, float* y, int32_t pixels, int32_t channels, int32_t groups, float epsilon,
                        const float* weight, const float* bias, float* statistics);
// dweight and dbias are added to, or null.
void group_norm_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels,
                         int32_t groups, const float* weight, const float* statistics, float* dweight, float* dbias);

// The same over the channels of each pixel; of rms the mean is not subtracted (and kept as 0), and it is the mean square
// that stands for the variance. statistics[pixels][2].
void channel_norm_forward(const float* x, float* y, int32_t pixels, int32_t channels, bool rms, float epsilon,
                          const float* weight, const float* bias, float* statistics);
// dweight and dbias are added to, or null; dx may be dy.
void channel_norm_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels, bool rms,
                           const float* weight, const float* statistics, float* dweight, float* dbias);

// AlexNet's local response normalisation (Krizhevsky et al. 2012, section 3.3), with s[c] = offset + alpha times the sum
// of squares of `size` neighbouring channels, (size - 1) / 2 of them before c: y = x s^-beta. dx may be dy.
struct ResponseWindow {
  int32_t size;  // at most kLargestResponseWindow
  float alpha, beta, offset;
};
constexpr int32_t kLargestResponseWindow = 64;
void response_norm_forward(const float* x, float* y, int32_t pixels, int32_t channels, const ResponseWindow& window);
void response_norm_dx(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels,
                      const ResponseWindow& window);

// y[p][c] = x[p][c] * weight[c] + bias[c], each of which may be null; the gradients are added to, or null; dx may be dy.
void affine_forward(const float* x, float* y, int32_t pixels, int32_t channels, const float* weight, const float* bias);
void affine_backward(const float* x, const float* dy, float* dx, int32_t pixels, int32_t channels,
                     const float* weight, float* dweight, float* dbias);

// loss = -sum targets * log_softmax(logits); dlogits = (softmax(logits) * sum targets - targets) * scale.
float softmax_cross_entropy(const float* logits, const float* targets, float* dlogits, int32_t classes, float scale);
// Multi-label: the mean over the classes of -t log sigmoid(logit) - (1 - t) log(1 - sigmoid(logit));
// dlogits = (sigmoid(logits) - targets) * scale / classes.
float sigmoid_cross_entropy(const float* logits, const float* targets, float* dlogits, int32_t classes, float scale);

// Elements that share a scale of their 8-bit moments.
constexpr int kMomentBlock = 128;

// What an optimizer remembers of the gradients: nothing, f32[elements], or codes[elements] with
// scales[ceil(elements / kMomentBlock)]. Zero bytes are a moment of zero, with which training starts.
struct Moment {
  float* f32 = nullptr;
  uint8_t* codes = nullptr;
  float* scales = nullptr;
};

// A parameter that trains, with float32 or bfloat16 values: exactly one of f32 and bf16 is set. Momentum keeps its
// velocity in `first`, Adam both moments.
struct Trained {
  int64_t elements = 0;
  float* f32 = nullptr;
  uint16_t* bf16 = nullptr;
  Moment first = {}, second = {};
};

// The mean gradient of a batch; exactly one is set.
struct Gradient {
  const float* f32 = nullptr;
  const uint16_t* bf16 = nullptr;
};

enum class Optimizer { kSgd, kMomentum, kAdam };

struct UpdateRule {
  Optimizer optimizer;
  float rate;
  int64_t step;   // 1 for the first
  uint64_t seed;  // of stochastic rounding; steps may share it, parameters should not
};

// One step, computed in float32; what is kept in fewer bits is rounded stochastically, so that changes far below its
// precision still add up. Momentum is 0.9; Adam is torch.optim.Adam with its defaults.
void update(const Trained& trained, const Gradient& gradient, const UpdateRule& rule);
// sums += gradient, rounded stochastically: the sum of a batch's gradients in bfloat16. Each call needs its own seed.
void add_rounded(const float* gradient, uint16_t* sums, int64_t elements, uint64_t seed);

// The most multiply-adds a second that one core of this machine does on float32 vectors of this build.
double peak_multiply_adds();

}  // namespace tinytl
