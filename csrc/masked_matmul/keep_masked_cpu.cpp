#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "common/library.h"
#include "masked_matmul/keep_masked.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

// Elements from which on a second thread is worth its start.
constexpr int64_t kGrain = 1 << 15;

void keep_masked_cpu(Tensor x, const Tensor& mask) {
  check_keep_masked(x, mask);
  // a bool is one byte, 0 or 1
  const auto* kept = static_cast<const uint8_t*>(mask.data_ptr());
  dispatch_word(x.element_size(), [&](auto word_tag) {
    using word_t = decltype(word_tag);
    auto* words = static_cast<word_t*>(x.data_ptr());
    torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      word_t* __restrict__ word = words;
      const uint8_t* __restrict__ flag = kept;
      for (int64_t i = begin; i < end; ++i) {
        word[i] &= static_cast<word_t>(word_t{0} - flag[i]);  // all bits, or none: no branch
      }
    });
  });
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("keep_masked_", TORCH_BOX(&keep_masked_cpu)); }

}  // namespace fullspectrum
