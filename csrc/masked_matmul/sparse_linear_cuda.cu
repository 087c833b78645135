#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "common/aten.h"
#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "masked_matmul/sparse_linear.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
// Output rows of one block: a whole 32-wide line of y is written at once.
constexpr int kTileRows = kWarp;

// y = x W^T + bias, W in CSR form, x given feature-major so that a column of W meets batch entries
// that lie side by side.
//
// A block owns kTileRows outputs of kPerLane * 32 batch entries; each of its warps owns every
// eighth of the rows, each lane kPerLane batch entries. A warp walks its row's nonzeros: column and
// value are the same address for all lanes (one broadcast load each), the loads of x are coalesced.
// The results pass through a shared tile, padded against bank conflicts, so that the stores to the
// row-major y are coalesced too. Every sum is one thread's own: the order of additions is fixed.
//
// Launch: grid (row tiles * batch tiles), block 256, static shared memory of at most 33 KiB
// (double). Slow when few rows are much longer than the rest (their block finishes last), and when
// the batch is far below 32 (idle lanes).
template <typename scalar_t, typename index_t, int kPerLane>
__global__ void __launch_bounds__(kThreads) sparse_linear_kernel(
    const scalar_t* __restrict__ x,      // [in, batch]
    const scalar_t* __restrict__ value,  // [nnz]
    const index_t* __restrict__ crow,    // [out + 1]
    const index_t* __restrict__ col,     // [nnz]
    const scalar_t* __restrict__ bias,   // [out] or null
    scalar_t* __restrict__ y,            // [batch, out]
    int64_t batch,
    int64_t out
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  constexpr int kTileBatch = kWarp * kPerLane;
  __shared__ acc_t tile[kTileBatch][kTileRows + 1];
  const int64_t row_tiles = ceil_div(out, kTileRows);
  const int64_t first_row = blockIdx.x % row_tiles * kTileRows;
  const int64_t first_entry = blockIdx.x / row_tiles * kTileBatch;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;

  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < kTileRows; r += kWarps) {
    const int64_t row = first_row + r;
    if (row >= out) {
      break;
    }
    acc_t sum[kPerLane];
    for (int j = 0; j < kPerLane; ++j) {
      sum[j] = bias ? static_cast<acc_t>(bias[row]) : acc_t{0};
    }
    const index_t end = crow[row + 1];
    for (index_t p = crow[row]; p < end; ++p) {
      const scalar_t* strip = x + static_cast<int64_t>(col[p]) * batch + first_entry;
      const acc_t weight = static_cast<acc_t>(value[p]);
      for (int j = 0; j < kPerLane; ++j) {
        const int n = j * kWarp + lane;
        if (first_entry + n < batch) {
          sum[j] += weight * static_cast<acc_t>(strip[n]);
        }
      }
    }
    for (int j = 0; j < kPerLane; ++j) {
      tile[j * kWarp + lane][r] = sum[j];
    }
  }

  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTileBatch * kTileRows; i += kThreads) {
    const int64_t n = first_entry + i / kTileRows;
    const int64_t row = first_row + i % kTileRows;
    if (n < batch && row < out) {
      y[n * out + row] = static_cast<scalar_t>(tile[i / kTileRows][i % kTileRows]);
    }
  }
}

// Consecutive nonzeros of one warp: they mostly share their row, whose gradients then come from the
// first-level cache.
constexpr int kNonzerosPerWarp = 4;

// The greatest row that starts at or before nonzero p.
template <typename index_t>
__device__ int64_t row_of(const index_t* crow, int64_t rows, int64_t p) {
  int64_t low = 0;
  int64_t high = rows;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (crow[middle] <= p) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// out[p] = sum over the batch of grad[row(p)] x[col(p)], for the stored entries only; grad and x
// are feature-major.
//
// A warp owns kNonzerosPerWarp consecutive nonzeros; its lanes run along the batch, so all loads
// are coalesced, and their sums are added by shuffles in a fixed order. No shared memory, no
// atomics. The row of the first nonzero is found by bisection, the next ones by stepping on.
//
// Launch: grid (nonzeros / 32), block 256. Slow when the batch is far below 32 (idle lanes).
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kThreads) sparse_linear_grad_values_kernel(
    const scalar_t* __restrict__ grad,  // [rows, batch]
    const scalar_t* __restrict__ x,     // [in, batch]
    const index_t* __restrict__ crow,   // [rows + 1]
    const index_t* __restrict__ col,    // [nnz]
    scalar_t* __restrict__ out,         // [nnz]
    int64_t batch,
    int64_t rows,
    int64_t nnz
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t first = warp * kNonzerosPerWarp;
  if (first >= nnz) {
    return;
  }
  int64_t row = row_of(crow, rows, first);
  for (int64_t p = first; p < first + kNonzerosPerWarp && p < nnz; ++p) {
    while (crow[row + 1] <= p) {
      ++row;
    }
    const scalar_t* grad_strip = grad + row * batch;
    const scalar_t* x_strip = x + static_cast<int64_t>(col[p]) * batch;
    acc_t sum = 0;
    for (int64_t n = lane; n < batch; n += kWarp) {
      sum += static_cast<acc_t>(grad_strip[n]) * static_cast<acc_t>(x_strip[n]);
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
    }
    if (lane == 0) {
      out[p] = static_cast<scalar_t>(sum);
    }
  }
}

