#include "rows.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "../errors.h"
#include "../kernels/triangle.h"
#include "../write_all.h"

namespace tinytl {

RowFile::RowFile(const std::string& folder, int64_t length)
    : path_(folder + "/.features"), length_(length), width_(Triangle::padded(length)), padded_(static_cast<size_t>(width_)) {
  file_ = File(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (file_.get() < 0 || ::unlink(path_.c_str()) != 0) failed("be written");
}

void RowFile::append(const float* row) {
  std::copy(row, row + length_, padded_.begin());
  const size_t bytes = padded_.size() * sizeof(float);
  if (!write_all(file_.get(), reinterpret_cast<const char*>(padded_.data()), bytes)) failed("be written");
  ++count_;
}

void RowFile::read(int64_t first, int64_t count, float* out) const {
  auto* to = reinterpret_cast<char*>(out);
  auto left = static_cast<size_t>(count * width_) * sizeof(float);
  off_t at = static_cast<off_t>(first * width_) * static_cast<off_t>(sizeof(float));
  while (left > 0) {
    const ssize_t got = ::pread(file_.get(), to, left, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) failed("be read");
    to += got;
    at += got;
    left -= static_cast<size_t>(got);
  }
}

void RowFile::failed(const char* what) const {
  fail(kStorage, "%s could not %s: %s.", path_.c_str(), what, std::strerror(errno));
}

}  // namespace tinytl
