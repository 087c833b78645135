#pragma once

#include <torch/csrc/stable/tensor.h>

namespace fullspectrum {

// x = x where mask, 0 elsewhere, in place. The kernels see words of x's element size: a select of
// bits is the same for every dtype, and a zero bit pattern is 0 in each.

// Shared by the CPU and the CUDA kernel.
void check_keep_masked(const torch::stable::Tensor& x, const torch::stable::Tensor& mask);

// Calls f(word) with an unsigned integer of this many bytes.
template <typename F>
void dispatch_word(int64_t bytes, F&& f) {
  switch (bytes) {
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

}  // namespace fullspectrum
