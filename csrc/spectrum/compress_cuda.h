#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "common/cuda_launch.h"
#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

// The matrices of one call, after check_matrices().
struct DeviceMatrices {
  std::vector<torch::stable::Tensor> crow_indices;
  std::vector<torch::stable::Tensor> col_indices;
  std::vector<torch::stable::Tensor> values;  // empty: all entries are one
  std::vector<torch::stable::Tensor> taps;    // empty: each matrix is one problem
  std::vector<int64_t> rows;
  std::vector<int64_t> cols;

  const torch::stable::Tensor& like() const { return crow_indices[0]; }
};

// One side's lists of all problems, without its zero rows or columns.
struct Side {
  const int64_t* offset;  // [live nodes + 1], where each node's list starts
  const int64_t* first;   // [problems + 1], each problem's first node
  const int32_t* index;   // [nnz], neighbours, numbered within their problem
  const double* value;    // [nnz], or null where all are one

  __device__ Lists lists(int64_t problem) const {
    const int64_t from = first[problem];
    return {first[problem + 1] - from, offset + from, index, value};
  }
};

// All problems of one call on the device; memory in proportion to the entries.
struct DeviceProblems {
  Side rows;
  Side columns;
  const int64_t* repeated;  // [problems], entries that are stored more than once
  std::vector<torch::stable::Tensor> memory;
};

// Splits the matrices into problems: the subgraphs that taps and taps_of list, or whole matrices.
// The sizes of what is live are known to the device only, so nothing here waits for it.
DeviceProblems compress(
    const DeviceScope& scope,
    const DeviceMatrices& all,
    const std::vector<int64_t>& taps_of,  // [problems], of no use where all.taps is empty
    int64_t problems
);

}  // namespace fullspectrum::spectrum
