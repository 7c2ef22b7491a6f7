#include "course.h"

#include "errors.h"

namespace tinytl {

Course Course::of(const Job& job, uint32_t count, int64_t batch_size) {
  Course course;
  std::vector<bool> out(count);
  for (const int64_t index : job.integers("held_out", 0, int64_t{count} - 1)) out[static_cast<size_t>(index)] = true;
  for (uint32_t i = 0; i < count; ++i) (out[i] ? course.held_out : course.others).push_back(i);
  if (course.others.empty()) fail(kUsage, "The job holds out all images.");
  for (const Job& told : job.objects("course")) {
    Stage stage{};
    stage.with_held_out = told.flag("with_held_out");
    stage.start = told.optional_text("start");
    if (stage.with_held_out) {
      for (uint32_t i = 0; i < count; ++i) stage.images.push_back(i);
    } else {
      stage.images = course.others;
    }
    stage.first_epoch = course.epochs();
    stage.epochs = told.integer("epochs", 0, 1 << 30);
    stage.first_step = course.steps();
    stage.steps_an_epoch = (static_cast<int64_t>(stage.images.size()) + batch_size - 1) / batch_size;
    course.stages.push_back(std::move(stage));
  }
  return course;
}

}  // namespace tinytl
