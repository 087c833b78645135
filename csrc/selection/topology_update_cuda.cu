#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/first_not_below.h"
#include "common/library.h"
#include "selection/topology_update.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;

// What every kernel here reads.
template <typename index_t>
struct Update {
  const index_t* crow;  // [rows + 1]
  const index_t* col;   // [nnz]
  const int64_t* drop;  // [size.drop], rising
  const int64_t* grow;  // [size.grow], rising
  TopologyUpdateSizes size;
};

// Each row starts where the entries before it end: those stored there, less the dropped, and the
// grown. A thread owns a row start and bisects both lists. Launch: grid ceil((rows + 1) / 256),
// block 256.
template <typename index_t>
__global__ void __launch_bounds__(kThreads) row_starts_kernel(
    Update<index_t> update,
    index_t* __restrict__ new_crow  // [rows + 1]
) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row <= update.size.rows) {
    const int64_t stored = update.crow[row];
    const int64_t dropped = first_not_below(update.drop, 0, update.size.drop, stored);
    const int64_t grown = first_not_below(update.grow, 0, update.size.grow, row * update.size.cols);
    new_crow[row] = static_cast<index_t>(stored - dropped + grown);
  }
}

// Moves each stored entry that is not dropped behind the grown ones before it. A thread owns an
// entry and finds its row and its places in both lists by bisection. Launch: grid ceil(nnz / 256),
// block 256.
template <typename index_t>
__global__ void __launch_bounds__(kThreads) move_kept_kernel(
    Update<index_t> update,
    index_t* __restrict__ new_col,  // [new_nnz]
    int64_t* __restrict__ source    // [new_nnz]
) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const TopologyUpdateSizes& size = update.size;
  if (p >= size.nnz) {
    return;
  }
  const int64_t dropped = first_not_below(update.drop, 0, size.drop, p);
  if (dropped < size.drop && update.drop[dropped] == p) {
    return;
  }
  const int64_t row = first_not_below(update.crow + 1, 0, size.rows, p + 1);
  // a grown entry at the very place, which should not be, goes before this one
  const int64_t grown =
      first_not_below(update.grow, 0, size.grow, row * size.cols + update.col[p] + 1);
  const int64_t at = p - dropped + grown;
  new_col[at] = update.col[p];
  source[at] = p;
}

// Writes the grown entries between the kept ones, those that were dropped with the place they had,
// and counts those that are kept ones as well, and those that were not stored. A thread owns a
// grown entry and bisects its row. Launch: grid ceil(grow / 256), block 256.
template <typename index_t>
__global__ void __launch_bounds__(kThreads) place_grown_kernel(
    Update<index_t> update,
    index_t* __restrict__ new_col,           // [new_nnz]
    int64_t* __restrict__ source,            // [new_nnz]
    unsigned long long* __restrict__ counts  // [2]
) {
  const int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const TopologyUpdateSizes& size = update.size;
  if (g >= size.grow) {
    return;
  }
  const int64_t row = update.grow[g] / size.cols, column = update.grow[g] % size.cols;
  const int64_t first = update.crow[row], end = update.crow[row + 1];
  const int64_t p = first_not_below(update.col, first, end, column);
  const int64_t dropped = first_not_below(update.drop, 0, size.drop, p);
  const int64_t at = p - dropped + g;
  const bool is_stored = p < end && update.col[p] == column;
  new_col[at] = static_cast<index_t>(column);
  source[at] = is_stored ? p : -1;
  if (!is_stored) {
    atomicAdd(counts + 1, 1ull);
  } else if (dropped == size.drop || update.drop[dropped] != p) {
    atomicAdd(counts, 1ull);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> topology_update_cuda(
    Tensor crow_indices, Tensor col_indices, Tensor drop, Tensor grow, int64_t cols
) {
  const TopologyUpdateSizes size =
      check_topology_update(crow_indices, col_indices, drop, grow, cols);
  const DeviceScope scope(col_indices);
  Tensor new_crow = torch::stable::empty_like(crow_indices);
  Tensor new_col = torch::stable::new_empty(col_indices, {size.new_nnz});
  Tensor source = torch::stable::new_empty(col_indices, {size.new_nnz}, ScalarType::Long);
  Tensor counts = torch::stable::new_zeros(col_indices, {2}, ScalarType::Long);
  dispatch_index(crow_indices.scalar_type(), "topology_update", [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const Update<index_t> update{
        crow_indices.const_data_ptr<index_t>(),
        col_indices.const_data_ptr<index_t>(),
        drop.const_data_ptr<int64_t>(),
        grow.const_data_ptr<int64_t>(),
        size
    };
    index_t* columns = new_col.mutable_data_ptr<index_t>();
    int64_t* sources = source.mutable_data_ptr<int64_t>();
    launch(
        scope,
        {"row_starts_kernel", dim3(ceil_div(size.rows + 1, kThreads)), dim3(kThreads)},
        row_starts_kernel<index_t>,
        update,
        new_crow.mutable_data_ptr<index_t>()
    );
    launch(
        scope,
        {"move_kept_kernel", dim3(ceil_div(size.nnz, kThreads)), dim3(kThreads)},
        move_kept_kernel<index_t>,
        update,
        columns,
        sources
    );
    launch(
        scope,
        {"place_grown_kernel", dim3(ceil_div(size.grow, kThreads)), dim3(kThreads)},
        place_grown_kernel<index_t>,
        update,
        columns,
        sources,
        reinterpret_cast<unsigned long long*>(counts.mutable_data_ptr<int64_t>())
    );
  });
  return {new_crow, new_col, source, counts};
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) { m.impl("topology_update", TORCH_BOX(&topology_update_cuda)); }

}  // namespace fullspectrum
