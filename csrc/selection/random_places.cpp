#include "selection/random_places.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "common/ceil_div.h"
#include "common/checks.h"

namespace fullspectrum {

using torch::stable::Tensor;

namespace {

constexpr const char* kOp = "random_places";

}  // namespace

RandomPlaces draw_shares(
    const Tensor& crow_indices, const Tensor& col_indices, int64_t cols, int64_t count, int64_t seed
) {
  const int64_t rows = check_csr(kOp, crow_indices, col_indices);
  STD_TORCH_CHECK(cols >= 0, kOp, ": cols must not be negative, got ", cols);
  const int64_t free = rows * cols - col_indices.numel();
  STD_TORCH_CHECK(
      count >= 0 && count <= free,
      kOp,
      ": count must lie in [0, ",
      free,
      "], the number of places that are free, got ",
      count
  );
  RandomPlaces drawn{rows, free, count, count > free - count, static_cast<uint64_t>(seed), {0}};

  int bits = kBucketBits;
  while (free > int64_t{1} << bits) {
    ++bits;
  }
  // of each bucket, those that are left; none in buckets beyond the last rank
  std::vector<int32_t> left(int64_t{1} << (bits - kBucketBits), 0);
  const int64_t buckets = ceil_div(free, kBucket);
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    left[bucket] = static_cast<int32_t>(std::min(kBucket, free - bucket * kBucket));
  }
  RandomStream stream(drawn.seed, 0);
  for (int64_t missing = drawn.is_inverted ? free - count : count; missing > 0;) {
    const uint64_t draw = stream.next(bits);
    int32_t& left_here = left[draw >> kBucketBits];
    const bool is_left = static_cast<int32_t>(draw & (kBucket - 1)) < left_here;
    left_here -= is_left;
    missing -= is_left;
  }
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    const int64_t size = std::min(kBucket, free - bucket * kBucket);
    const int64_t chosen = drawn.is_inverted ? left[bucket] : size - left[bucket];
    drawn.first.push_back(drawn.first.back() + chosen);
  }
  return drawn;
}

}  // namespace fullspectrum
