#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "common/aten.h"
#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "selection/gradient_tiles.h"
#include "selection/rank.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
#ifdef FULLSPECTRUM_EMULATION
constexpr int64_t kTileSize = int64_t{1} << 14;  // tests meet several tiles in small matrices
#else
constexpr int64_t kTileSize = int64_t{1} << 21;  // a tile keeps the whole device busy
#endif
// Entries of one thread, side by side.
constexpr int kPerThread = 16;
constexpr int64_t kPerBlock = int64_t{kThreads} * kPerThread;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kThreads, "a thread owns a digit");

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
  __device__ int64_t place(int64_t i) const {
    return i >= k ? first + i - k : places ? places[i] : 0;
  }
};

// Where the k best end, found digit by digit: the digits so far, and how many of the entries that
// share them belong to the k best.
struct Cut {
  int64_t prefix;
  int64_t wanted;
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

// Counts the entries that share the cut's prefix by their next digit. Integer atomics, first in
// shared memory: their order does not matter. Reads are coalesced. Launch: grid ceil(size / 4096),
// block 256. Slow where all entries have one digit.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) count_digits_kernel(
    Pool<scalar_t> pool,
    int shift,
    bool first,
    const Cut* __restrict__ cut,  // [1]
    int* __restrict__ count       // [digits]
) {
  __shared__ int here[kDigits];
  here[threadIdx.x] = 0;
  __syncthreads();
  const uint64_t prefix = first ? 0 : static_cast<uint64_t>(cut->prefix);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPerBlock;
  for (int64_t i = begin + threadIdx.x; i < min(begin + kPerBlock, pool.size); i += kThreads) {
    const uint64_t digits = static_cast<uint64_t>(rank_of<scalar_t>(pool.bits(i))) >> shift;
    if (first || digits >> kDigitBits == prefix) {
      atomicAdd(&here[digits % kDigits], 1);
    }
  }
  __syncthreads();
  if (here[threadIdx.x] > 0) {
    atomicAdd(&count[threadIdx.x], here[threadIdx.x]);
  }
}

// Appends to the cut the digit that the wanted-th largest entry has, and clears the counts for the
// next one. One block; a thread owns a digit and sums the counts above it.
__global__ void __launch_bounds__(kThreads) choose_digit_kernel(
    int64_t k,
    bool first,
    Cut* __restrict__ cut,   // [1]
    int* __restrict__ count  // [digits]
) {
  __shared__ int here[kDigits];
  const int digit = static_cast<int>(threadIdx.x);
  here[digit] = count[digit];
  const Cut before = first ? Cut{0, k} : *cut;
  __syncthreads();
  int64_t above = 0;
  for (int d = digit + 1; d < kDigits; ++d) {
    above += here[d];
  }
  count[digit] = 0;
  if (above < before.wanted && above + here[digit] >= before.wanted) {
    *cut = {before.prefix << kDigitBits | digit, before.wanted - above};
  }
}

// Sums of a pair of counts over the threads before this one, and over all of the block.
struct PairSum {
  int64_t greater;
  int64_t equal;
};

__device__ PairSum before_in_block(int64_t greater, int64_t equal, PairSum& total) {
  __shared__ int64_t warp_greater[kWarps], warp_equal[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  int64_t g = greater, e = equal;
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int64_t other_g = __shfl_up_sync(~0u, g, delta);
    const int64_t other_e = __shfl_up_sync(~0u, e, delta);
    if (lane >= delta) {
      g += other_g;
      e += other_e;
    }
  }
  if (lane == kWarp - 1) {
    warp_greater[warp] = g;
    warp_equal[warp] = e;
  }
  __syncthreads();
  PairSum before{g - greater, e - equal};
  total = {0, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) {
      before.greater += warp_greater[w];
      before.equal += warp_equal[w];
    }
    total.greater += warp_greater[w];
    total.equal += warp_equal[w];
  }
  return before;
}

