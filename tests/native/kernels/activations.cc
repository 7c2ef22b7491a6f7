// Curves and their slopes, against their formulas in double precision; slopes of channels.
#include "testing.h"

namespace tinytl {
namespace {

// What each is with, in nearly all networks, and with parameters of its own.
const Curve kCurves[] = {
    {Activation::kHardSwish, 1.0f / 6, 0.5f}, {Activation::kHardSwish, 0.25f, 0.25f},
    {Activation::kHardSigmoid, 1.0f / 6, 0.5f}, {Activation::kHardSigmoid, 0.2f, 0.5f},
    {Activation::kSigmoid}, {Activation::kSilu}, {Activation::kLeakyRelu, 0.01f}, {Activation::kLeakyRelu, -0.5f},
    {Activation::kElu, 1.0f}, {Activation::kElu, 0.5f}, {Activation::kGelu}, {Activation::kGeluTanh},
    {Activation::kSoftplus}, {Activation::kTanh}, {Activation::kMish},
    {Activation::kSqrt}, {Activation::kReciprocal}};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

double reference(double x, const Curve& curve) {
  const double alpha = double(curve.alpha), ramp = std::clamp(alpha * x + double(curve.beta), 0.0, 1.0);
  switch (curve.kind) {
    case Activation::kHardSwish: return x * ramp;
    case Activation::kHardSigmoid: return ramp;
    case Activation::kSigmoid: return sigmoid(x);
    case Activation::kSilu: return x * sigmoid(x);
    case Activation::kLeakyRelu: return x < 0 ? alpha * x : x;
    case Activation::kElu: return x < 0 ? alpha * std::expm1(x) : x;
    case Activation::kGelu: return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case Activation::kGeluTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kSoftplus: return softplus(x);
    case Activation::kTanh: return std::tanh(x);
    case Activation::kMish: return x * std::tanh(softplus(x));
    case Activation::kSqrt: return std::sqrt(x);
    case Activation::kReciprocal: return 1 / x;
    case Activation::kNone:
    case Activation::kClamp: break;
  }
  return x;
}

double slope(double x, const Curve& curve) {
  const double step = 1e-5 * std::max(1.0, std::abs(x));
  return (reference(x + step, curve) - reference(x - step, curve)) / (2 * step);
}

// Where a curve has kinks, which finite differences do not want, or is not.
bool is_near_kink(float x, const Curve& curve) {
  if (curve.kind == Activation::kSqrt) return x < 0.05f;
  if (curve.kind == Activation::kReciprocal) return std::abs(x) < 0.25f;
  if (curve.kind == Activation::kLeakyRelu || curve.kind == Activation::kElu) return std::abs(x) < 1e-3f;
  if (curve.kind != Activation::kHardSwish && curve.kind != Activation::kHardSigmoid) return false;
  const float ramp = curve.alpha * x + curve.beta;
  return std::abs(ramp) < 1e-3f || std::abs(ramp - 1) < 1e-3f;
}

void check_curve(const Curve& curve, int count) {
  const std::string name = name_of("curve", {count, int(curve.kind), int(100 * curve.alpha)});
  const size_t n = size_t(count);
  Floats x = random_floats(count, -12, 12), dy = random_floats(count);
  for (float& v : x) v = is_near_kink(v, curve) ? 0.5f : v;
  Floats y(n, NAN), dx(n, NAN), in_place = x, gradient = dy;
  Doubles wanted(n), wanted_dx(n);
  for (size_t i = 0; i < n; ++i) {
    wanted[i] = reference(double(x[i]), curve);
    wanted_dx[i] = slope(double(x[i]), curve) * double(dy[i]);
  }
  curve_forward(x.data(), y.data(), count, curve);
  curve_dx(x.data(), dy.data(), dx.data(), count, curve);
  curve_forward(in_place.data(), in_place.data(), count, curve);
  curve_dx(x.data(), gradient.data(), gradient.data(), count, curve);
  compare(name, "y", y, wanted);
  compare(name, "dx", dx, wanted_dx);
  compare(name, "y in place", in_place, wanted);
  compare(name, "dx in place", gradient, wanted_dx);
}

// Far out nothing overflows, and what is no number stays none.
void check_far_out(const Curve& curve) {
  if (curve.kind == Activation::kSqrt || curve.kind == Activation::kReciprocal) return;  // end, or begin, on the way
  const std::string name = name_of("curve", {int(curve.kind)});
  const Floats x{-1e30f, -1e4f, -104, -88, 88, 104, 1e4f, 1e30f, 0};
  Floats y(x.size()), dx(x.size());
  const Floats dy(x.size(), 1);
  curve_forward(x.data(), y.data(), int64_t(x.size()), curve);
  curve_dx(x.data(), dy.data(), dx.data(), int64_t(x.size()), curve);
  Doubles wanted, wanted_dx;
  for (float v : x) {
    const bool is_kink = v == 0 && (curve.kind == Activation::kLeakyRelu || curve.kind == Activation::kElu);
    wanted.push_back(std::abs(v) > 1e29f && curve.kind == Activation::kGeluTanh ? double(std::max(v, 0.0f))
                                                                                : reference(double(v), curve));
    // At a kink it is what PyTorch has: of the side below.
    wanted_dx.push_back(std::abs(v) > 1e29f ? slope(v < 0 ? -1e4 : 1e4, curve)
                        : is_kink           ? double(curve.alpha)
                                            : slope(double(v), curve));
  }
  compare(name, "far", y, wanted);
  if (curve.kind != Activation::kGeluTanh) compare(name, "far dx", dx, wanted_dx);
  const Floats unknown(5, NAN);
  curve_forward(unknown.data(), y.data(), 5, curve);
  for (size_t i = 0; i < 5; ++i) {
    ++g_cases;
    if (!std::isnan(y[i])) fail(name, "NaN", i, double(y[i]), NAN);
  }
}

// At the kinks of the hard curves their slopes are PyTorch's.
void check_kinks() {
  const Floats x{-3, 3}, dy{1, 1};
  Floats dx(2);
  curve_dx(Floats{0, 4}.data(), dy.data(), dx.data(), 2, {Activation::kSqrt});
  compare("square root", "dx of zero, as a norm's", dx, {0, 0.25});
  curve_dx(x.data(), dy.data(), dx.data(), 2, {Activation::kHardSwish, 1.0f / 6, 0.5f});
  compare("hard swish", "dx at its kinks", dx, {0, 1});
  curve_dx(x.data(), dy.data(), dx.data(), 2, {Activation::kHardSigmoid, 1.0f / 6, 0.5f});
  compare("hard sigmoid", "dx at its kinks", dx, {0, 0});
}

// Small results keep their relative precision: 5e-7 covers rounding x itself in the exponent.
void check_small_sigmoids() {
  const Curve curve{Activation::kSigmoid};
  for (float x = -86; x < 0; x += 0.0137f) {
    float y, dx, dy = 1;
    curve_forward(&x, &y, 1, curve);
    curve_dx(&x, &dy, &dx, 1, curve);
    const double gate = sigmoid(double(x)), wanted[] = {gate, gate * (1 - gate)};
    ++g_cases;
    if (std::abs(double(y) / wanted[0] - 1) > 5e-7) fail("sigmoid", "relative", 0, double(y), wanted[0]);
    if (std::abs(double(dx) / wanted[1] - 1) > 8e-7) fail("sigmoid", "relative dx", 0, double(dx), wanted[1]);
  }
}

void check_prelu(int pixels, int channels) {
  const std::string name = name_of("prelu", {pixels, channels});
  const Floats x = random_floats(pixels * channels), dy = random_floats(pixels * channels);
  const Floats slopes = random_floats(channels);
  Floats y(x.size(), NAN), dx = dy, dslope = random_floats(channels), dx_alone(x.size(), NAN);
  Doubles wanted(x.size()), wanted_dx(x.size()), wanted_dslope(dslope.begin(), dslope.end());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t c = i % size_t(channels);
    wanted[i] = double(x[i]) * (x[i] < 0 ? double(slopes[c]) : 1.0);
    wanted_dx[i] = double(dy[i]) * (x[i] > 0 ? 1.0 : double(slopes[c]));
    if (x[i] <= 0) wanted_dslope[c] += double(dy[i]) * double(x[i]);
  }
  prelu_forward(x.data(), y.data(), pixels, channels, slopes.data());
  prelu_backward(x.data(), dy.data(), dx_alone.data(), pixels, channels, slopes.data(), nullptr);
  prelu_backward(x.data(), dx.data(), dx.data(), pixels, channels, slopes.data(), dslope.data());
  compare(name, "y", y, wanted);
  compare(name, "dx", dx_alone, wanted_dx);
  compare(name, "dx in place", dx, wanted_dx);
  compare(name, "dslope", dslope, wanted_dslope, pixels);
}

}  // namespace

void test_activations() {
  for (const Curve& curve : kCurves) {
    for (int count : {0, 1, 3, 7, 8, 15, 16, 17, 64, 1003}) check_curve(curve, count);
    check_far_out(curve);
  }
  check_kinks();
  check_small_sigmoids();
  for (int pixels : {1, 7, 50}) {
    for (int channels : {1, 8, 37}) check_prelu(pixels, channels);
  }
}

}  // namespace tinytl
