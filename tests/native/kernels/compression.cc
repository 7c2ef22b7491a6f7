// Maps in fewer bits.
#include "testing.h"

namespace tinytl {

// Rounding to the nearest, the sizes around a block, and what is no number.
void test_compression() {
  for (int64_t count : {1, 3, 63, 64, 65, 4096, 9001}) {
    const std::string name = "compress " + std::to_string(count);
    const auto size = size_t(count);
    Floats x = random_floats(count, -3, 3);
    x[size / 2] = 0;
    Floats y(size);
    std::vector<uint16_t> halves(size);
    compress_16(x.data(), halves.data(), count);
    decompress_16(halves.data(), y.data(), count);
    remember(y);
    for (size_t i = 0; i < size; ++i) {
      ++g_cases;
      if (!(std::abs(y[i] - x[i]) <= std::abs(x[i]) / 256)) fail(name, "bfloat16", i, double(y[i]), double(x[i]));
    }
    const size_t blocks = (size + kCompressedBlock - 1) / kCompressedBlock, bytes = (size + 3) / 4 * 4 + 4 * blocks;
    std::vector<uint8_t, Aligned<uint8_t>> codes(bytes + 1, 0x5a);
    compress_8(x.data(), codes.data(), count);
    decompress_8(codes.data(), y.data(), count);
    remember(y);
    ++g_cases;
    if (codes[bytes] != 0x5a) fail(name, "beyond", bytes, codes[bytes], 0x5a);
    for (size_t block = 0; block < blocks; ++block) {
      const size_t end = std::min(size, (block + 1) * kCompressedBlock);
      float largest = 0;
      for (size_t i = block * kCompressedBlock; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
      for (size_t i = block * kCompressedBlock; i < end; ++i) {
        ++g_cases;
        if (!(std::abs(y[i] - x[i]) <= largest / 254 * 1.0001f)) fail(name, "8 bits", i, double(y[i]), double(x[i]));
      }
    }
    x[0] = NAN;
    compress_16(x.data(), halves.data(), count);
    decompress_16(halves.data(), y.data(), count);
    ++g_cases;
    if (y[0] == y[0]) fail(name, "NaN in bfloat16", 0, double(y[0]), NAN);
    compress_8(x.data(), codes.data(), count);
    decompress_8(codes.data(), y.data(), count);
    ++g_cases;
    if (y[0] == y[0]) fail(name, "NaN in 8 bits", 0, double(y[0]), NAN);
  }
}

}  // namespace tinytl
