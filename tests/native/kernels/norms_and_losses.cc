// Norms over groups and over channels, scales and shifts, losses.
#include "testing.h"

namespace tinytl {
namespace {

void check_group_norms() {
  const int shapes[][3] = {{1, 4, 2}, {5, 6, 3}, {49, 24, 8}, {13, 35, 5}, {9, 7, 1}, {16, 8, 8}};
  for (const auto& shape : shapes) {
    for (float offset : {0.0f, 300.0f}) {
      const int pixels = shape[0], channels = shape[1], groups = shape[2], width = channels / groups;
      const std::string name = name_of("group_norm", {pixels, channels, groups, int(offset)});
      const Floats x = random_floats(pixels * channels, offset - 1, offset + 1);
      const Floats dy = random_floats(pixels * channels);
      const Floats weight = random_floats(channels), bias = random_floats(channels);
      Floats y(x.size(), NAN), dx(x.size(), NAN), statistics(size_t(2 * groups), NAN);
      Floats dweight = random_floats(channels), dbias = random_floats(channels);
      Doubles ry(x.size()), rdx(x.size()), rdw(dweight.begin(), dweight.end()), rdb(dbias.begin(), dbias.end());
      for (int group = 0; group < groups; ++group) {
        double mean = 0, variance = 0, sum = 0, slope = 0;
        auto each = [&](auto body) {
          for (int p = 0; p < pixels; ++p) {
            for (int c = group * width; c < (group + 1) * width; ++c) body(size_t(p * channels + c), size_t(c));
          }
        };
        const double count = pixels * width;
        each([&](size_t i, size_t) { mean += double(x[i]) / count; });
        each([&](size_t i, size_t) { variance += (double(x[i]) - mean) * (double(x[i]) - mean) / count; });
        const double inverse = 1 / std::sqrt(variance + 1e-5);
        auto normal = [&](size_t i) { return (double(x[i]) - mean) * inverse; };
        each([&](size_t i, size_t c) {
          ry[i] = normal(i) * double(weight[c]) + double(bias[c]);
          rdw[c] += double(dy[i]) * normal(i);
          rdb[c] += double(dy[i]);
          sum += double(dy[i]) * double(weight[c]) / count;
          slope += double(dy[i]) * double(weight[c]) * normal(i) / count;
        });
        each([&](size_t i, size_t c) {
          rdx[i] = (double(dy[i]) * double(weight[c]) - sum - normal(i) * slope) * inverse;
        });
      }
      const double depth = 100 + double(offset) * 300;  // the mean is kept in float32
      group_norm_forward(x.data(), y.data(), pixels, channels, groups, 1e-5f, weight.data(), bias.data(),
                         statistics.data());
      group_norm_backward(x.data(), dy.data(), dx.data(), pixels, channels, groups, weight.data(), statistics.data(),
                          dweight.data(), dbias.data());
      compare(name, "y", y, ry, depth);
      compare(name, "dx", dx, rdx, depth);
      compare(name, "dweight", dweight, rdw, depth);
      compare(name, "dbias", dbias, rdb, depth);

      affine_forward(x.data(), y.data(), pixels, channels, weight.data(), bias.data());
      Floats gradient = dy;
      rdw.assign(dweight.begin(), dweight.end());
      rdb.assign(dbias.begin(), dbias.end());
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t c = i % size_t(channels);
        ry[i] = double(x[i]) * double(weight[c]) + double(bias[c]);
        rdx[i] = double(dy[i]) * double(weight[c]);
        rdw[c] += double(dy[i]) * double(x[i]);
        rdb[c] += double(dy[i]);
      }
      affine_backward(x.data(), gradient.data(), gradient.data(), pixels, channels, weight.data(), dweight.data(),
                      dbias.data());
      compare("affine " + name, "y", y, ry);
      compare("affine " + name, "dx", gradient, rdx);
      compare("affine " + name, "dweight", dweight, rdw, depth);
      compare("affine " + name, "dbias", dbias, rdb, depth);
      affine_backward(x.data(), dy.data(), dx.data(), pixels, channels, weight.data(), nullptr, nullptr);
    }
  }
}

void check_sigmoid_loss() {
  for (int classes : {1, 2, 37}) {
    Floats logits = random_floats(classes, -30, 30), targets = random_floats(classes, 0, 1);
    for (float far : {0.0f, 1e30f, -1e30f}) {
      if (far != 0) logits[0] = far, targets[0] = far > 0 ? 1.0f : 0.0f;
      Floats dlogits(logits.size(), NAN);
      double loss = 0;
      Doubles wanted;
      for (size_t i = 0; i < logits.size(); ++i) {
        const double x = double(logits[i]), t = double(targets[i]), gate = 1 / (1 + std::exp(-x));
        if (std::abs(x) < 1e4) loss -= (t * std::log(gate) + (1 - t) * -std::log1p(std::exp(x))) / classes;
        wanted.push_back((gate - t) / classes * 0.125);
      }
      const float got = sigmoid_cross_entropy(logits.data(), targets.data(), dlogits.data(), classes, 0.125f);
      compare(name_of("sigmoid loss", {classes}), "loss", {got}, {loss});
      compare(name_of("sigmoid loss", {classes}), "dlogits", dlogits, wanted);
      compare(name_of("sigmoid loss", {classes}), "loss alone",
              {sigmoid_cross_entropy(logits.data(), targets.data(), nullptr, classes, 1)}, {loss});
    }
  }
}

void check_softmax_loss() {
  for (int classes : {1, 2, 10, 101}) {
    for (float scale : {1.0f, 0.125f}) {
      const Floats logits = random_floats(classes, -30, 90), targets = random_floats(classes, 0, 1);
      Floats dlogits(size_t(classes), NAN);
      double sum = 0, total = 0, loss = 0;
      for (float logit : logits) sum += std::exp(double(logit));
      for (float target : targets) total += double(target);
      Doubles wanted;
      for (size_t i = 0; i < logits.size(); ++i) {
        loss -= double(targets[i]) * (double(logits[i]) - std::log(sum));
        wanted.push_back((std::exp(double(logits[i])) / sum * total - double(targets[i])) * double(scale));
      }
      const float got = softmax_cross_entropy(logits.data(), targets.data(), dlogits.data(), classes, scale);
      compare(name_of("loss", {classes}), "loss", {got}, {loss}, 10);
      compare(name_of("loss", {classes}), "dlogits", dlogits, wanted, 10);
    }
  }
}

// Of each pixel's channels; weight and bias may be absent.
void check_channel_norm(int pixels, int channels, bool rms, bool scaled) {
  const std::string name = name_of("channel_norm", {pixels, channels, rms, scaled});
  const Floats x = random_floats(pixels * channels, -1, 3), dy = random_floats(pixels * channels);
  const Floats weight = random_floats(channels), bias = random_floats(channels);
  Floats y(x.size(), NAN), dx = dy, statistics(size_t(2 * pixels), NAN);
  Floats dweight = random_floats(channels), dbias = random_floats(channels);
  Doubles ry(x.size()), rdx(x.size()), rdw(dweight.begin(), dweight.end()), rdb(dbias.begin(), dbias.end());
  for (int p = 0; p < pixels; ++p) {
    const size_t first = size_t(p * channels), n = size_t(channels);
    double mean = 0, variance = 0, sum = 0, slope = 0;
    for (size_t c = 0; c < n && !rms; ++c) mean += double(x[first + c]) / channels;
    for (size_t c = 0; c < n; ++c) variance += std::pow(double(x[first + c]) - mean, 2) / channels;
    const double inverse = 1 / std::sqrt(variance + 1e-5);
    const auto normal = [&](size_t c) { return (double(x[first + c]) - mean) * inverse; };
    const auto scale = [&](size_t c) { return scaled ? double(weight[c]) : 1.0; };
    for (size_t c = 0; c < n; ++c) {
      ry[first + c] = normal(c) * scale(c) + (scaled ? double(bias[c]) : 0.0);
      rdw[c] += double(dy[first + c]) * normal(c);
      rdb[c] += double(dy[first + c]);
      sum += rms ? 0.0 : double(dy[first + c]) * scale(c) / channels;
      slope += double(dy[first + c]) * scale(c) * normal(c) / channels;
    }
    for (size_t c = 0; c < n; ++c) {
      rdx[first + c] = (double(dy[first + c]) * scale(c) - sum - normal(c) * slope) * inverse;
    }
  }
  const float* scales = scaled ? weight.data() : nullptr;
  channel_norm_forward(x.data(), y.data(), pixels, channels, rms, 1e-5f, scales, scaled ? bias.data() : nullptr,
                       statistics.data());
  channel_norm_backward(x.data(), dx.data(), dx.data(), pixels, channels, rms, scales, statistics.data(),
                        dweight.data(), dbias.data());
  // A single channel is its own mean: what is left of it is rounding, multiplied by 300.
  compare(name, "y", y, ry, 100);
  compare(name, "dx", dx, rdx, channels == 1 ? 1e5 : 200);
  compare(name, "dweight", dweight, rdw, 100);
  compare(name, "dbias", dbias, rdb, pixels);
}

void check_response_norm(int pixels, int channels, const ResponseWindow& window) {
  const std::string name = name_of("response_norm", {pixels, channels, window.size, int(100 * window.beta)});
  const int before = (window.size - 1) / 2, behind = window.size / 2;
  const Floats x = random_floats(pixels * channels, -3, 3), dy = random_floats(pixels * channels);
  Floats y(x.size(), NAN), dx = dy;
  Doubles ry(x.size()), rdx(x.size());
  const double alpha = double(window.alpha), beta = double(window.beta);
  for (int p = 0; p < pixels; ++p) {
    const size_t first = size_t(p * channels);
    for (int c = 0; c < channels; ++c) {
      const size_t at = first + size_t(c);
      const int begin = std::max(c - before, 0), end = std::min(c + behind + 1, channels);
      double s = double(window.offset);
      for (int k = begin; k < end; ++k) s += alpha * std::pow(double(x[first + size_t(k)]), 2);
      ry[at] = double(x[at]) * std::pow(s, -beta);
      rdx[at] += double(dy[at]) * std::pow(s, -beta);
      for (int k = begin; k < end; ++k)
        rdx[first + size_t(k)] -= 2 * alpha * beta * double(x[first + size_t(k)] * dy[at] * x[at]) * std::pow(s, -beta - 1);
    }
  }
  response_norm_forward(x.data(), y.data(), pixels, channels, window);
  response_norm_dx(x.data(), dx.data(), dx.data(), pixels, channels, window);
  compare(name, "y", y, ry, 10);
  compare(name, "dx", dx, rdx, 10 * window.size);
}

}  // namespace

void test_norms() {
  for (int channels : {1, 3, 16, 61}) {
    for (int size : {1, 2, 5, 64}) {
      for (float beta : {0.75f, 1.3f}) check_response_norm(9, channels, {size, 0.3f / float(size), beta, 1.5f});
    }
  }
  check_group_norms();
  for (int pixels : {1, 9, 200}) {
    for (int channels : {1, 5, 16, 48, 67}) {
      for (bool rms : {false, true}) {
        for (bool scaled : {false, true}) check_channel_norm(pixels, channels, rms, scaled);
      }
    }
  }
}

void test_losses() {
  check_softmax_loss();
  check_sigmoid_loss();
}

}  // namespace tinytl
