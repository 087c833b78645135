#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace fullspectrum {

struct TopologyUpdateSizes {
  int64_t rows;
  int64_t cols;
  int64_t nnz;  // before
  int64_t drop;
  int64_t grow;
  int64_t new_nnz;  // after
};

// Shared by the CPU and the CUDA kernel.
TopologyUpdateSizes check_topology_update(
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    const torch::stable::Tensor& drop,
    const torch::stable::Tensor& grow,
    int64_t cols
);

}  // namespace fullspectrum
