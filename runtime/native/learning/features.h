// What a program's classifier reads of images, and of kept ones that are not at hand.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../dataset.h"
#include "../execute.h"
#include "../job.h"
#include "../program.h"
#include "../samples.h"
#include "head.h"
#include "rows.h"

namespace tinytl {

// Features that stand in for images that are not at hand: a file of them ("": there is none), of all classes, or of those of
// which the dataset has none, or those that are numbered. And images of the place where a classifier comes from, of which
// those that are numbered are learnt from, too.
struct StandIns {
  static StandIns of(const Job& job);

  bool of_another_place() const { return !others.empty() || !learnt.empty(); }

  std::string features;
  bool of_all = false;
  std::vector<int64_t> others;
  std::shared_ptr<const Dataset> images{};
  std::vector<uint32_t> learnt{};
};

// And their labels; multi-label, which classes each has. The last ones stood in.
struct Features {
  RowFile rows;
  std::vector<int32_t> labels;
  std::vector<uint8_t> marks;  // [rows.count()][classes]
  int64_t stood_in = 0;
};

// `folder`: for what need not be in memory. `done` is called behind every image.
Features features_of(const Program& program, const Head& head, const Dataset& dataset, Samples& samples, Execution& execution,
                     const std::vector<uint32_t>& images, const StandIns& stand_ins, const std::string& folder,
                     const std::function<void(uint32_t)>& done);

}  // namespace tinytl
