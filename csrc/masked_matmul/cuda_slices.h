#pragma once

// Sums whose parts come from several blocks: each block writes its slice of the parts, and they are
// added in the slices' order, so that the result does not depend on which block was first.

#include <torch/csrc/stable/ops.h>

#include <type_traits>
#include <vector>

#include "common/cuda_launch.h"
#include "common/dispatch.h"

namespace fullspectrum {
namespace {

constexpr int kSliceThreads = 512;

// out[to(p)] = the sum of part[s, p] over the slices s, in their order.
//
// Launch: grid (nonzeros / 512), block 512, no shared memory. Scattered stores where W's values
// come in the order of W^T.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kSliceThreads) sum_slices_kernel(
    const typename Accumulator<scalar_t>::type* __restrict__ part,  // [slices, nnz]
    const index_t* __restrict__ to,                                 // [nnz] or null: in order
    scalar_t* __restrict__ out,                                     // [nnz]
    int64_t slices,
    int64_t nnz
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kSliceThreads + threadIdx.x;
  if (p < nnz) {
    acc_t sum = 0;
    for (int64_t s = 0; s < slices; ++s) {
      sum += part[s * nnz + p];
    }
    out[to ? to[p] : p] = static_cast<scalar_t>(sum);
  }
}

// Has `write` fill slices [slices, nnz] of partial sums and puts their sums into `out`, at
// to[p] where `to` is given. A single slice in out's own type and order is written in place.
template <typename scalar_t, typename index_t, typename Write>
void sum_in_slices(
    const char* op,
    const DeviceScope& scope,
    int64_t slices,
    const index_t* to,
    const torch::stable::Tensor& out,  // [nnz]
    const Write& write
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t nnz = out.numel();
  auto* sums = out.mutable_data_ptr<scalar_t>();
  if constexpr (std::is_same_v<acc_t, scalar_t>) {
    if (slices == 1 && !to) {
      write(sums);
      return;
    }
  }
  using torch::headeronly::ScalarType;
  const std::vector<int64_t> shape{slices, nnz};
  const ScalarType dtype = std::is_same_v<acc_t, double> ? ScalarType::Double : ScalarType::Float;
  const torch::stable::Tensor parts = torch::stable::new_empty(out, shape, dtype);
  write(parts.mutable_data_ptr<acc_t>());
  launch(
      scope,
      {"sum_slices_kernel", grid_of(op, ceil_div(nnz, kSliceThreads)), dim3(kSliceThreads)},
      sum_slices_kernel<scalar_t, index_t>,
      parts.const_data_ptr<acc_t>(),
      to,
      sums,
      slices,
      nnz
  );
}

}  // namespace
}  // namespace fullspectrum