// The counts of one thread's entries above the cut, and of those at it.
template <typename scalar_t>
__device__ PairSum count_own(const Pool<scalar_t>& pool, int64_t begin, int64_t end, uint64_t cut) {
  PairSum own{0, 0};
  for (int64_t i = begin; i < end; ++i) {
    const uint64_t rank = rank_of<scalar_t>(pool.bits(i));
    own.greater += rank > cut;
    own.equal += rank == cut;
  }
  return own;
}

// Counts each block's entries above the cut and at it. A thread owns 16 entries side by side.
// Launch: grid ceil(size / 4096), block 256.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) count_best_kernel(
    Pool<scalar_t> pool,
    const Cut* __restrict__ cut,
    int64_t* __restrict__ greater,  // [blocks]
    int64_t* __restrict__ equal     // [blocks]
) {
  const int64_t begin = blockIdx.x * kPerBlock + int64_t{threadIdx.x} * kPerThread;
  const int64_t end = min(begin + kPerThread, pool.size);
  const PairSum own = count_own(pool, begin, end, static_cast<uint64_t>(cut->prefix));
  PairSum total;
  before_in_block(own.greater, own.equal, total);
  if (threadIdx.x == 0) {
    greater[blockIdx.x] = total.greater;
    equal[blockIdx.x] = total.equal;
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

// The k best of the pool. Nothing waits for the device.
template <typename scalar_t>
class Selection {
 public:
  using rank_t = typename Rank<scalar_t>::type;

  Selection(const DeviceScope& scope, const Tensor& like, int64_t k, int64_t largest)
      : scope_(scope),
        blocks_(ceil_div(k + largest, kPerBlock)),
        cut_(torch::stable::new_zeros(like, {2}, ScalarType::Long)),
        count_(torch::stable::new_zeros(like, {kDigits}, ScalarType::Int)),
        greater_(torch::stable::new_empty(like, {blocks_}, ScalarType::Long)),
        equal_(torch::stable::new_empty(like, {blocks_}, ScalarType::Long)) {}

  void run(const Pool<scalar_t>& pool, rank_t* best, int64_t* places) {
    Cut* cut = reinterpret_cast<Cut*>(cut_.mutable_data_ptr<int64_t>());
    int* count = count_.mutable_data_ptr<int32_t>();
    const dim3 grid(ceil_div(pool.size, kPerBlock)), block(kThreads);
    constexpr int kTop = 8 * static_cast<int>(sizeof(rank_t)) - kDigitBits;
    for (int shift = kTop; shift >= 0; shift -= kDigitBits) {
      const bool first = shift == kTop;
      launch(
          scope_,
          {"count_digits_kernel", grid, block},
          count_digits_kernel<scalar_t>,
          pool,
          shift,
          first,
          cut,
          count
      );
      launch(
          scope_,
          {"choose_digit_kernel", dim3(1), block},
          choose_digit_kernel,
          pool.k,
          first,
          cut,
          count
      );
    }
    launch(
        scope_,
        {"count_best_kernel", grid, block},
        count_best_kernel<scalar_t>,
        pool,
        cut,
        greater_.mutable_data_ptr<int64_t>(),
        equal_.mutable_data_ptr<int64_t>()
    );
    // beyond the blocks of a smaller pool there may be anything: no sum that is read contains it
    const Tensor greater_to = cumulative_sum(greater_), equal_to = cumulative_sum(equal_);
    launch(
        scope_,
        {"place_best_kernel", grid, block},
        place_best_kernel<scalar_t>,
        pool,
        cut,
        greater_to.const_data_ptr<int64_t>(),
        equal_to.const_data_ptr<int64_t>(),
        best,
        places
    );
  }

 private:
  const DeviceScope& scope_;
  int64_t blocks_;
  Tensor cut_, count_, greater_, equal_;
};

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
  Selection<scalar_t> selection(scope, x, k, tiles.largest());
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
    selection.run(pool, bits_of(best[1]), places[1].mutable_data_ptr<int64_t>());
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
