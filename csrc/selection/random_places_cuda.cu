#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "selection/random_places.h"

namespace fullspectrum {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "random_places";

// Draws the ranks of a bucket, one after the other, and finds the place of each by bisection. A
// block owns a bucket: its first thread draws, then each thread owns 64 ranks. Bound by the draws,
// which wait for each other; many blocks hide that. Launch: grid buckets, block 64.
template <typename index_t>
__global__ void __launch_bounds__(kBucketWords) draw_places_kernel(
    CsrView<index_t> csr,
    const int64_t* __restrict__ first,  // [buckets + 1]
    int64_t free,
    bool is_inverted,
    uint64_t seed,
    int64_t* __restrict__ places  // [count]
) {
  __shared__ uint64_t words[kBucketWords];
  const int64_t bucket = blockIdx.x, begin = bucket * kBucket;
  if (threadIdx.x == 0) {
    draw_bucket(
        words,
        min(kBucket, free - begin),
        first[bucket + 1] - first[bucket],
        is_inverted,
        RandomStream(seed, static_cast<uint64_t>(bucket) + 1)
    );
  }
  __syncthreads();
  int64_t out = first[bucket];
  for (unsigned word = 0; word < threadIdx.x; ++word) {
    out += __popcll(words[word]);
  }
  for (int bit = 0; bit < 64; ++bit) {
    if ((words[threadIdx.x] >> bit & 1) != 0) {
      const int64_t rank = begin + 64 * static_cast<int64_t>(threadIdx.x) + bit;
      places[out++] = rank + stored_before_rank(csr, row_of_rank(csr, rank), rank);
    }
  }
}

Tensor random_places_cuda(
    Tensor crow_indices, Tensor col_indices, int64_t cols, int64_t count, int64_t seed
) {
  RandomPlaces drawn = draw_shares(crow_indices, col_indices, cols, count, seed);
  const DeviceScope scope(col_indices);
  Tensor places = torch::stable::new_empty(col_indices, {count}, ScalarType::Long);
  const int64_t size = static_cast<int64_t>(drawn.first.size());
  Tensor first = torch::stable::new_empty(col_indices, {size}, ScalarType::Long);
  const torch::stable::Device host(DeviceType::CPU);
  torch::stable::copy_(
      first, torch::stable::from_blob(drawn.first.data(), {size}, {1}, host, ScalarType::Long)
  );
  dispatch_index(crow_indices.scalar_type(), kOp, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const CsrView<index_t> csr{
        drawn.rows,
        cols,
        col_indices.numel(),
        crow_indices.const_data_ptr<index_t>(),
        col_indices.const_data_ptr<index_t>()
    };
    launch(
        scope,
        {"draw_places_kernel", grid_of(kOp, drawn.buckets()), dim3(kBucketWords)},
        draw_places_kernel<index_t>,
        csr,
        first.const_data_ptr<int64_t>(),
        drawn.free,
        drawn.is_inverted,
        drawn.seed,
        places.mutable_data_ptr<int64_t>()
    );
  });
  return places;
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) { m.impl("random_places", TORCH_BOX(&random_places_cuda)); }

}  // namespace fullspectrum
