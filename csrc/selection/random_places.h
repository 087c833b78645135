#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "common/csr.h"

namespace fullspectrum {

// Places where nothing is stored, drawn by their ranks among all such places: a free place stands
// as many places behind its rank as entries are stored before it. Ranks are drawn in buckets of
// kBucket: first how many of each bucket, then which, each bucket with random numbers of its own.
// So buckets may be worked on in any order, and every device draws the same.
constexpr int kBucketBits = 12;
constexpr int64_t kBucket = int64_t{1} << kBucketBits;
constexpr int64_t kBucketWords = kBucket / 64;

// splitmix64 (Steele et al. 2014).
constexpr uint64_t mixed(uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

// Random numbers that depend on the seed and the stream's number alone.
class RandomStream {
 public:
  constexpr RandomStream(uint64_t seed, uint64_t stream)
      : state_(mixed(mixed(seed) ^ (stream * 0xd1342543de82ef95u))) {}

  // Uniform in [0, 2^bits), bits from 1 to 64.
  constexpr uint64_t next(int bits) {
    state_ += 0x9e3779b97f4a7c15u;
    return mixed(state_) >> (64 - bits);
  }

 private:
  uint64_t state_;
};

// What is drawn of the ranks below `free`: those that are chosen or, where these are more than
// half, those that are not.
struct RandomPlaces {
  int64_t rows;
  int64_t free;
  int64_t count;  // chosen
  bool is_inverted;
  uint64_t seed;
  std::vector<int64_t> first;  // chosen ranks before each bucket, and all of them; [buckets + 1]

  int64_t buckets() const { return static_cast<int64_t>(first.size()) - 1; }
};

// Checks the arguments and draws how many ranks of each bucket are chosen: rank after rank out of
// those that are left, as if they were drawn from all at once.
RandomPlaces draw_shares(
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    int64_t cols,
    int64_t count,
    int64_t seed
);

// Draws which ranks of a bucket are chosen, as bits: `chosen` of the first `size`.
constexpr void draw_bucket(
    uint64_t* words,  // [kBucketWords]
    int64_t size,
    int64_t chosen,
    bool is_inverted,
    RandomStream stream
) {
  for (int64_t word = 0; word < kBucketWords; ++word) {
    const int64_t left = size - 64 * word;
    const uint64_t inside = left >= 64 ? ~uint64_t{0} : left > 0 ? (uint64_t{1} << left) - 1 : 0;
    words[word] = is_inverted ? inside : 0;
  }
  for (int64_t left = is_inverted ? size - chosen : chosen; left > 0;) {
    const int64_t rank = static_cast<int64_t>(stream.next(kBucketBits));
    uint64_t& word = words[rank / 64];
    const bool is_new = rank < size && ((word >> (rank % 64)) & 1) == is_inverted;
    word ^= static_cast<uint64_t>(is_new) << (rank % 64);
    left -= is_new;
  }
}

// The row of the free place of this rank.
template <typename index_t>
constexpr int64_t row_of_rank(const CsrView<index_t>& csr, int64_t rank) {
  int64_t begin = 0, end = csr.rows - 1;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if ((middle + 1) * csr.cols - csr.crow_indices[middle + 1] <= rank) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// The number of stored entries before the free place of this rank, in all rows.
template <typename index_t>
constexpr int64_t stored_before_rank(const CsrView<index_t>& csr, int64_t row, int64_t rank) {
  int64_t begin = csr.crow_indices[row], end = csr.crow_indices[row + 1];
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (row * csr.cols + csr.col_indices[middle] - middle <= rank) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

}  // namespace fullspectrum
