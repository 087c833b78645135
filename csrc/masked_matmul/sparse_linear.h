#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace fullspectrum {

// y[batch, out] = x[batch, in] W^T + bias, W [out, in] in CSR form; leading dimensions of x are one
// batch dimension.
struct SparseLinearSizes {
  int64_t batch;
  int64_t in;
  int64_t out;
  int64_t nnz;
};

// Shared by the CPU and the CUDA kernel so that both refuse the same inputs with the same words.
SparseLinearSizes check_sparse_linear(
    const torch::stable::Tensor& x,
    const torch::stable::Tensor& values,
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    int64_t out_features,
    const std::optional<torch::stable::Tensor>& bias
);

// x and values are given where the gradient for the other is wanted.
SparseLinearSizes check_sparse_linear_backward(
    const torch::stable::Tensor& grad,
    const std::optional<torch::stable::Tensor>& x,
    const std::optional<torch::stable::Tensor>& values,
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    int64_t in_features,
    const std::optional<torch::stable::Tensor>& ccol_indices,
    const std::optional<torch::stable::Tensor>& row_indices,
    const std::optional<torch::stable::Tensor>& permutation
);

}  // namespace fullspectrum
