#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/aten.h"
#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "selection/order.h"
#include "selection/radix_select_cuda.h"
#include "selection/topk_scores.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A group's scores by their order, one tensor after the other.
template <typename scalar_t>
struct ScorePool {
  using rank_t = typename Rank<scalar_t>::type;
  const rank_t* order;  // [size]
  int64_t size;
  int64_t k;

  __device__ rank_t rank(int64_t i) const { return order[i]; }
};

// A thread owns a score; all is coalesced. Launch: grid ceil(size / 256), block 256.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) order_kernel(
    const typename Rank<scalar_t>::type* __restrict__ bits,  // [size]
    int64_t size,
    typename Rank<scalar_t>::type* __restrict__ order  // [size]
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < size) {
    order[i] = order_of<scalar_t>(bits[i]);
  }
}

// Marks all scores above the cut, and of those at it the first. A thread owns 16 side by side.
// Launch: grid ceil(size / 4096), block 256; reads twice what it reads, the second time from the
// cache.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) mark_best_kernel(
    ScorePool<scalar_t> pool,
    const Cut* __restrict__ cut,
    const int64_t* __restrict__ equal_to,  // [blocks], sums up to and with each block
    bool* __restrict__ mask                // [size]
) {
  const int64_t begin = blockIdx.x * kPerBlock + int64_t{threadIdx.x} * kPerThread;
  const int64_t end = min(begin + kPerThread, pool.size);
  const uint64_t last = static_cast<uint64_t>(cut->prefix);
  const PairSum own = count_own(pool, begin, end, last);
  PairSum total;
  int64_t equal = before_in_block(own.greater, own.equal, total).equal;
  equal += equal_to[blockIdx.x] - total.equal;
  for (int64_t i = begin; i < end; ++i) {
    const uint64_t rank = pool.rank(i);
    mask[i] = rank > last || (rank == last && equal < cut->wanted);
    equal += rank == last;
  }
}

// Counts the ones of each row, behind a zero. A block owns a row. Launch: grid rows, block 256.
static __global__ void __launch_bounds__(kThreads) row_lengths_kernel(
    const bool* __restrict__ mask,  // [rows, cols]
    int64_t cols,
    int64_t* __restrict__ lengths  // [1 + rows]
) {
  const bool* row = mask + blockIdx.x * cols;
  int64_t own = 0;
  for (int64_t col = threadIdx.x; col < cols; col += kThreads) {
    own += row[col];
  }
  PairSum total;
  before_in_block(own, 0, total);
  if (threadIdx.x == 0) {
    lengths[1 + blockIdx.x] = total.greater;
  }
}

// Writes the columns of the ones. A block owns a row and takes 256 columns at a time: reads are
// coalesced, writes nearly. Launch: grid rows, block 256.
template <typename index_t>
__global__ void __launch_bounds__(kThreads) place_columns_kernel(
    const bool* __restrict__ mask,       // [rows, cols]
    const int64_t* __restrict__ starts,  // [rows + 1]
    int64_t cols,
    index_t* __restrict__ columns  // [nnz]
) {
  const bool* row = mask + blockIdx.x * cols;
  int64_t out = starts[blockIdx.x];
  for (int64_t first = 0; first < cols; first += kThreads) {
    const int64_t col = first + threadIdx.x;
    const bool one = col < cols && row[col];
    PairSum total;
    const PairSum before = before_in_block(one, 0, total);
    if (one) {
      columns[out + before.greater] = static_cast<index_t>(col);
    }
    out += total.greater;
    __syncthreads();  // before the sums of the next columns take the place of these
  }
}

// Marks the best scores of one group after the other.
template <typename scalar_t>
class Marker {
 public:
  using rank_t = typename Rank<scalar_t>::type;

  Marker(const DeviceScope& scope, const Tensor& like, int64_t most)
      : scope_(scope),
        select_(scope, like, most),
        orders_(torch::stable::new_empty(like, {most})) {}

  // `mask`, all false, gets the group's tensors one after the other.
  void run(const ScoreGroup& group, bool* mask) {  // [group.size]
    if (group.count == 0) {
      return;
    }
    rank_t* order = reinterpret_cast<rank_t*>(orders_.template mutable_data_ptr<scalar_t>());
    int64_t first = 0;
    for (const Tensor& scores : group.scores) {
      launch(
          scope_,
          {"order_kernel", dim3(ceil_div(scores.numel(), kThreads)), dim3(kThreads)},
          order_kernel<scalar_t>,
          reinterpret_cast<const rank_t*>(scores.template const_data_ptr<scalar_t>()),
          scores.numel(),
          order + first
      );
      first += scores.numel();
    }
    const ScorePool<scalar_t> pool{order, group.size, group.count};
    select_.run(pool);
    launch(
        scope_,
        {"mark_best_kernel", select_.grid(pool), dim3(kThreads)},
        mark_best_kernel<scalar_t>,
        pool,
        select_.cut(),
        select_.equal_to(),
        mask
    );
  }

