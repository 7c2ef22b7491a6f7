// Losses of classifiers of which some are surer than others. The counterpart of runtime/learning/scaled.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tinytl {

// Cross-entropies of logits [images][classes] times the one number by which their mean, by shares, is least.
// `has` [images][classes]: 1 for the classes that an image has; one of them, or (`multi_label`) any.
std::vector<double> scaled_losses(const std::vector<float>& logits, const std::vector<uint8_t>& has,
                                  const std::vector<double>& shares, bool multi_label);

}  // namespace tinytl
