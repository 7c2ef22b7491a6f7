// The speed of every kernel on the shapes of a step, with as many threads as the first argument says (1):
//   g++ -std=gnu++20 -O3 -march=native -fno-math-errno -fno-trapping-math -pthread benchmarks/native_kernels.cc
//       runtime/native/kernels/*.cc -o native_kernels && ./native_kernels
#include <cstdlib>
#include <ctime>
#include <utility>

#include "../runtime/native/kernels/parallel.h"
#include "../runtime/native/kernels/simd.h"
#include "../tests/native/kernels/trained.h"
#include "../tests/native/kernels/weights.h"

namespace tinytl {
namespace {

constexpr Bounds kRelu6{.low = 0, .high = 6};
const std::pair<const char*, Curve> kCurves[] = {{"hard-swish", {Activation::kHardSwish, 1.0f / 6, 0.5f}},
                                                 {"hard-sigmoid", {Activation::kHardSigmoid, 1.0f / 6, 0.5f}},
                                                 {"sigmoid", {Activation::kSigmoid}},
                                                 {"SiLU", {Activation::kSilu}},
                                                 {"GELU", {Activation::kGelu}},
                                                 {"mish", {Activation::kMish}}};

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// The tenth percentile of many runs: what else runs on the machine slows some of them, and its clock may jump.
template <class Body>
double seconds(Body body) {
  std::vector<double> times;
  for (double total = 0; times.size() < 40 || total < 0.05; total += times.back()) {
    const double start = cpu_seconds();
    body();
    times.push_back(cpu_seconds() - start);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 10];
}

void print_rate(const std::string& name, double flop, double time, double best) {
  std::printf("%-44s %8.3f ms %7.1f GFLOP/s %5.1f %%\n", name.c_str(), time * 1e3, flop / time * 1e-9,
              flop / time * 1e-9 / best * 100);
}

void bench() {
  const double best = 2 * peak_multiply_adds() * 1e-9;
  std::printf("peak multiply-add: %.1f GFLOP/s, vectors of %d floats\n", best, kLanes);
  // Strips and chunks of maps, as a step runs them: an expansion (more channels out than in) is activated and masked,
  // and the gradient of what a projection reads is masked and summed.
  const int shapes[][3] = {{1792, 32, 16}, {1792, 16, 96}, {448, 96, 24},  {784, 24, 144},  {784, 144, 24},
                           {784, 32, 64},  {784, 64, 32},  {196, 96, 288}, {196, 288, 96},  {196, 64, 384},
                           {196, 384, 64}, {49, 160, 960}, {49, 960, 160}, {49, 320, 1280}, {1, 1280, 100}};
  for (const auto& s : shapes) {
    const int pixels = s[0], in = s[1], out = s[2];
    TestWeight w(int64_t(in) * out, out, Form::kInt8);
    const Floats x = random_floats(int64_t(pixels) * in), dy = random_floats(int64_t(pixels) * out);
    const Floats bias(size_t(out), 0.1f);
    Floats y(dy.size()), dx(x.size()), dw(size_t(in * out)), db(x.size());
    std::vector<uint8_t> mask(std::max(x.size(), dy.size()) / 8 + 1, 0x5a);
    const double flop = 2.0 * pixels * in * out;
    const Epilogue wide{bias.data(), kRelu6, mask.data()}, narrow{bias.data(), {}, nullptr};
    const GradientEpilogue masked{mask.data(), db.data()};
    print_rate(name_of("pointwise forward int8", {pixels, in, out}), flop, seconds([&] {
                 pointwise_forward(x.data(), y.data(), pixels, in, out, w.weight, out > in ? wide : narrow);
               }), best);
    print_rate(name_of("pointwise dx int8", {pixels, in, out}), flop, seconds([&] {
                 pointwise_dx(dy.data(), dx.data(), pixels, in, out, w.weight, out > in ? GradientEpilogue{} : masked);
               }), best);
    print_rate(name_of("pointwise dw", {pixels, in, out}), flop,
               seconds([&] { pointwise_dw(x.data(), dy.data(), dw.data(), pixels, in, out); }), best);
  }
  auto bench_conv = [&](const char* kind, const Geometry& g, bool depthwise) {
    const int groups = depthwise ? g.in_channels : g.groups;
    const int64_t taps = g.kernel_height * g.kernel_width, depth = g.in_channels / groups;
    TestWeight w(taps * depth * g.out_channels, g.out_channels,
                 depthwise || groups == 1 ? Form::kInt8 : Form::kFloat32);
    const Floats x = random_floats(int64_t(g.in_height) * g.in_width * g.in_channels);
    const Floats dy = random_floats(int64_t(g.out_height) * g.out_width * g.out_channels), bias(size_t(g.out_channels));
    Floats y(dy.size()), dx(x.size()), dw(w.values.size()), db(size_t(g.in_channels));
    std::vector<uint8_t> mask(std::max(x.size(), dy.size()) / 8 + 1, 0x5a);
    const double flop = 2.0 * double(dy.size()) * double(taps * depth);
    const Epilogue epilogue{bias.data(), kRelu6, mask.data()};
    const GradientEpilogue masked{mask.data(), db.data()};
    const std::string shape =
        name_of(kind, {g.in_height, g.in_width, g.in_channels, g.kernel_height, g.stride_height, g.groups});
    print_rate(shape + " forward", flop, seconds([&] {
                 (depthwise ? depthwise_forward : conv_forward)(x.data(), y.data(), g, w.weight, epilogue);
               }), best);
    print_rate(shape + " dx", flop, seconds([&] {
                 (depthwise ? depthwise_dx : conv_dx)(dy.data(), dx.data(), g, w.weight, masked);
               }), best);
    print_rate(shape + " dw", flop, seconds([&] {
                 (depthwise ? depthwise_dw : conv_dw)(x.data(), dy.data(), dw.data(), g);
               }), best);
  };
  const int depthwise[][5] = {{16, 112, 32, 3, 1}, {16, 112, 96, 3, 2}, {28, 28, 64, 3, 1},  {28, 28, 96, 3, 2},
                              {14, 14, 288, 3, 1}, {14, 14, 288, 3, 2}, {7, 7, 960, 3, 1},   {28, 28, 64, 5, 1},
                              {28, 28, 96, 5, 2},  {14, 14, 288, 5, 1}, {14, 14, 288, 5, 2}, {7, 7, 960, 5, 1},
                              {28, 28, 64, 7, 1},  {28, 28, 96, 7, 2},  {14, 14, 288, 7, 1}, {14, 14, 288, 7, 2},
                              {7, 7, 960, 7, 1}};
  for (const auto& d : depthwise) {
    const int pad = d[3] / 2;
    bench_conv("depthwise", geometry(d[0], d[1], d[2], d[2], d[3], d[3], d[4], d[4], pad, pad, pad, pad, d[2]), true);
  }
  for (int channels : {24, 48, 96, 160}) {
    const int size = channels == 24 ? 28 : channels == 48 ? 14 : 7;
    bench_conv("grouped", geometry(size, size, channels, channels, 5, 5, 1, 1, 2, 2, 2, 2, 2), false);
  }
  bench_conv("stem", geometry(32, 224, 3, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1), false);
  Floats big = random_floats(1204224), bias(96);
  std::vector<uint8_t> mask(big.size() / 8);
  auto print_speed = [&](const char* name, double time) {
    std::printf("%-44s %8.3f ms %7.2f elements/ns\n", name, time * 1e3, double(big.size()) / time * 1e-9);
  };
  print_speed("clamp + mask, 1.2 M", seconds([&] {
                clamp_map(big.data(), big.data(), int64_t(big.size()), kRelu6, mask.data());
              }));
  for (const auto& [name, curve] : kCurves) {
    Floats y(big.size());
    print_speed(name, seconds([&] { curve_forward(big.data(), y.data(), int64_t(big.size()), curve); }));
    print_speed((std::string(name) + " dx").c_str(), seconds([&] {
                  curve_dx(big.data(), y.data(), y.data(), int64_t(big.size()), curve);
                }));
  }
  print_speed("multiply by channel factors, in place", seconds([&] {
                multiply(big.data(), bias.data(), big.data(), 12544, 96);
              }));
  print_speed("multiply_dother", seconds([&] {
                multiply_dother(big.data(), big.data(), bias.data(), 12544, 96);
              }));
  const Geometry halved = geometry(112, 112, 96, 96, 3, 3, 2, 2, 1, 1, 1, 1, 1);
  Floats half(big.size() / 4);
  std::vector<uint8_t> index(half.size());
  print_speed("max_pool 3x3/2", seconds([&] { max_pool_forward(big.data(), half.data(), index.data(), halved); }));
  print_speed("max_pool_dx", seconds([&] { max_pool_dx(half.data(), index.data(), big.data(), halved); }));
  print_speed("average_pool 3x3/2", seconds([&] { average_pool_forward(big.data(), half.data(), halved); }));
  print_speed("average_pool_dx", seconds([&] { average_pool_dx(half.data(), big.data(), halved); }));
  big = random_floats(int64_t(big.size()));
  print_speed("mask_gradient", seconds([&] {
                mask_gradient(big.data(), big.data(), mask.data(), int64_t(big.size()));
              }));
  const Floats gradient = random_floats(int64_t(big.size()));
  for (Optimizer optimizer : {Optimizer::kSgd, Optimizer::kMomentum, Optimizer::kAdam}) {
    for (int form = 0; form < (optimizer == Optimizer::kSgd ? 2 : 4); ++form) {
      TestTrained t(big, form & 1, form & 2);
      if (optimizer != Optimizer::kAdam) t.trained.second = {};
      print_speed(name_of("update: optimizer, 16-bit, 8-bit", {int(optimizer), form & 1, form >> 1}).c_str(),
                  seconds([&] { update(t.trained, {.f32 = gradient.data()}, {optimizer, 1e-3f, 1, 1}); }));
    }
  }
  std::vector<uint16_t> sums(big.size());
  print_speed("add_rounded", seconds([&] { add_rounded(gradient.data(), sums.data(), int64_t(big.size()), 1); }));
  print_speed("bias_gradient", seconds([&] { bias_gradient(big.data(), bias.data(), 12544, 96); }));
}

}  // namespace
}  // namespace tinytl

int main(int argc, char** argv) {
  tinytl::start_threads(argc > 1 ? std::atoi(argv[1]) : 1);
  tinytl::bench();
}
