#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace fullspectrum {

// Shared by the CPU and the CUDA kernels. Returns where each layer's taps start in the outputs, and
// at the end their number.
std::vector<int64_t> check_regular_subgraphs(
    const std::vector<torch::stable::Tensor>& crow_indices,
    const std::vector<torch::stable::Tensor>& col_indices,
    const std::vector<int64_t>& cols
);

}  // namespace fullspectrum
