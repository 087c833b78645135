#include <torch/csrc/stable/ops.h>

#include <vector>

#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "masked_matmul/sparse_linear.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(128) sparse_linear_kernel(
    const scalar_t* __restrict__ x,      // [batch, in]
    const scalar_t* __restrict__ value,  // [nnz]
    const index_t* __restrict__ crow,    // [out + 1]
    const index_t* __restrict__ col,     // [nnz]
    const scalar_t* __restrict__ bias,   // [out] or null
    scalar_t* __restrict__ y,            // [batch, out]
    int64_t in,
    int64_t out
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t o = blockIdx.y;
  const int64_t n = blockIdx.x;
  __shared__ acc_t partial[4];
  acc_t sum = 0;
  for (index_t p = crow[o] + static_cast<index_t>(threadIdx.x); p < crow[o + 1]; p += 128) {
    sum += static_cast<acc_t>(value[p]) * static_cast<acc_t>(x[n * in + col[p]]);
  }
  for (int d = 16; d; d /= 2) {
    sum += __shfl_xor_sync(~0u, sum, d);
  }
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    sum = partial[0] + partial[1] + partial[2] + partial[3];
    y[n * out + o] = static_cast<scalar_t>(sum + (bias ? static_cast<acc_t>(bias[o]) : acc_t{0}));
  }
}

Tensor sparse_linear_cuda(
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t out_features,
    std::optional<Tensor> bias
) {
  const SparseLinearSizes size =
      check_sparse_linear(x, values, crow_indices, col_indices, out_features, bias);
  const DeviceScope scope(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = out_features;
  Tensor out = torch::stable::new_empty(x, shape);
  const Tensor rows = torch::stable::contiguous(x);
  dispatch_floating(x.scalar_type(), "sparse_linear", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    dispatch_index(crow_indices.scalar_type(), "sparse_linear", [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      launch(
          scope,
          {"sparse_linear_kernel", dim3(size.batch, size.out), dim3(128)},
          sparse_linear_kernel<scalar_t, index_t>,
          rows.const_data_ptr<scalar_t>(),
          values.const_data_ptr<scalar_t>(),
          crow_indices.const_data_ptr<index_t>(),
          col_indices.const_data_ptr<index_t>(),
          bias ? bias->const_data_ptr<scalar_t>() : static_cast<const scalar_t*>(nullptr),
          out.mutable_data_ptr<scalar_t>(),
          size.in,
          size.out
      );
    });
  });
  return out;
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) { m.impl("sparse_linear", TORCH_BOX(&sparse_linear_cuda)); }

}  // namespace fullspectrum
