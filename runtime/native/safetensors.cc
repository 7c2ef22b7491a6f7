#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64  // before the first header: files beyond 2 GiB on 32-bit boards
#endif

#include "safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"

namespace tinytl {

static_assert(sizeof(off_t) == 8);
static_assert(std::endian::native == std::endian::little, "tensors are used as they lie in the file");

namespace {

constexpr uint64_t kHeaderLimit = 16 << 20;
constexpr char kMetadataName[] = "__metadata__";
// One read or write of Linux moves at most this much, and 32-bit sizes hold it.
constexpr size_t kMostAtOnce = size_t{1} << 30;

struct DTypeFacts {
  const char* name;
  uint8_t size;
};
constexpr DTypeFacts kDTypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"I16", 2}, {"U16", 2}, {"F16", 2}, {"BF16", 2},
                                  {"I32", 4},  {"U32", 4}, {"F32", 4}, {"I64", 8}, {"U64", 8}, {"F64", 8}};

bool dtype_from_name(std::string_view name, DType* dtype) {
  for (size_t i = 0; i < std::size(kDTypes); ++i) {
    if (name == kDTypes[i].name) {
      *dtype = static_cast<DType>(i);
      return true;
    }
  }
  return false;
}

// Bytes that a tensor needs; false: more than 64 bits can say. A dimension of 0 makes it 0, whatever the others are.
bool bytes_needed(DType dtype, const Shape& shape, uint64_t* bytes) {
  *bytes = 0;
  for (const int64_t side : shape) {
    if (side == 0) return true;
  }
  uint64_t product = item_size(dtype);
  for (const int64_t side : shape) {
    if (side < 0 || __builtin_mul_overflow(product, static_cast<uint64_t>(side), &product)) return false;
  }
  *bytes = product;
  return true;
}

// 0: done; -1: the file ends before; else errno.
int read_fully(int descriptor, void* out, size_t bytes, uint64_t offset) {
  char* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor, to, std::min(bytes, kMostAtOnce), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) return -1;
    to += got;
    bytes -= static_cast<size_t>(got);
    offset += static_cast<uint64_t>(got);
  }
  return 0;
}

[[noreturn]] void unreadable(const std::string& path, int error) {
  fail(kDamaged, "%s cannot be read: %s.", path.c_str(), std::strerror(error));
}

[[noreturn]] void damaged(const std::string& path, const std::string& what) {
  fail(kDamaged, "%s is not a usable safetensors file: %s.", path.c_str(), what.c_str());
}

bool size_from(const json::Value& value, int64_t* out) {
  *out = value.integer();
  return value.is_integer() && *out >= 0;
}

// One member of the header. Offsets count from the header's end, `base`.
TensorEntry checked_entry(const std::string& path, const std::string& name, const json::Value& fields, uint64_t base) {
  const json::Value* dtype = fields.find("dtype");
  const json::Value* shape = fields.find("shape");
  const json::Value* offsets = fields.find("data_offsets");
  TensorEntry entry{name, DType::kU8, {}, 0, 0};
  int64_t start = 0, stop = 0;
  bool well_formed = dtype != nullptr && dtype->is_string() && dtype_from_name(dtype->string(), &entry.dtype) &&
                     shape != nullptr && shape->is_array() && offsets != nullptr && offsets->is_array() &&
                     offsets->size() == 2 && size_from((*offsets)[0], &start) && size_from((*offsets)[1], &stop);
  for (size_t i = 0; well_formed && i < shape->size(); ++i) {
    well_formed = size_from((*shape)[i], &entry.shape.emplace_back());
  }
  if (!well_formed) damaged(path, "the entry of tensor " + quoted(name) + " is malformed");

  uint64_t needed = 0;
  if (stop < start || !bytes_needed(entry.dtype, entry.shape, &needed) ||
      static_cast<uint64_t>(stop - start) != needed) {
    damaged(path, "tensor " + quoted(name) + " has " + std::to_string(stop - start) +
                      " bytes, not what its shape needs");
  }
  entry.start = base + static_cast<uint64_t>(start);
  entry.bytes = needed;
  return entry;
}

