#pragma once

// The cut of the k largest entries of a pool, on CUDA: digit by digit, with integer counts alone.
//
// A pool has a type rank_t, a rank for each entry (rank(i), larger for better), the number of
// entries (size) and how many are wanted (k).

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "common/aten.h"
#include "common/cuda_launch.h"

namespace fullspectrum {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Entries of one thread, side by side.
constexpr int kPerThread = 16;
constexpr int64_t kPerBlock = int64_t{kThreads} * kPerThread;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kThreads, "a thread owns a digit");

// Where the k best end, found digit by digit: the digits so far, and how many of the entries that
// share them belong to the k best.
struct Cut {
  int64_t prefix;
  int64_t wanted;
};

// Counts the entries that share the cut's prefix by their next digit. Integer atomics, first in
// shared memory: their order does not matter. Reads are coalesced. Launch: grid ceil(size / 4096),
// block 256. Slow where all entries have one digit.
template <typename Pool>
__global__ void __launch_bounds__(kThreads) count_digits_kernel(
    Pool pool,
    int shift,
    bool first,
    const Cut* __restrict__ cut,            // [1]
    unsigned long long* __restrict__ count  // [digits]
) {
  __shared__ int here[kDigits];
  here[threadIdx.x] = 0;
  __syncthreads();
  const uint64_t prefix = first ? 0 : static_cast<uint64_t>(cut->prefix);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPerBlock;
  for (int64_t i = begin + threadIdx.x; i < min(begin + kPerBlock, pool.size); i += kThreads) {
    const uint64_t digits = static_cast<uint64_t>(pool.rank(i)) >> shift;
    if (first || digits >> kDigitBits == prefix) {
      atomicAdd(&here[digits % kDigits], 1);
    }
  }
  __syncthreads();
  if (here[threadIdx.x] > 0) {
    atomicAdd(&count[threadIdx.x], static_cast<unsigned long long>(here[threadIdx.x]));
  }
}

// Appends to the cut the digit that the wanted-th largest entry has, and clears the counts for the
// next one. One block; a thread owns a digit and sums the counts above it.
static __global__ void __launch_bounds__(kThreads) choose_digit_kernel(
    int64_t k,
    bool first,
    Cut* __restrict__ cut,                  // [1]
    unsigned long long* __restrict__ count  // [digits]
) {
  __shared__ int64_t here[kDigits];
  const int digit = static_cast<int>(threadIdx.x);
  here[digit] = static_cast<int64_t>(count[digit]);
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

inline __device__ PairSum before_in_block(int64_t greater, int64_t equal, PairSum& total) {
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
template <typename Pool>
__device__ PairSum count_own(const Pool& pool, int64_t begin, int64_t end, uint64_t cut) {
  PairSum own{0, 0};
  for (int64_t i = begin; i < end; ++i) {
    const uint64_t rank = pool.rank(i);
    own.greater += rank > cut;
    own.equal += rank == cut;
  }
  return own;
}

// Counts each block's entries above the cut and at it. A thread owns 16 entries side by side.
// Launch: grid ceil(size / 4096), block 256.
template <typename Pool>
__global__ void __launch_bounds__(kThreads) count_best_kernel(
    Pool pool,
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

// Finds the cut of one pool after the other. Nothing waits for the device.
class RadixSelect {
 public:
  // For pools of up to `most` entries.
  RadixSelect(const DeviceScope& scope, const torch::stable::Tensor& like, int64_t most)
      : scope_(scope),
        cut_(zeros(like, 2)),
        count_(zeros(like, kDigits)),
        greater_(zeros(like, ceil_div(most, kPerBlock))),
        equal_(zeros(like, ceil_div(most, kPerBlock))) {}

  template <typename Pool>
  void run(const Pool& pool) {
    Cut* cut = reinterpret_cast<Cut*>(cut_.mutable_data_ptr<int64_t>());
    auto* count = reinterpret_cast<unsigned long long*>(count_.mutable_data_ptr<int64_t>());
    const dim3 block(kThreads);
    constexpr int kTop = 8 * static_cast<int>(sizeof(typename Pool::rank_t)) - kDigitBits;
    for (int shift = kTop; shift >= 0; shift -= kDigitBits) {
      const bool first = shift == kTop;
      launch(
          scope_,
          {"count_digits_kernel", grid(pool), block},
          count_digits_kernel<Pool>,
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
        {"count_best_kernel", grid(pool), block},
        count_best_kernel<Pool>,
        pool,
        cut,
        greater_.mutable_data_ptr<int64_t>(),
        equal_.mutable_data_ptr<int64_t>()
    );
    // beyond the blocks of a smaller pool there may be anything: no sum that is read contains it
    greater_to_ = cumulative_sum(greater_);
    equal_to_ = cumulative_sum(equal_);
  }

  // The grid of a kernel with 16 entries a thread.
  template <typename Pool>
  static dim3 grid(const Pool& pool) {
    return dim3(ceil_div(pool.size, kPerBlock));
  }

  const Cut* cut() const { return reinterpret_cast<const Cut*>(cut_.const_data_ptr<int64_t>()); }

  // Of each block's entries and those before, how many are above the cut and how many at it.
  const int64_t* greater_to() const { return greater_to_.const_data_ptr<int64_t>(); }
  const int64_t* equal_to() const { return equal_to_.const_data_ptr<int64_t>(); }

 private:
  static torch::stable::Tensor zeros(const torch::stable::Tensor& like, int64_t size) {
    return torch::stable::new_zeros(like, {size}, torch::headeronly::ScalarType::Long);
  }

  const DeviceScope& scope_;
  torch::stable::Tensor cut_, count_, greater_, equal_, greater_to_, equal_to_;
};

}  // namespace fullspectrum