// [..., features] as [features, batch].
Tensor feature_major(const Tensor& tensor, int64_t batch, int64_t features) {
  const std::vector<int64_t> shape{batch, features};
  return torch::stable::contiguous(
      torch::stable::transpose(torch::stable::reshape(tensor, shape), 0, 1)
  );
}

// The extent of a one-dimensional grid, which ends at 2^31 - 1 blocks.
dim3 grid_of(const char* op, int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, op, ": too large for one CUDA grid, ", blocks, " blocks");
  return dim3(static_cast<unsigned>(blocks));
}

// Four batch entries a lane where the batch fills them: each column and value then serves four.
constexpr int kWide = 4;

// x W^T + bias
Tensor multiply(
    const char* op,
    const DeviceScope& scope,
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const std::optional<Tensor>& bias,
    SparseLinearSizes size
) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = size.out;
  Tensor out = torch::stable::new_empty(x, shape);
  const Tensor columns = feature_major(x, size.batch, size.in);
  const Tensor weights = torch::stable::contiguous(values);
  const std::optional<Tensor> b =
      bias ? std::make_optional(torch::stable::contiguous(*bias)) : std::nullopt;
  const bool wide = size.batch >= kWide * kWarp;
  const int64_t batch_tiles = ceil_div(size.batch, wide ? kWide * kWarp : kWarp);
  const dim3 grid = grid_of(op, ceil_div(size.out, kTileRows) * batch_tiles);
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      launch(
          scope,
          {"sparse_linear_kernel", grid, dim3(kThreads)},
          wide ? sparse_linear_kernel<scalar_t, index_t, kWide>
               : sparse_linear_kernel<scalar_t, index_t, 1>,
          columns.const_data_ptr<scalar_t>(),
          weights.const_data_ptr<scalar_t>(),
          crow_indices.const_data_ptr<index_t>(),
          col_indices.const_data_ptr<index_t>(),
          b ? b->const_data_ptr<scalar_t>() : static_cast<const scalar_t*>(nullptr),
          out.mutable_data_ptr<scalar_t>(),
          size.batch,
          size.out
      );
    });
  });
  return out;
}

// grad^T x at the stored positions
Tensor sample(
    const char* op,
    const DeviceScope& scope,
    const Tensor& grad,
    const Tensor& x,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    SparseLinearSizes size
) {
  const std::vector<int64_t> shape{size.nnz};
  Tensor out = torch::stable::new_empty(x, shape);
  const Tensor grad_rows = feature_major(grad, size.batch, size.out);
  const Tensor columns = feature_major(x, size.batch, size.in);
  const dim3 grid = grid_of(op, ceil_div(size.nnz, int64_t{kWarps} * kNonzerosPerWarp));
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      launch(
          scope,
          {"sparse_linear_grad_values_kernel", grid, dim3(kThreads)},
          sparse_linear_grad_values_kernel<scalar_t, index_t>,
          grad_rows.const_data_ptr<scalar_t>(),
          columns.const_data_ptr<scalar_t>(),
          crow_indices.const_data_ptr<index_t>(),
          col_indices.const_data_ptr<index_t>(),
          out.mutable_data_ptr<scalar_t>(),
          size.batch,
          size.out,
          size.nnz
      );
    });
  });
  return out;
}

Tensor sparse_linear_cuda(
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t out_features,
    std::optional<Tensor> bias,
    std::optional<Tensor>,  // the transposed index is for the derivative
    std::optional<Tensor>,
    std::optional<Tensor>
) {
  const char* op = "sparse_linear";
  const SparseLinearSizes size =
      check_sparse_linear(x, values, crow_indices, col_indices, out_features, bias);
  return multiply(op, DeviceScope(x), x, values, crow_indices, col_indices, bias, size);
}

// The two gradients, one after the other.
std::tuple<Tensor, Tensor> sparse_linear_backward_cuda(
    const Tensor& grad,
    std::optional<Tensor> x,
    std::optional<Tensor> values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t in_features,
    std::optional<Tensor> ccol_indices,
    std::optional<Tensor> row_indices,
    std::optional<Tensor> permutation
) {
  const char* op = "sparse_linear_backward";
  const SparseLinearSizes size = check_sparse_linear_backward(
      grad,
      x,
      values,
      crow_indices,
      col_indices,
      in_features,
      ccol_indices,
      row_indices,
      permutation
  );
  const DeviceScope scope(grad);
  std::vector<int64_t> none(grad.sizes().begin(), grad.sizes().end());
  none.back() = 0;
  Tensor grad_x = values ? multiply(
                               op,
                               scope,
                               grad,
                               index_select(*values, *permutation),
                               *ccol_indices,
                               *row_indices,
                               std::nullopt,
                               {size.batch, size.out, size.in, size.nnz}
                           )
                         : torch::stable::new_empty(grad, none);
  Tensor grad_values = x ? sample(op, scope, grad, *x, crow_indices, col_indices, size)
                         : torch::stable::new_empty(grad, std::vector<int64_t>{0});
  return {grad_x, grad_values};
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) {
  m.impl("sparse_linear", TORCH_BOX(&sparse_linear_cuda));
  m.impl("sparse_linear_backward", TORCH_BOX(&sparse_linear_backward_cuda));
}

}  // namespace fullspectrum