// The tensors must fill the file from the header's end, `base`, to its end, `size`.
void check_layout(const std::string& path, const std::vector<TensorEntry>& entries, uint64_t base, uint64_t size) {
  std::vector<const TensorEntry*> by_place;
  for (const TensorEntry& entry : entries) by_place.push_back(&entry);
  std::sort(by_place.begin(), by_place.end(), [](const TensorEntry* a, const TensorEntry* b) {
    if (a->start != b->start) return a->start < b->start;
    return a->bytes != b->bytes ? a->bytes < b->bytes : a < b;
  });
  uint64_t end = base;
  for (const TensorEntry* entry : by_place) {
    if (entry->start != end) {
      damaged(path, "tensor " + quoted(entry->name) + " does not begin where the one before it ends");
    }
    end += entry->bytes;
  }
  if (end != size) {
    damaged(path, "it has " + std::to_string(size) + " bytes where its header describes " + std::to_string(end));
  }
}

}  // namespace

size_t item_size(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].size; }

const char* dtype_name(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }

std::string typed(DType dtype, const Shape& shape) {
  std::string text = dtype_name(dtype);
  text += " [";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

std::string quoted(std::string_view name) {
  // Python's repr, as far as names of tensors need it.
  const bool double_quotes = name.find('\'') != name.npos && name.find('"') == name.npos;
  const char quote = double_quotes ? '"' : '\'';
  std::string text(1, quote);
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      char code[8];
      std::snprintf(code, sizeof code, "\\x%02x", static_cast<unsigned>(c));
      text += c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : code;
      continue;
    }
    if (c == quote || c == '\\') text += '\\';
    text += c;
  }
  return text + quote;
}

uint32_t crc32(uint32_t crc, const void* data, size_t bytes) {
  // Half a byte at a time: 64 bytes of table, and an adapter is about a megabyte.
  static constexpr uint32_t kNibbles[16] = {0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4,
                                            0x4DB26158, 0x5005713C, 0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
                                            0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
  const unsigned char* from = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (size_t i = 0; i < bytes; ++i) {
    crc ^= from[i];
    crc = (crc >> 4) ^ kNibbles[crc & 15];
    crc = (crc >> 4) ^ kNibbles[crc & 15];
  }
  return ~crc;
}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    close();
    descriptor_ = std::exchange(other.descriptor_, -1);
  }
  return *this;
}

bool File::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  return descriptor < 0 || ::close(descriptor) == 0 || errno == EINTR;  // Linux has closed it all the same
}

// Reading ----------------------------------------------------------------------------------------------------------

MappedTensor::MappedTensor(MappedTensor&& other) noexcept { *this = std::move(other); }

