#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/cuda_launch.h"
#include "common/library.h"
#include "selection/projection.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Points at which the sum is taken in one round: a lane owns one.
constexpr int kPoints = kWarp;
// Scores of a block, while there are not more blocks than this.
constexpr int64_t kPerBlock = 4096;
constexpr int64_t kMostBlocks = 1024;

// The threshold lies above `low` and not above `high`. Both are the bits of doubles, whose order is
// that of the numbers as long as these are not negative; -1 stands for less than 0.
struct Bracket {
  int64_t low;
  int64_t high;
};
constexpr int64_t kBelowZero = -1;
constexpr int64_t kInfinity = 0x7ff0000000000000;
constexpr int64_t kNan = 0x7ff8000000000000;

__device__ double number_of(int64_t bits) {
  double number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

// Equal steps through the bracket, without its lower end.
__device__ int64_t point_of(const Bracket& bracket, int lane) {
  const int64_t step = (bracket.high - bracket.low + kPoints) / (kPoints + 1);
  return min(bracket.low + step * (lane + 1), bracket.high);
}

// Sums clip(score - point, 0, 1) for each point. A lane owns a point and a warp every eighth score,
// which all of its lanes read at once. Launch: grid `blocks`, block 256.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) sum_at_points_kernel(
    const scalar_t* __restrict__ scores,  // [size]
    int64_t size,
    const Bracket* __restrict__ bracket,
    double* __restrict__ sums  // [blocks, kPoints]
) {
  __shared__ double of_warp[kWarps][kPoints];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const double point = number_of(point_of(*bracket, lane));
  const int64_t per_block = (size + gridDim.x - 1) / gridDim.x;
  const int64_t begin = blockIdx.x * per_block;
  const int64_t end = min(begin + per_block, size);
  double sum = 0;
  for (int64_t i = begin + warp; i < end; i += kWarps) {
    const double z = static_cast<double>(scores[i]);
    const double x = z - point;
    sum += (x > 0 ? (x < 1 ? x : 1.0) : 0.0) + (z - z);  // z - z is NaN where z is not finite
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp == 0) {
    for (int other = 1; other < kWarps; ++other) {
      sum += of_warp[other][lane];
    }
    sums[int64_t{blockIdx.x} * kPoints + lane] = sum;
  }
}

// Moves the bracket to the two neighbouring points with the threshold between them. One warp; a
// lane owns a point.
static __global__ void __launch_bounds__(kWarp) narrow_bracket_kernel(
    const double* __restrict__ sums,  // [blocks, kPoints]
    int64_t blocks,
    double budget,
    Bracket* __restrict__ bracket,
    double* __restrict__ threshold  // [1], the upper end
) {
  const int lane = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    sum += sums[block * kPoints + lane];
  }
  const Bracket before = *bracket;
  const int above = __popc(__ballot_sync(~0u, sum > budget));  // rounding keeps the sums' order
  if (lane == 0) {
    Bracket after = before;
    if (above > 0) {
      after.low = point_of(before, above - 1);
    }
    if (above < kPoints) {
      after.high = point_of(before, above);
    }
    if (sum != sum) {
      after = {kNan - 1, kNan};
    }
    *bracket = after;
    *threshold = number_of(after.high);
  }
}

// score = clip(score - threshold, 0, 1); a thread owns a score. Launch: grid ceil(size / 256),
// block 256.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) project_kernel(
    scalar_t* __restrict__ scores,  // [size]
    int64_t size,
    const double* __restrict__ threshold  // [1]
) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) {
    const double x = static_cast<double>(scores[i]) - *threshold;
    scores[i] = static_cast<scalar_t>(x <= 0 ? 0 : (x > 1 ? 1 : x));
  }
}

// Round by round the bracket shrinks to neighbouring doubles, of which the upper one is the
// threshold: the least number that meets the budget. Nothing waits for the device.
template <typename scalar_t>
Tensor project(const std::vector<Tensor>& scores, int64_t size, double budget) {
  const DeviceScope scope(scores[0]);
  Tensor all = torch::stable::new_empty(scores[0], {size});
  int64_t first = 0;
  for (const Tensor& tensor : scores) {
    Tensor own = torch::stable::narrow(all, 0, first, tensor.numel());
    torch::stable::copy_(own, torch::stable::reshape(tensor, {tensor.numel()}));
    first += tensor.numel();
  }
  const int64_t blocks = std::min(ceil_div(size, kPerBlock), kMostBlocks);
  Tensor sums = torch::stable::new_empty(scores[0], {blocks, kPoints}, ScalarType::Double);
  Tensor bounds = torch::stable::new_empty(scores[0], {2}, ScalarType::Long);
  Tensor low = torch::stable::narrow(bounds, 0, 0, 1),
         high = torch::stable::narrow(bounds, 0, 1, 1);
  torch::stable::fill_(low, kBelowZero);
  torch::stable::fill_(high, kInfinity);
  Tensor threshold = torch::stable::new_empty(scores[0], {}, ScalarType::Double);
  auto* bracket = reinterpret_cast<Bracket*>(bounds.mutable_data_ptr<int64_t>());
  for (int64_t width = kInfinity - kBelowZero; width > 1; width = ceil_div(width, kPoints + 1)) {
    launch(
        scope,
        {"sum_at_points_kernel", dim3(blocks), dim3(kThreads)},
        sum_at_points_kernel<scalar_t>,
        all.template const_data_ptr<scalar_t>(),
        size,
        bracket,
        sums.mutable_data_ptr<double>()
    );
    launch(
        scope,
        {"narrow_bracket_kernel", dim3(1), dim3(kWarp)},
        narrow_bracket_kernel,
        sums.const_data_ptr<double>(),
        blocks,
        budget,
        bracket,
        threshold.mutable_data_ptr<double>()
    );
  }
  for (const Tensor& tensor : scores) {
    launch(
        scope,
        {"project_kernel", dim3(ceil_div(tensor.numel(), kThreads)), dim3(kThreads)},
        project_kernel<scalar_t>,
        static_cast<scalar_t*>(tensor.data_ptr()),
        tensor.numel(),
        threshold.const_data_ptr<double>()
    );
  }
  return threshold;
}

Tensor project_scores_cuda(std::vector<Tensor> scores, double budget) {
  const int64_t size = check_project_scores(scores, budget);
  return scores[0].scalar_type() == ScalarType::Double ? project<double>(scores, size, budget)
                                                       : project<float>(scores, size, budget);
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) { m.impl("project_scores_", TORCH_BOX(&project_scores_cuda)); }

}  // namespace fullspectrum
