#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/aten.h"
#include "common/checks.h"
#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/first_not_below.h"
#include "common/library.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "csr_transpose";
constexpr int kThreads = 256;

// A thread owns a column and finds its start by bisection. Launch: grid ceil((cols + 1) / 256),
// block 256.
template <typename index_t>
__global__ void __launch_bounds__(kThreads) column_starts_kernel(
    const index_t* __restrict__ sorted,  // [nnz], columns
    int64_t nnz,
    int64_t cols,
    index_t* __restrict__ ccol  // [cols + 1]
) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (col <= cols) {
    ccol[col] = static_cast<index_t>(first_not_below(sorted, 0, nnz, col));
  }
}

// A thread owns an entry of the transpose and bisects the row that it stood in. Launch: grid
// ceil(nnz / 256), block 256.
template <typename index_t>
__global__ void __launch_bounds__(kThreads) entry_rows_kernel(
    const index_t* __restrict__ crow,   // [rows + 1]
    const int64_t* __restrict__ order,  // [nnz], where each entry stood
    int64_t rows,
    int64_t nnz,
    index_t* __restrict__ row_index,   // [nnz]
    index_t* __restrict__ permutation  // [nnz]
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < nnz) {
    row_index[i] = static_cast<index_t>(first_not_below(crow + 1, 0, rows, order[i] + 1));
    permutation[i] = static_cast<index_t>(order[i]);
  }
}

std::tuple<Tensor, Tensor, Tensor> csr_transpose_cuda(
    Tensor crow_indices, Tensor col_indices, int64_t cols
) {
  const int64_t rows = check_csr(kOp, crow_indices, col_indices), nnz = col_indices.numel();
  STD_TORCH_CHECK(cols >= 0, kOp, ": cols must not be negative, got ", cols);
  const DeviceScope scope(col_indices);
  Tensor ccol_indices = torch::stable::new_empty(col_indices, {cols + 1});
  Tensor row_indices = torch::stable::empty_like(col_indices);
  Tensor permutation = torch::stable::empty_like(col_indices);
  const auto [sorted, order] = stable_sort(col_indices);
  const int64_t* places = order.const_data_ptr<int64_t>();
  const Tensor& columns = sorted;
  dispatch_index(crow_indices.scalar_type(), kOp, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    launch(
        scope,
        {"column_starts_kernel", dim3(ceil_div(cols + 1, kThreads)), dim3(kThreads)},
        column_starts_kernel<index_t>,
        columns.const_data_ptr<index_t>(),
        nnz,
        cols,
        ccol_indices.mutable_data_ptr<index_t>()
    );
    launch(
        scope,
        {"entry_rows_kernel", dim3(ceil_div(nnz, kThreads)), dim3(kThreads)},
        entry_rows_kernel<index_t>,
        crow_indices.const_data_ptr<index_t>(),
        places,
        rows,
        nnz,
        row_indices.mutable_data_ptr<index_t>(),
        permutation.mutable_data_ptr<index_t>()
    );
  });
  return {ccol_indices, row_indices, permutation};
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) { m.impl("csr_transpose", TORCH_BOX(&csr_transpose_cuda)); }

}  // namespace fullspectrum