 private:
  const DeviceScope& scope_;
  RadixSelect select_;
  Tensor orders_;
};

// Calls f(marker) with a marker for the groups.
template <typename F>
void with_marker(const DeviceScope& scope, const std::vector<ScoreGroup>& groups, const F& f) {
  int64_t most = 0;
  for (const ScoreGroup& group : groups) {
    most = std::max(most, group.size);
  }
  const Tensor& like = groups[0].scores[0];
  if (like.scalar_type() == ScalarType::Double) {
    f(Marker<double>(scope, like, most));
  } else {
    f(Marker<float>(scope, like, most));
  }
}

std::vector<Tensor> topk_masks_cuda(std::vector<Tensor> scores, std::vector<int64_t> counts) {
  const std::vector<ScoreGroup> groups = check_topk_masks(scores, counts);
  const DeviceScope scope(scores[0]);
  std::vector<Tensor> masks;
  with_marker(scope, groups, [&](auto&& marker) {
    for (const ScoreGroup& group : groups) {
      Tensor marked = torch::stable::new_zeros(scores[0], {group.size}, ScalarType::Bool);
      marker.run(group, marked.mutable_data_ptr<bool>());
      int64_t first = 0;
      for (const Tensor& tensor : group.scores) {
        const Tensor own = torch::stable::narrow(marked, 0, first, tensor.numel());
        Tensor mask = torch::stable::new_empty(tensor, tensor.sizes(), ScalarType::Bool);
        torch::stable::copy_(mask, torch::stable::reshape(own, tensor.sizes()));
        masks.push_back(mask);
        first += tensor.numel();
      }
    }
  });
  return masks;
}

Tensor bottomk_positions_cuda(Tensor scores, int64_t count) {
  const ScoreGroup group = check_bottomk_positions(scores, count);
  const DeviceScope scope(scores);
  Tensor marked = torch::stable::new_zeros(scores, {group.size}, ScalarType::Bool);
  with_marker(scope, {group}, [&](auto&& marker) {
    marker.run(group, marked.mutable_data_ptr<bool>());
  });
  return torch::stable::reshape(nonzero(logical_not(marked)), {count});
}

// The topology of a mask with as many ones as it has room for.
Topology topology_of(
    const DeviceScope& scope, const bool* mask, const Tensor& scores, Topology topology
) {
  const int64_t rows = scores.size(0), cols = scores.size(1);
  Tensor lengths = torch::stable::new_zeros(scores, {1 + rows}, ScalarType::Long);
  launch(
      scope,
      {"row_lengths_kernel", dim3(rows), dim3(kThreads)},
      row_lengths_kernel,
      mask,
      cols,
      lengths.mutable_data_ptr<int64_t>()
  );
  const Tensor starts = cumulative_sum(lengths);
  torch::stable::copy_(topology.crow_indices, starts);
  dispatch_index(topology.col_indices.scalar_type(), "topk_topologies", [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    launch(
        scope,
        {"place_columns_kernel", dim3(rows), dim3(kThreads)},
        place_columns_kernel<index_t>,
        mask,
        starts.const_data_ptr<int64_t>(),
        cols,
        topology.col_indices.template mutable_data_ptr<index_t>()
    );
  });
  return topology;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> topk_topologies_cuda(
    std::vector<Tensor> scores, std::vector<int64_t> counts
) {
  const std::vector<ScoreGroup> groups = check_topk_topologies(scores, counts);
  const DeviceScope scope(scores[0]);
  std::vector<Tensor> crow_indices, col_indices;
  with_marker(scope, groups, [&](auto&& marker) {
    for (const ScoreGroup& group : groups) {
      const Tensor& matrix = group.scores[0];
      Tensor marked = torch::stable::new_zeros(matrix, {group.size}, ScalarType::Bool);
      marker.run(group, marked.mutable_data_ptr<bool>());
      const Topology topology = topology_of(
          scope, marked.const_data_ptr<bool>(), matrix, new_topology(matrix, group.count)
      );
      crow_indices.push_back(topology.crow_indices);
      col_indices.push_back(topology.col_indices);
    }
  });
  return {crow_indices, col_indices};
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) {
  m.impl("bottomk_positions", TORCH_BOX(&bottomk_positions_cuda));
  m.impl("topk_masks", TORCH_BOX(&topk_masks_cuda));
  m.impl("topk_topologies", TORCH_BOX(&topk_topologies_cuda));
}

}  // namespace fullspectrum
