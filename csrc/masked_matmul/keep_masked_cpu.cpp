#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "common/cpu_features.h"
#include "common/library.h"
#include "common/parallel.h"
#include "masked_matmul/keep_kernels.h"
#include "masked_matmul/keep_masked.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

// Elements from which on a second thread is worth its start.
constexpr int64_t kGrain = 1 << 15;

void keep_masked_cpu(Tensor x, const Tensor& mask) {
  check_keep_masked(x, mask);
  // a bool is one byte, 0 or 1
  const auto* flag = static_cast<const uint8_t*>(mask.data_ptr());
  dispatch_word(x.element_size(), [&](auto word_tag) {
    using word_t = decltype(word_tag);
    auto* word = static_cast<word_t*>(x.data_ptr());
    const KeepKernel<word_t> keep = FULLSPECTRUM_ACTIVE(keep_kernel<word_t>());
    parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      keep(word + begin, flag + begin, end - begin);
    });
  });
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("keep_masked_", TORCH_BOX(&keep_masked_cpu)); }

}  // namespace fullspectrum
