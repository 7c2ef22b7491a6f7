// Updates in all precisions, against the formulas in double.
#include "trained.h"

namespace tinytl {
namespace {

const Optimizer kOptimizers[] = {Optimizer::kSgd, Optimizer::kMomentum, Optimizer::kAdam};

// The update as the books say, in double.
struct ReferenceUpdate {
  Doubles values, m, v;
  explicit ReferenceUpdate(const Floats& start) : values(start.begin(), start.end()), m(start.size()), v(m) {}
  void step(Optimizer optimizer, const Floats& gradient, double rate, int step) {
    for (size_t i = 0; i < values.size(); ++i) {
      const double g = double(gradient[i]);
      if (optimizer == Optimizer::kAdam) {
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.999 * v[i] + 0.001 * g * g;
        values[i] -= rate * (m[i] / (1 - std::pow(0.9, step))) / (std::sqrt(v[i] / (1 - std::pow(0.999, step))) + 1e-8);
      } else {
        m[i] = (optimizer == Optimizer::kMomentum ? 0.9 * m[i] : 0) + g;
        values[i] -= rate * m[i];
      }
    }
  }
};

void check_updates() {
  for (int count : {1, 5, 16, 127, 128, 129, 1003}) {
    for (Optimizer optimizer : kOptimizers) {
      const std::string name = name_of("update", {count, int(optimizer)});
      const Floats start = random_floats(count);
      TestTrained plain(start, false, false), moved(start, false, false);
      ReferenceUpdate reference(start);
      for (int step = 1; step <= 5; ++step) {
        Floats gradient = random_floats(count);
        std::vector<uint16_t> bf16;
        for (float& g : gradient) {
          uint32_t bits;
          std::memcpy(&bits, &g, sizeof(bits));
          bf16.push_back(static_cast<uint16_t>(bits >> 16));
          g = widened_bf16(bf16.back());
        }
        update(plain.trained, {.f32 = gradient.data()}, {optimizer, 0.01f, step, 1});
        update(moved.trained, {.bf16 = bf16.data()}, {optimizer, 0.01f, step, 2});
        reference.step(optimizer, gradient, double(0.01f), step);
      }
      compare(name, "values", plain.values(), reference.values, 5);
      check_same(name, "values of a bf16 gradient", moved.values(), plain.values());
      if (optimizer != Optimizer::kSgd) compare(name, "first moment", plain.first, reference.m, 5);
      if (optimizer == Optimizer::kAdam) compare(name, "second moment", plain.second, reference.v, 5);
    }
  }
}

// The moments that codes stand for: see optimizer.cc.
double magnitude(int code, int largest) {
  auto upper_bits = [&](int above) {
    const uint32_t bits = uint32_t(0x3f8 - largest + above) << 20;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return double(value);
  };
  return (upper_bits(code) - upper_bits(0)) / (1 - upper_bits(0));
}
double first_moment(const TestTrained& t, size_t i) {
  const int code = static_cast<int8_t>(t.trained.first.codes[i]);
  return double(t.trained.first.scales[i / kMomentBlock]) * magnitude(std::abs(code), 127) * (code < 0 ? -1 : 1);
}
double second_moment(const TestTrained& t, size_t i) {
  return double(t.trained.second.scales[i / kMomentBlock]) * magnitude(t.trained.second.codes[i], 255);
}

// Over many seeds the mean of what is stored is what was computed.
void check_rounding() {
  constexpr int kSeeds = 4000;
  const double deviations = 5 / std::sqrt(double(kSeeds));
  for (int count : {1, 130, 257}) {
    const std::string name = name_of("rounding", {count});
    const Floats start(size_t(count), 1.0f);
    Floats gradient = random_floats(count, -1, 1);
    Floats largest(3, 0.0f);
    for (size_t i = 0; i < gradient.size(); ++i) {
      gradient[i] = std::pow(gradient[i], 5.0f);
      largest[i / kMomentBlock] = std::max(largest[i / kMomentBlock], std::abs(gradient[i]));
    }
    Doubles value(start.size()), sum(start.size()), m(start.size()), v(start.size());
    ReferenceUpdate wanted(start);
    wanted.step(Optimizer::kAdam, gradient, 1e-3, 1);
    for (int seed = 0; seed < kSeeds; ++seed) {
      TestTrained t(start, true, true), same(start, true, true);
      update(t.trained, {.f32 = gradient.data()}, {Optimizer::kAdam, 1e-3f, 1, uint64_t(seed)});
      std::vector<uint16_t> sums(start.size(), 0x3f80);
      add_rounded(gradient.data(), sums.data(), count, uint64_t(seed));
      for (size_t i = 0; i < start.size(); ++i) {
        value[i] += double(t.values()[i]) / kSeeds;
        sum[i] += double(widened_bf16(sums[i])) / kSeeds;
        m[i] += first_moment(t, i) / kSeeds;
        v[i] += second_moment(t, i) / kSeeds;
      }
      if (seed > 10) continue;
      update(same.trained, {.f32 = gradient.data()}, {Optimizer::kAdam, 1e-3f, 1, uint64_t(seed)});
      ++g_cases;
      if (t.bf16 != same.bf16 || t.codes != same.codes) fail(name, "another result of the same seed", 0, 0, 0);
    }
    for (size_t i = 0; i < start.size(); ++i) {
      // Half a gap between two representable numbers is the largest deviation that a rounding can have.
      const double g = double(gradient[i]), m_scale = double(largest[i / kMomentBlock]) * 0.1;
      const double v_scale = m_scale * m_scale * 0.1;
      expect(name, "value", i, value[i], wanted.values[i], deviations / 256);
      expect(name, "sum", i, sum[i], 1 + g, deviations / 128);
      expect(name, "first moment", i, m[i], wanted.m[i], deviations * (std::abs(wanted.m[i]) / 16 + 2e-6 * m_scale));
      const double becomes_zero = v_scale < 1e-30 ? 1e-30 : 0;
      expect(name, "second moment", i, v[i], wanted.v[i],
             deviations * wanted.v[i] / 16 + 4e-11 * v_scale + becomes_zero);
    }
  }
}

// Adam in few bits ends where Adam in float32 does: near the minimum of a noisy quadratic of very unlike curvatures.
void check_low_precision_training() {
  constexpr int kCount = 700, kSteps = 300;
  const Floats start = random_floats(kCount), goal = random_floats(kCount);
  Floats steepness(start.size());
  for (size_t i = 0; i < start.size(); ++i) steepness[i] = std::pow(10.0f, float(int(i % 5)) - 3);
  for (Optimizer optimizer : {Optimizer::kMomentum, Optimizer::kAdam}) {
    double ends[4];
    for (int form = 0; form < 4; ++form) {
      TestTrained t(start, form & 1, form & 2);
      std::mt19937 random(11);
      std::normal_distribution<float> noise(0, 0.3f);
      for (int step = 1; step <= kSteps; ++step) {
        const Floats values = t.values();
        Floats gradient(start.size());
        for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = steepness[i] * (values[i] - goal[i] + noise(random));
        const float share = 1 - float(step - 1) / kSteps, rate = optimizer == Optimizer::kAdam ? 0.02f : 0.01f;
        update(t.trained, {.f32 = gradient.data()}, {optimizer, rate * share, step, 5});
        for (size_t i = 0; form & 2 && optimizer == Optimizer::kAdam && i < start.size(); ++i) {
          if (t.trained.first.codes[i] && !t.trained.second.codes[i]) {
            return fail("low precision", "second moment of 0 beside a first of", i, first_moment(t, i), 0);
          }
        }
      }
      double loss = 0;
      const Floats values = t.values();
      for (size_t i = 0; i < values.size(); ++i) loss += std::pow(double(values[i] - goal[i]), 2) / kCount;
      ends[form] = loss;
    }
    for (int form = 1; form < 4; ++form) {
      expect(name_of("low precision", {int(optimizer), form}), "distance", 0, ends[form], ends[0],
             (form & 1 ? 0.25 : 0.1) * ends[0]);
    }
  }
}

// With gradients of zero a second moment decays as it should, though each step is far below the distance of two codes.
void check_decay() {
  const int count = 512;
  TestTrained t(Floats(size_t(count)), false, true);
  Floats gradient(size_t(count), 1.0f);
  for (int i = 1; i < count; i += 2) gradient[size_t(i)] = 0.25f;
  for (int step = 1; step <= 2000; ++step) {
    update(t.trained, {.f32 = gradient.data()}, {Optimizer::kAdam, 0.0f, step, 3});
    if (step == 1000) {
      for (int i = 1; i < count; i += 2) gradient[size_t(i)] = 0;
    }
  }
  double even = 0, odd = 0;
  for (int i = 0; i < count; i += 2) {
    even += second_moment(t, size_t(i)) / (count / 2);
    odd += second_moment(t, size_t(i + 1)) / (count / 2);
  }
  expect("decay", "second moment", 0, even, 1 - std::pow(0.999, 2000), 0.02);
  const double wanted = 0.0625 * (1 - std::pow(0.999, 1000)) * std::pow(0.999, 1000);
  expect("decay", "second moment", 1, odd, wanted, 0.06 * wanted);
}

}  // namespace

void test_optimizers() {
  check_updates();
  check_rounding();
  check_low_precision_training();
  check_decay();
}

}  // namespace tinytl
