#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>

#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "common/parallel_csr_fault.h"
#include "selection/random_places.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "random_places";

// Buckets that are worth a thread.
constexpr int64_t kGrain = 64;

// Entries that are compared with a rank at a time.
constexpr int64_t kAhead = 8;

// How many more entries than `stored` come before the free place of this rank in a row that ends
// with entry row_end. Most often it is few, but no branch depends on how many of the first eight.
template <typename index_t>
int64_t pass_stored(
    const index_t* col,  // [nnz]
    int64_t stored,
    int64_t row_end,
    int64_t rank_in_row
) {
  const int64_t begin = stored;
  int64_t passed = kAhead;
  while (passed == kAhead && stored + kAhead <= row_end) {
    const auto limit = static_cast<index_t>(rank_in_row + stored);
    index_t before = 0;
    for (index_t i = 0; i < kAhead; ++i) {
      before += col[stored + i] - i <= limit;
    }
    passed = before;
    stored += passed;
  }
  while (passed == kAhead && stored < row_end && col[stored] - stored <= rank_in_row) {
    ++stored;
  }
  return stored - begin;
}

// Walks through ranks and stored entries together.
template <typename index_t>
void write_places(
    const CsrView<index_t>& csr,
    const RandomPlaces& drawn,
    int64_t* places  // [count]
) {
  parallel_for(0, drawn.buckets(), kGrain, [&](int64_t begin, int64_t end) {
    int64_t row = row_of_rank(csr, begin * kBucket);
    int64_t stored = stored_before_rank(csr, row, begin * kBucket);
    int64_t out = drawn.first[begin];
    for (int64_t bucket = begin; bucket < end; ++bucket) {
      const int64_t first = bucket * kBucket;
      uint64_t words[kBucketWords];
      draw_bucket(
          words,
          std::min(kBucket, drawn.free - first),
          drawn.first[bucket + 1] - drawn.first[bucket],
          drawn.is_inverted,
          RandomStream(drawn.seed, bucket + 1)
      );
      for (int64_t word = 0; word < kBucketWords; ++word) {
        for (uint64_t bits = words[word]; bits != 0; bits &= bits - 1) {
          const int64_t rank = first + 64 * word + __builtin_ctzll(bits);
          while ((row + 1) * csr.cols - csr.crow_indices[row + 1] <= rank) {
            stored = csr.crow_indices[++row];
          }
          stored += pass_stored(
              csr.col_indices, stored, csr.crow_indices[row + 1], rank - row * csr.cols
          );
          places[out++] = rank + stored;
        }
      }
    }
  });
}

Tensor random_places_cpu(
    Tensor crow_indices, Tensor col_indices, int64_t cols, int64_t count, int64_t seed
) {
  const RandomPlaces drawn = draw_shares(crow_indices, col_indices, cols, count, seed);
  Tensor places = torch::stable::new_empty(col_indices, {count}, ScalarType::Long);
  dispatch_index(crow_indices.scalar_type(), kOp, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const CsrView<index_t> csr{
        drawn.rows,
        cols,
        col_indices.numel(),
        crow_indices.const_data_ptr<index_t>(),
        col_indices.const_data_ptr<index_t>()
    };
    const std::string fault = parallel_csr_fault(csr);
    STD_TORCH_CHECK(fault.empty(), kOp, ": ", fault);
    write_places(csr, drawn, places.mutable_data_ptr<int64_t>());
  });
  return places;
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("random_places", TORCH_BOX(&random_places_cpu)); }

}  // namespace fullspectrum
