// Numbers by sample, read again and again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../safetensors.h"

namespace tinytl {

class Rows {
 public:
  virtual ~Rows() = default;

  virtual int64_t count() const = 0;
  // Of a row in numbers: a multiple of 16, of which the last may be zero throughout.
  virtual int64_t width() const = 0;
  // Reads rows [first, first + count) to out[count][width()].
  virtual void read(int64_t first, int64_t count, float* out) const = 0;
};

// Rows on the medium: features of many images need not be in memory. The file has no name, so nothing of it stays.
class RowFile : public Rows {
 public:
  // In a folder; `length` numbers of each row are given.
  RowFile(const std::string& folder, int64_t length);

  void append(const float* row);

  int64_t count() const override { return count_; }
  int64_t width() const override { return width_; }
  void read(int64_t first, int64_t count, float* out) const override;

 private:
  [[noreturn]] void failed(const char* what) const;

  std::string path_;
  File file_;
  int64_t length_, width_, count_ = 0;
  std::vector<float> padded_;  // a row
};

}  // namespace tinytl
