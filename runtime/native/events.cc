#include "events.h"

#include "write_all.h"

namespace tinytl {

namespace {
constexpr size_t kUsualLine = 1024;
}

Events::Events(int descriptor) : descriptor_(descriptor) { writer_.reserve(kUsualLine); }

json::Writer& Events::begin(const char* event) {
  writer_.clear();
  kind_ = event;
  return writer_.begin_object().text("event", event);
}

bool Events::send() {
  if (front_) return front_->hear(kind_, writer_);
  const std::string& line = writer_.end_object().end_line().str();
  return write_all(descriptor_, line.data(), line.size());
}

}  // namespace tinytl
