#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace fullspectrum {

// Scores that compete with each other for a number of places.
struct ScoreGroup {
  std::vector<torch::stable::Tensor> scores;
  int64_t size;  // of all of them
  int64_t count;
};

// The checks of topk_masks: a count for each tensor, or a single one for all of them together.
// float16 and bfloat16 scores come out as float32, which orders them the same.
std::vector<ScoreGroup> check_topk_masks(
    const std::vector<torch::stable::Tensor>& scores, const std::vector<int64_t>& counts
);

// Those of topk_topologies: matrices, each with a count of its own.
std::vector<ScoreGroup> check_topk_topologies(
    const std::vector<torch::stable::Tensor>& scores, const std::vector<int64_t>& counts
);

// Those of bottomk_positions, for scores of any shape; the group's count is that of the others.
ScoreGroup check_bottomk_positions(const torch::stable::Tensor& scores, int64_t count);

// The CSR fields of a matrix [rows, cols] with `count` entries, uninitialised; int32 where rows,
// columns and entries fit.
struct Topology {
  torch::stable::Tensor crow_indices;
  torch::stable::Tensor col_indices;
};
Topology new_topology(const torch::stable::Tensor& scores, int64_t count);

}  // namespace fullspectrum
