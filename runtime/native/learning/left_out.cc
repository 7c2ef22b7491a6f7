#include "left_out.h"

#include <cmath>

namespace tinytl {
namespace {

// The scale from which on a quantity that grows is positive.
template <typename Quantity>
double where(Quantity quantity) {
  double low = std::log(1e-5), high = std::log(1e2);
  for (int i = 0; i < 40; ++i) {
    const double middle = 0.5 * (low + high);
    (quantity(std::exp(middle)) > 0 ? high : low) = middle;
  }
  return std::exp(0.5 * (low + high));
}

}  // namespace

LeftOut::LeftOut(const LabelledRows& samples, int64_t most) {
  const size_t classes = samples.classes();
  for (size_t c = 0; c < classes; ++c) {
    present_.push_back(samples.of_class(c) > 0);
    classes_present_ += present_.back();
  }
  const int64_t room = std::max<int64_t>(most / static_cast<int64_t>(classes), 1);
  const int64_t each = (samples.count() + room - 1) / room;
  std::vector<int64_t> of_class(classes);
  for (int64_t i = 0; i < samples.count(); i += each) {
    if (samples.of_class(samples.label(i)) < 2 && samples.has_pairs()) continue;
    chosen_.push_back(i);
    labels_.push_back(samples.label(i));
    ++of_class[samples.label(i)];
  }
  double all = 0;
  for (const size_t label : labels_) all += 1 / static_cast<double>(of_class[label]);
  for (const size_t label : labels_) shares_.push_back(1 / static_cast<double>(of_class[label]) / all);
  scores_.resize(chosen_.size() * classes);
}

LeftOut::Mean LeftOut::at(double scale, double smoothing) const {
  const size_t classes = present_.size();
  Mean found;
  for (size_t n = 0; n < chosen_.size(); ++n) {
    const float* scores = &scores_[n * classes];
    const auto own = static_cast<double>(scores[labels_[n]]);
    double sum = 0, mean = 0, all = 0;
    for (size_t c = 0; c < classes; ++c) {
      if (!present_[c]) continue;
      const double above = static_cast<double>(scores[c]) - own;
      const double chance = std::exp(std::min(scale * above, 500.0));  // no overflow behind that
      sum += chance;
      mean += chance * above;
      all += smoothing / classes_present_ * above;
    }
    found.loss += shares_[n] * (std::log(sum) - scale * all);
    found.slope += shares_[n] * (mean / sum - all);
    found.sure += shares_[n] / sum;
  }
  return found;
}

double LeftOut::best_scale(double smoothing) const {
  return where([&](double scale) { return at(scale, smoothing).slope; });
}

double LeftOut::scale_of(double sure) const {
  return where([&](double scale) { return at(scale, 0).sure - sure; });
}

double LeftOut::accuracy() const {
  const size_t classes = present_.size();
  double right = 0;
  for (size_t n = 0; n < chosen_.size(); ++n) {
    const float* scores = &scores_[n * classes];
    bool beaten = false;
    for (size_t c = 0; c < classes; ++c) beaten |= present_[c] && c != labels_[n] && scores[c] >= scores[labels_[n]];
    if (!beaten) right += shares_[n];
  }
  return right;
}

std::vector<Sure> LeftOut::answers(double scale) const {
  const size_t classes = present_.size();
  std::vector<Sure> found;
  for (size_t n = 0; n < chosen_.size(); ++n) {
    const float* scores = &scores_[n * classes];
    size_t likeliest = labels_[n];
    for (size_t c = 0; c < classes; ++c)
      if (present_[c] && scores[c] > scores[likeliest]) likeliest = c;
    double sum = 0;
    for (size_t c = 0; c < classes; ++c)
      if (present_[c]) sum += std::exp(scale * static_cast<double>(scores[c] - scores[likeliest]));
    found.push_back({static_cast<float>(1 / sum), likeliest == labels_[n]});
  }
  return found;
}

}  // namespace tinytl
