#include "footprint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#ifdef __GLIBC__
#include <malloc.h>
#endif

extern "C" const char __executable_start, etext;  // the linker's

namespace tinytl {

int64_t peak_rss() {
  std::FILE* status = std::fopen("/proc/self/status", "r");
  if (!status) return 0;
  char line[256];
  long long kib = 0;
  while (std::fgets(line, sizeof line, status))
    if (std::strncmp(line, "VmHWM:", 6) == 0) kib = std::strtoll(line + 6, nullptr, 10);
  std::fclose(status);
  return kib * 1024;
}

int64_t resident() {
  const int file = ::open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  char text[128];
  const ssize_t length = ::read(file, text, sizeof text - 1);
  ::close(file);
  if (length <= 0) return 0;
  text[length] = '\0';
  const char* second = std::strchr(text, ' ');
  return second ? std::strtoll(second, nullptr, 10) * sysconf(_SC_PAGESIZE) : 0;
}

int64_t room_in(int64_t most) {
  constexpr int64_t kCode = 300'000;
  return std::max<int64_t>(most - resident() - kCode, 0);
}

std::string executable_name() {
  char path[4096];
  const ssize_t length = ::readlink("/proc/self/exe", path, sizeof path);
  const std::string found(path, length > 0 ? static_cast<size_t>(length) : 0);
  return found.substr(found.rfind('/') + 1);
}

void give_back_unused() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(&__executable_start) & ~(page - 1);
  const uintptr_t end = reinterpret_cast<uintptr_t>(&etext) & ~(page - 1);
  // Only advice: where it fails nothing is lost.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace tinytl
