#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace fullspectrum {

// Shared by the CPU and the CUDA kernels so that both refuse the same inputs with the same words.
// values is empty (all entries are one) or holds one tensor a matrix. Returns each matrix's rows.
std::vector<int64_t> check_matrices(
    const char* op,
    const std::vector<torch::stable::Tensor>& crow_indices,
    const std::vector<torch::stable::Tensor>& col_indices,
    const std::vector<torch::stable::Tensor>& values,
    const std::vector<int64_t>& cols
);

// `method` numbers the ways of spectrum::Method.
void check_accuracy(const char* op, int64_t k, double tol, int64_t method);

// The taps of each matrix's subgraphs, one after the other; `taps_of` says how many each subgraph
// has and `subgraphs` how many of them each matrix has.
void check_subgraphs(
    const char* op,
    const std::vector<torch::stable::Tensor>& crow_indices,
    const std::vector<torch::stable::Tensor>& taps,
    const std::vector<int64_t>& subgraphs,
    const std::vector<int64_t>& taps_of
);

}  // namespace fullspectrum
