#include "features.h"

#include "../errors.h"
#include "../sampling.h"
#include "kept_features.h"

namespace tinytl {

StandIns StandIns::of(const Job& job) {
  StandIns found{job.optional_text("features"), job.flag("of_all"), job.integers("others", 0, 1 << 20)};
  const std::string kept = job.optional_text("kept_images");
  if (kept.empty()) return found;
  found.images = std::make_shared<const Dataset>(Dataset::open(kept));
  for (const int64_t index : job.integers("kept_learnt", 0, found.images->count() - 1))
    found.learnt.push_back(static_cast<uint32_t>(index));
  return found;
}

Features features_of(const Program& program, const Head& head, const Dataset& dataset, Samples& samples, Execution& execution,
                     const std::vector<uint32_t>& images, const StandIns& stand_ins, const std::string& folder,
                     const std::function<void(uint32_t)>& done) {
  Features found{RowFile(folder, head.features()), {}, {}};
  std::vector<float> features(static_cast<size_t>(head.features()));
  execution.observe([&](size_t number, const Record& op, const uint8_t* arena) {
    head.observe(number, op, arena, features.data());
  });
  const auto look_at = [&](const Dataset& of, Samples& from, uint32_t index) {
    from.fill(index, centre_crop(of.stored(), of.input()), 0, execution);
    execution.forward(nullptr);
    found.rows.append(features.data());
    if (of.multi_label())
      found.marks.insert(found.marks.end(), of.marks(index), of.marks(index) + program.classes);
    else
      found.labels.push_back(of.label(index));
  };
  for (const uint32_t index : images) {
    look_at(dataset, samples, index);
    done(static_cast<uint32_t>(found.rows.count()));
  }
  if (!stand_ins.learnt.empty()) {
    Samples kept(program, *stand_ins.images);
    for (const uint32_t index : stand_ins.learnt) look_at(*stand_ins.images, kept, index);
    found.stood_in += static_cast<int64_t>(stand_ins.learnt.size());
  }
  execution.observe(nullptr);
  if (stand_ins.features.empty()) return found;
  std::vector<int64_t> wanted = stand_ins.others;
  const KeptFeatures kept = KeptFeatures::open(stand_ins.features, head.features(), program.classes);
  if (wanted.empty()) {
    std::vector<bool> has_images(static_cast<size_t>(program.classes));
    for (uint32_t i = 0; i < dataset.count() && !stand_ins.of_all; ++i) has_images[static_cast<size_t>(dataset.label(i))] = true;
    for (int64_t i = 0; i < kept.count(); ++i)
      if (!has_images[static_cast<size_t>(kept.label(i))]) wanted.push_back(i);
  }
  for (const int64_t i : wanted) {
    if (i >= kept.count()) fail(kDamaged, "%s has no image %lld.", stand_ins.features.c_str(), static_cast<long long>(i));
    kept.read(i, features.data());
    found.rows.append(features.data());
    found.labels.push_back(kept.label(i));
    ++found.stood_in;
  }
  return found;
}

}  // namespace tinytl
