#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace fullspectrum {

// The Euclidean projection of scores z on {s: 0 <= s <= 1, sum s <= budget} is clip(z - v, 0, 1)
// with the least v >= 0 that meets the budget. f(v) = sum clip(z - v, 0, 1) falls along straight
// lines, with kinks where z - v is 0 or 1.
//
// A score that is NaN or infinite makes the sums, v and all results NaN.

// The checks of project_scores_. Returns the number of scores.
int64_t check_project_scores(const std::vector<torch::stable::Tensor>& scores, double budget);

}  // namespace fullspectrum