MappedTensor& MappedTensor::operator=(MappedTensor&& other) noexcept {
  std::swap(pages_, other.pages_);
  std::swap(page_bytes_, other.page_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedTensor::~MappedTensor() {
  if (pages_ != nullptr) ::munmap(pages_, page_bytes_);
}

TensorFile TensorFile::open(const std::string& path) {
  TensorFile file;
  file.path_ = path;
  file.file_ = File(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a named pipe must not keep us waiting
  const int descriptor = file.file_.get();
  if (descriptor < 0 && errno == ENOENT) fail(kDamaged, "%s does not exist.", path.c_str());
  struct stat status;
  if (descriptor < 0 || ::fstat(descriptor, &status) != 0) unreadable(path, errno);
  if (S_ISDIR(status.st_mode)) unreadable(path, EISDIR);
  if (!S_ISREG(status.st_mode)) fail(kDamaged, "%s cannot be read: it is not a file.", path.c_str());

  const uint64_t size = static_cast<uint64_t>(status.st_size);
  uint64_t header_length = 0;
  int error = size < 8 ? -1 : read_fully(descriptor, &header_length, 8, 0);
  if (error > 0) unreadable(path, error);
  if (error < 0) damaged(path, "it is shorter than its own header");
  if (header_length > kHeaderLimit) damaged(path, "its header claims " + std::to_string(header_length) + " bytes");
  const uint64_t base = 8 + header_length;
  if (base > size) damaged(path, "it ends inside its header");
  std::string text(static_cast<size_t>(header_length), '\0');
  error = read_fully(descriptor, text.data(), text.size(), 8);
  if (error > 0) unreadable(path, error);
  if (error < 0) damaged(path, "it ends inside its header");

  json::Limits limits;
  limits.bytes = kHeaderLimit;
  const std::optional<json::Value> header = json::parse(text, limits);
  if (!header) damaged(path, "its header is not JSON");
  text = std::string();  // no longer needed, and a board has little memory
  if (!header->is_object()) damaged(path, "its header is not a JSON object");

  if (const json::Value* metadata = header->find(kMetadataName)) {
    bool is_table = metadata->is_object();
    for (size_t i = 0; is_table && i < metadata->size(); ++i) {
      is_table = (*metadata)[i].is_string();
      file.metadata_.emplace_back(metadata->name(i), (*metadata)[i].string());
    }
    if (!is_table) damaged(path, "its metadata is not a table of strings");
  }
  for (size_t i = 0; i < header->size(); ++i) {
    if (header->name(i) == kMetadataName) continue;
    file.entries_.push_back(checked_entry(path, header->name(i), (*header)[i], base));
  }
  check_layout(path, file.entries_, base, size);
  return file;
}

const TensorEntry* TensorFile::find(std::string_view name) const {
  for (const TensorEntry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const TensorEntry& TensorFile::entry(std::string_view name) const {
  const TensorEntry* found = find(name);
  if (found == nullptr) fail(kDamaged, "%s has no tensor named %s.", path_.c_str(), quoted(name).c_str());
  return *found;
}

const std::string* TensorFile::metadata(std::string_view key) const {
  for (const auto& [name, value] : metadata_) {
    if (name == key) return &value;
  }
  return nullptr;
}

void TensorFile::read(const TensorEntry& entry, void* out) const {
  if (entry.bytes > SIZE_MAX) unreadable(path_, EFBIG);
  read_part(entry, 0, static_cast<size_t>(entry.bytes), out);
}

void TensorFile::read_part(const TensorEntry& entry, uint64_t offset, size_t bytes, void* out) const {
  if (offset > entry.bytes || bytes > entry.bytes - offset) {
    fail(kInternal, "Bytes %llu to %llu of tensor %s were asked for, which has %llu.",
         static_cast<unsigned long long>(offset), static_cast<unsigned long long>(offset + bytes),
         quoted(entry.name).c_str(), static_cast<unsigned long long>(entry.bytes));
  }
  const int error = read_fully(file_.get(), out, bytes, entry.start + offset);
  if (error > 0) unreadable(path_, error);
  if (error < 0) {
    fail(kDamaged, "%s ends inside tensor %s: copy the file again.", path_.c_str(), quoted(entry.name).c_str());
  }
}

MappedTensor TensorFile::map(const TensorEntry& entry) const {
  MappedTensor mapped;
  if (entry.bytes == 0) return mapped;
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t before = entry.start % page;  // a mapping begins on a page
  if (entry.bytes > SIZE_MAX - page) unreadable(path_, EFBIG);
  struct stat status;  // pages beyond the end would kill us when they are touched
  if (::fstat(file_.get(), &status) != 0) unreadable(path_, errno);
  if (static_cast<uint64_t>(status.st_size) < entry.start + entry.bytes) {
    fail(kDamaged, "%s ends inside tensor %s: copy the file again.", path_.c_str(), quoted(entry.name).c_str());
  }
  const size_t page_bytes = static_cast<size_t>(before + entry.bytes);
  void* pages =
      ::mmap(nullptr, page_bytes, PROT_READ, MAP_PRIVATE, file_.get(), static_cast<off_t>(entry.start - before));
  if (pages == MAP_FAILED) unreadable(path_, errno);
  mapped.pages_ = pages;
  mapped.page_bytes_ = page_bytes;
  mapped.data_ = static_cast<const char*>(pages) + before;
  mapped.bytes_ = static_cast<size_t>(entry.bytes);
  return mapped;
}

// Writing ----------------------------------------------------------------------------------------------------------

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  struct stat status;
  if (::stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {  // /dev/null must survive
    fail(kStorage, "%s could not be written: there is something of that name that is not a file.", path_.c_str());
  }
  const size_t slash = path_.rfind('/');
  folder_ = slash == std::string::npos ? "." : slash == 0 ? "/" : path_.substr(0, slash);
  const std::string name = path_.substr(slash == std::string::npos ? 0 : slash + 1);
  for (size_t end = 0; end != std::string::npos && folder_ != "." && folder_ != "/";) {
    end = folder_.find('/', end + 1);
    if (::mkdir(folder_.substr(0, end).c_str(), 0777) != 0 && errno != EEXIST && errno != EROFS && errno != EACCES) {
      failed(errno);  // of those that are there already, some answer EROFS or EACCES; opening the file will tell
    }
  }
  // Not mkstemp: its mode 0600 would have to be undone, for which the umask must be changed to be read.
  const std::string prefix = folder_ + "/." + name + "." + std::to_string(::getpid()) + "-";
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::string candidate = prefix + std::to_string(attempt);
    const int descriptor = ::open(candidate.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor >= 0) {
      temporary_ = candidate;
      file_ = File(descriptor);
      return;
    }
    if (errno != EEXIST) break;  // left behind by a process of our number that a power cut ended
  }
  failed(errno);
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::failed(int error) const {
  fail(kStorage, "%s could not be written: %s.", path_.c_str(), std::strerror(error));
}

void AtomicFile::write(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(file_.get(), from, std::min(bytes, kMostAtOnce));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) failed(written < 0 ? errno : ENOSPC);
    from += written;
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  int synced;
  do {
    synced = ::fsync(file_.get());
  } while (synced != 0 && errno == EINTR);
  if (synced != 0 || !file_.close() || ::rename(temporary_.c_str(), path_.c_str()) != 0) failed(errno);
  temporary_.clear();
  // The file is in place; not every filesystem syncs a folder.
  const File folder(::open(folder_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY));
  if (folder.get() >= 0) ::fsync(folder.get());
}

void write_tensors(const std::string& path, const std::vector<TensorToWrite>& tensors, const Metadata& metadata) {
  json::Writer header;
  header.begin_object();
  if (!metadata.empty()) {
    header.begin_object(kMetadataName);
    for (const auto& [key, value] : metadata) header.text(key, value);
    header.end_object();
  }
  uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    uint64_t needed = 0;
    bool taken = tensor.name == kMetadataName;
    for (const TensorToWrite* other = tensors.data(); other != &tensor; ++other) taken |= other->name == tensor.name;
    if (taken || !bytes_needed(tensor.dtype, tensor.shape, &needed) || needed != tensor.bytes) {
      fail(kInternal, "Tensor %s cannot be written: its name is taken or its %zu bytes are not what %s needs.",
           quoted(tensor.name).c_str(), tensor.bytes, typed(tensor.dtype, tensor.shape).c_str());
    }
    header.begin_object(tensor.name).text("dtype", dtype_name(tensor.dtype)).begin_array("shape");
    for (const int64_t side : tensor.shape) header.integer(side);
    header.end_array().begin_array("data_offsets");
    header.integer(static_cast<int64_t>(offset)).integer(static_cast<int64_t>(offset + needed));
    header.end_array().end_object();
    offset += needed;
  }
  header.end_object();
  std::string text = header.str();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // tensors start on 8 bytes
  if (text.size() > kHeaderLimit) fail(kInternal, "%s would have a header beyond the limit.", path.c_str());

  AtomicFile file(path);
  const uint64_t length = text.size();
  file.write(&length, sizeof length);
  file.write(text.data(), text.size());
  for (const TensorToWrite& tensor : tensors) {
    if (tensor.produce) {
      tensor.produce([&](const void* data, size_t bytes) { file.write(data, bytes); });
    } else {
      file.write(tensor.data, tensor.bytes);
    }
  }
  file.commit();
}

}  // namespace tinytl
