#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "selection/gradient_tiles.h"
#include "selection/radix_select_cuda.h"
#include "selection/rank.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#ifdef FULLSPECTRUM_EMULATION
constexpr int64_t kTileSize = int64_t{1} << 14;  // tests meet several tiles in small matrices
#else
constexpr int64_t kTileSize = int64_t{1} << 21;  // a tile keeps the whole device busy
#endif
// What the selection of one tile works on: the k best so far, then the tile's entries. Both are
// read as bits. With the first tile there are no best ones yet: they are kTaken, which rank lowest.
template <typename scalar_t>
struct Pool {
  using rank_t = typename Rank<scalar_t>::type;
  const rank_t* best;     // [k], or null
  const int64_t* places;  // [k], or null
  const rank_t* tile;     // [size - k]
  int64_t k;
  int64_t size;
  int64_t first;  // flat position of the tile's first entry

  __device__ rank_t bits(int64_t i) const {
    return i >= k ? tile[i - k] : best ? best[i] : kTaken<scalar_t>;
  }
  __device__ rank_t rank(int64_t i) const { return rank_of<scalar_t>(bits(i)); }
  __device__ int64_t place(int64_t i) const {
    return i >= k ? first + i - k : places ? places[i] : 0;
  }
};

// Overwrites the tile's stored entries. A block owns a row. Launch: grid rows, block 256.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kThreads) mark_stored_kernel(
    typename Rank<scalar_t>::type* __restrict__ tile,  // [rows, cols]
    const index_t* __restrict__ crow,                  // [rows + 1], of the tile
    const index_t* __restrict__ col,                   // [nnz], of the whole matrix
    int64_t cols
) {
  const int64_t row = blockIdx.x;
  for (int64_t p = crow[row] + static_cast<int64_t>(threadIdx.x); p < crow[row + 1];
       p += kThreads) {
    tile[row * cols + col[p]] = kTaken<scalar_t>;
  }
}

// Writes the k best in their order: all above the cut, and of those at it the first. Launch as
// above; reads twice what it reads, from the cache the second time.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) place_best_kernel(
    Pool<scalar_t> pool,
    const Cut* __restrict__ cut,
    const int64_t* __restrict__ greater_to,            // [blocks], sums up to and with each block
    const int64_t* __restrict__ equal_to,              // [blocks]
    typename Rank<scalar_t>::type* __restrict__ best,  // [k]
    int64_t* __restrict__ places                       // [k]
) {
  const int64_t begin = blockIdx.x * kPerBlock + int64_t{threadIdx.x} * kPerThread;
  const int64_t end = min(begin + kPerThread, pool.size);
  const uint64_t last = static_cast<uint64_t>(cut->prefix);
  const int64_t ties = cut->wanted;
  const PairSum own = count_own(pool, begin, end, last);
  PairSum total;
  PairSum before = before_in_block(own.greater, own.equal, total);
  before.greater += greater_to[blockIdx.x] - total.greater;
  before.equal += equal_to[blockIdx.x] - total.equal;
  for (int64_t i = begin; i < end; ++i) {
    const auto bits = pool.bits(i);
    const uint64_t rank = rank_of<scalar_t>(bits);
    if (rank > last || (rank == last && before.equal < ties)) {
      const int64_t at = before.greater + min(before.equal, ties);
      best[at] = bits;
      places[at] = pool.place(i);
    }
    before.greater += rank > last;
    before.equal += rank == last;
  }
}

template <typename scalar_t, typename index_t>
std::pair<Tensor, Tensor> select(
    const DeviceScope& scope,
    const GradientTiles& tiles,
    const Tensor& x,
    const index_t* crow,
    const index_t* col,
    ScalarType dtype,  // of scalar_t
    int64_t k
) {
  using rank_t = typename Rank<scalar_t>::type;
  // The k best so far and the next k best, in turns.
  Tensor places[2], best[2];
  for (int i = 0; i < 2; ++i) {
    places[i] = torch::stable::new_empty(x, {k}, ScalarType::Long);
    best[i] = torch::stable::new_empty(x, {k}, dtype);
  }
  const auto bits_of = [](Tensor& tensor) {
    return reinterpret_cast<rank_t*>(tensor.mutable_data_ptr<scalar_t>());
  };
  RadixSelect selection(scope, x, k + tiles.largest());
  for (size_t t = 0; k > 0 && t + 1 < tiles.boundary.size(); ++t) {
    const int64_t first = tiles.boundary[t], rows = tiles.boundary[t + 1] - first;
    Tensor tile = tiles.product(first, first + rows);
    launch(
        scope,
        {"mark_stored_kernel", dim3(rows), dim3(kThreads)},
        mark_stored_kernel<scalar_t, index_t>,
        bits_of(tile),
        crow + first,
        col,
        tiles.cols
    );
    const Pool<scalar_t> pool{
        t == 0 ? nullptr : bits_of(best[0]),
        t == 0 ? nullptr : places[0].const_data_ptr<int64_t>(),
        bits_of(tile),
        k,
        k + rows * tiles.cols,
        first * tiles.cols
    };
    selection.run(pool);
    launch(
        scope,
        {"place_best_kernel", selection.grid(pool), dim3(kThreads)},
        place_best_kernel<scalar_t>,
        pool,
        selection.cut(),
        selection.greater_to(),
        selection.equal_to(),
        bits_of(best[1]),
        places[1].mutable_data_ptr<int64_t>()
    );
    std::swap(best[0], best[1]);
    std::swap(places[0], places[1]);
  }
  return {places[0], best[0]};
}

std::tuple<Tensor, Tensor> select_of_tiles(
    const char* op,
    const GradientTiles& tiles,
    const Tensor& x,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t k
) {
  const DeviceScope scope(x);
  const ScalarType dtype = x.scalar_type();
  std::pair<Tensor, Tensor> found;
  dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const index_t* crow = crow_indices.const_data_ptr<index_t>();
    const index_t* col = col_indices.const_data_ptr<index_t>();
    found = dtype == ScalarType::Double
                ? select<double>(scope, tiles, x, crow, col, ScalarType::Double, k)
                : select<float>(scope, tiles, x, crow, col, ScalarType::Float, k);
  });
  Tensor& values = found.second;
  return {found.first, values.scalar_type() == dtype ? values : torch::stable::to(values, dtype)};
}

std::tuple<Tensor, Tensor> dense_grad_topk_cuda(
    Tensor grad, Tensor x, Tensor crow_indices, Tensor col_indices, int64_t k
) {
  const GradientTiles tiles =
      linear_gradient_tiles(grad, x, crow_indices, col_indices, k, kTileSize);
  return select_of_tiles("dense_grad_topk", tiles, x, crow_indices, col_indices, k);
}

std::tuple<Tensor, Tensor> conv2d_dense_grad_topk_cuda(
    Tensor grad,
    Tensor x,
    Tensor crow_indices,
    Tensor col_indices,
    int64_t k,
    std::vector<int64_t> kernel_size,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    std::vector<int64_t> dilation,
    int64_t groups
) {
  const Conv2dGeometry geometry{kernel_size, stride, padding, dilation, groups};
  const GradientTiles tiles =
      conv2d_gradient_tiles(grad, x, crow_indices, col_indices, k, geometry, kTileSize);
  return select_of_tiles("conv2d_dense_grad_topk", tiles, x, crow_indices, col_indices, k);
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) {
  m.impl("dense_grad_topk", TORCH_BOX(&dense_grad_topk_cuda));
  m.impl("conv2d_dense_grad_topk", TORCH_BOX(&conv2d_dense_grad_topk_cuda));
}

}  // namespace fullspectrum
