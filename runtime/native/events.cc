#include "events.h"

#include <cerrno>
#include <unistd.h>

namespace tinytl {

namespace {
constexpr size_t kUsualLine = 1024;
}

Events::Events(int descriptor) : descriptor_(descriptor) { writer_.reserve(kUsualLine); }

json::Writer& Events::begin(const char* event) {
  writer_.clear();
  return writer_.begin_object().text("event", event);
}

bool Events::send() {
  const std::string& line = writer_.end_object().end_line().str();
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t written = ::write(descriptor_, line.data() + done, line.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    done += static_cast<size_t>(written);
  }
  return true;
}

}  // namespace tinytl
