#include "masked_matmul/keep_kernels.h"

// Compiled once for each instruction set, so: no header with inline functions of external linkage.

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

// All bits of a word or none, without a branch, so that the compiler makes vectors of it.
template <typename word_t>
void keep(word_t* __restrict__ word, const uint8_t* __restrict__ flag, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    word[i] &= static_cast<word_t>(word_t{0} - flag[i]);
  }
}

}  // namespace

template <typename word_t>
KeepKernel<word_t> keep_kernel() {
  return keep<word_t>;
}

template KeepKernel<uint16_t> keep_kernel();
template KeepKernel<uint32_t> keep_kernel();
template KeepKernel<uint64_t> keep_kernel();

}  // namespace fullspectrum::FULLSPECTRUM_ISA
