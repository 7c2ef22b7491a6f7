#include "features.h"

#include "../errors.h"
#include "../sampling.h"
#include "kept_features.h"

namespace tinytl {

StandIns StandIns::of(const Job& job) {
  return {job.optional_text("features"), job.flag("of_all"), job.integers("others", 0, 1 << 20)};
}

Features features_of(const Program& program, const Head& head, const Dataset& dataset, Samples& samples, Execution& execution,
                     const std::vector<uint32_t>& images, const StandIns& stand_ins, const std::string& folder,
                     const std::function<void(uint32_t)>& done) {
  Features found{RowFile(folder, head.features()), {}, {}};
  std::vector<float> features(static_cast<size_t>(head.features()));
  execution.observe([&](size_t number, const Record& op, const uint8_t* arena) {
    head.observe(number, op, arena, features.data());
  });
  const Crop crop = centre_crop(dataset.stored(), dataset.input());
  for (const uint32_t index : images) {
    samples.fill(index, crop, 0, execution);
    execution.forward(nullptr);
    found.rows.append(features.data());
    if (dataset.multi_label())
      found.marks.insert(found.marks.end(), dataset.marks(index), dataset.marks(index) + program.classes);
    else
      found.labels.push_back(dataset.label(index));
    done(static_cast<uint32_t>(found.rows.count()));
  }
  execution.observe(nullptr);
  if (stand_ins.features.empty()) return found;
  std::vector<bool> has_images(static_cast<size_t>(program.classes));
  for (uint32_t i = 0; i < dataset.count() && !stand_ins.of_all && stand_ins.others.empty(); ++i) has_images[static_cast<size_t>(dataset.label(i))] = true;
  const KeptFeatures others = KeptFeatures::open(stand_ins.features, head.features(), program.classes);
  std::vector<int64_t> wanted = stand_ins.others;
  for (int64_t i = 0; i < others.count() && stand_ins.others.empty(); ++i)
    if (!has_images[static_cast<size_t>(others.label(i))]) wanted.push_back(i);
  for (const int64_t i : wanted) {
    if (i >= others.count()) fail(kDamaged, "%s has no image %lld.", stand_ins.features.c_str(), static_cast<long long>(i));
    others.read(i, features.data());
    found.rows.append(features.data());
    found.labels.push_back(others.label(i));
    ++found.stood_in;
  }
  return found;
}

}  // namespace tinytl
