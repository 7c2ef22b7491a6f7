// Safetensors files: header checks, reads of one tensor, atomic writes; the counterpart of runtime/tensors.py.
//
// A file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes without holes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "errors.h"

namespace tinytl {

enum class DType : uint8_t { kBool, kU8, kI8, kI16, kU16, kF16, kBF16, kI32, kU32, kF32, kI64, kU64, kF64 };

size_t item_size(DType dtype);
const char* dtype_name(DType dtype);  // "F32"

using Shape = std::vector<int64_t>;
using Metadata = std::vector<std::pair<std::string, std::string>>;  // in the order of the header
// "F32 [2, 3]", for messages.
std::string typed(DType dtype, const Shape& shape);
// 'name', with what a terminal should not get escaped, for messages.
std::string quoted(std::string_view name);

// zlib's CRC-32 of `bytes` more bytes; begins with 0. An adapter's metadata `crc32` is over all its tensors' bytes.
uint32_t crc32(uint32_t crc, const void* data, size_t bytes);

// A descriptor that closes itself.
class File {
 public:
  File() = default;
  explicit File(int descriptor) : descriptor_(descriptor) {}
  File(File&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  File& operator=(File&& other) noexcept;
  ~File() { close(); }

  int get() const { return descriptor_; }
  bool close();  // false: what was written may not have arrived

 private:
  int descriptor_ = -1;
};

// Reading ----------------------------------------------------------------------------------------------------------

// Where one tensor lies. Offsets are of 64 bits on every board.
struct TensorEntry {
  std::string name;
  DType dtype;
  Shape shape;
  uint64_t start;  // from the file's first byte
  uint64_t bytes;
};

// A whole tensor, mapped read-only: its pages are the kernel's, which takes them back when memory is short. Outlives
// the TensorFile. Reading it kills the process if the file is made shorter in place (ours are only ever replaced).
class MappedTensor {
 public:
  MappedTensor() = default;
  MappedTensor(MappedTensor&& other) noexcept;
  MappedTensor& operator=(MappedTensor&& other) noexcept;
  ~MappedTensor();

  const void* data() const { return data_; }  // aligned as `start` is: on 8 bytes if all tensors before are; or null
  size_t bytes() const { return bytes_; }

 private:
  friend class TensorFile;
  void* pages_ = nullptr;
  size_t page_bytes_ = 0;
  const void* data_ = nullptr;
  size_t bytes_ = 0;
};

// A checked header. The file stays open, so that replacing it does not mix two files. All faults are Failures of
// kDamaged, with one sentence that names the file.
class TensorFile {
 public:
  // Reads and checks the header: sizes, dtypes, no holes, no overlaps, nothing after the end. Reads no tensor.
  static TensorFile open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<TensorEntry>& entries() const { return entries_; }  // in the order of the header
  const TensorEntry* find(std::string_view name) const;                 // or null
  const TensorEntry& entry(std::string_view name) const;                // or fails: there is none
  const Metadata& metadata() const { return metadata_; }
  const std::string* metadata(std::string_view key) const;  // or null

  // Copies a tensor, or `bytes` of it from `offset` on, which must lie inside; `out` has room for them.
  void read(const TensorEntry& entry, void* out) const;
  void read_part(const TensorEntry& entry, uint64_t offset, size_t bytes, void* out) const;
  MappedTensor map(const TensorEntry& entry) const;

 private:
  std::string path_;
  File file_;
  std::vector<TensorEntry> entries_;
  Metadata metadata_;
};

// Writing ----------------------------------------------------------------------------------------------------------

// A file that appears under its name only when complete: written beside it, fsync, rename, fsync of the folder.
// Missing folders are made. All faults are Failures of kStorage; what was there before stays.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();  // removes what was not committed

  void write(const void* data, size_t bytes);
  void commit();

 private:
  [[noreturn]] void failed(int error) const;

  std::string path_;
  std::string folder_;
  std::string temporary_;  // empty when there is nothing to remove
  File file_;
};

// Takes the next bytes of a tensor.
using Sink = std::function<void(const void* data, size_t bytes)>;

struct TensorToWrite {
  std::string name;
  DType dtype;
  Shape shape;
  const void* data;
  size_t bytes;
  std::function<void(const Sink&)> produce{};  // makes them piece by piece, in place of data
};

// Writes a safetensors file, atomically: byte for byte what runtime/tensors.py writes. The first tensor starts on 8
// bytes, the others where the one before ends: put those of wide types first.
void write_tensors(const std::string& path, const std::vector<TensorToWrite>& tensors, const Metadata& metadata);

}  // namespace tinytl
