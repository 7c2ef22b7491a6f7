// Classes that a classifier knows, when it is fitted anew because further ones come.
#pragma once

#include <vector>

#include "linear.h"

namespace tinytl {

// What becomes of the rows of known classes, `before` their discriminant and the further ones' was `found`, of samples of
// the classes that are `present`. A classifier that was trained is better than its discriminant, but only the discriminant
// weighs old classes and new ones against each other: so a known class keeps a quarter of what it had, and one without
// samples all of it.
//
// Rows count from the mean of the known classes that are present, which no probability tells.
void keep_known(const Linear& before, const std::vector<bool>& present, Linear* found);

}  // namespace tinytl
