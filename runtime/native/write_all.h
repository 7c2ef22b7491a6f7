#pragma once

#include <cerrno>
#include <cstddef>
#include <unistd.h>

namespace tinytl {

// All of it, on a descriptor. False: it could not be written, errno says why.
inline bool write_all(int descriptor, const char* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor, data, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    data += written;
    bytes -= static_cast<size_t>(written);
  }
  return true;
}

}  // namespace tinytl
