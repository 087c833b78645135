#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/library.h"
#include "masked_matmul/keep_masked.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;

// One element a thread, neighbours side by side: bound by memory, 2 * sizeof(word_t) + 1 bytes
// each.
//
// Launch: grid (elements / 256), block 256.
template <typename word_t>
__global__ void __launch_bounds__(kThreads) keep_masked_kernel(
    word_t* __restrict__ words,     // [count]
    const bool* __restrict__ kept,  // [count]
    int64_t count
) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count && !kept[i]) {
    words[i] = 0;
  }
}

void keep_masked_cuda(Tensor x, const Tensor& mask) {
  check_keep_masked(x, mask);
  const DeviceScope scope(x);
  const int64_t blocks = ceil_div(x.numel(), int64_t{kThreads});
  constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;
  STD_TORCH_CHECK(blocks <= kMaxGridX, "keep_masked_: x is too large, ", x.numel(), " elements");
  dispatch_word(x.element_size(), [&](auto zero) {
    using word_t = decltype(zero);
    launch(
        scope,
        {"keep_masked_kernel", dim3(static_cast<unsigned>(blocks)), dim3(kThreads)},
        keep_masked_kernel<word_t>,
        static_cast<word_t*>(x.data_ptr()),
        static_cast<const bool*>(mask.data_ptr()),
        x.numel()
    );
  });
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) { m.impl("keep_masked_", TORCH_BOX(&keep_masked_cuda)); }

}  // namespace fullspectrum
