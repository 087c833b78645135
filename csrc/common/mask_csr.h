#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fullspectrum {

// The places of the ones of a row-major 0/1 matrix, one bit a cell: reads the bytes once, eight at
// a time.
class MaskBits {
 public:
  MaskBits(const uint8_t* mask, int64_t rows, int64_t cols)  // [rows, cols]
      : rows_(rows), cols_(cols), words_((cols + 63) / 64), bits_(rows * words_, 0) {
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t* from = mask + row * cols;
      uint64_t* to = bits_.data() + row * words_;
      for (int64_t col = 0; col < cols; col += 8) {
        uint64_t bytes = 0;
        std::memcpy(&bytes, from + col, std::min<int64_t>(8, cols - col));
        // gathers the lowest bit of each byte in the highest byte (little-endian)
        const uint64_t byte = ((bytes & 0x0101010101010101u) * 0x0102040810204080u) >> 56;
        to[col / 64] |= byte << (col % 64);
      }
    }
  }

  // Starts of the rows, [rows + 1], and whether each column has a one, [cols].
  std::vector<int64_t> offsets(std::vector<uint64_t>& live) const {
    std::vector<int64_t> offset{0};
    offset.reserve(rows_ + 1);
    live.assign(words_, 0);
    for (int64_t row = 0; row < rows_; ++row) {
      int64_t count = 0;
      for (int64_t w = 0; w < words_; ++w) {
        const uint64_t word = bits_[row * words_ + w];
        count += ones(word);
        live[w] |= word;
      }
      offset.push_back(offset.back() + count);
    }
    return offset;
  }

  // Columns of the ones, row by row.
  template <typename index_t>
  void columns(index_t* out) const {
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t w = 0; w < words_; ++w) {
        for (uint64_t word = bits_[row * words_ + w]; word != 0; word &= word - 1) {
          *out++ = static_cast<index_t>(64 * w + __builtin_ctzll(word));
        }
      }
    }
  }

  static int64_t ones(uint64_t word) { return __builtin_popcountll(word); }

 private:
  int64_t rows_;
  int64_t cols_;
  int64_t words_;
  std::vector<uint64_t> bits_;  // [rows, words]
};

}  // namespace fullspectrum
