#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "common/conv2d_geometry.h"

namespace fullspectrum {

// A layer's dense weight gradient [rows, cols] as tiles of whole rows, computed one at a time by
// torch's own products, so that nobody ever holds all of it. Shared by the CPU and the CUDA
// kernels.
struct GradientTiles {
  int64_t rows;
  int64_t cols;
  // Where tiles begin, and rows at the end. Fixed by the sizes alone: a tile's product is the same
  // numbers whatever the number of threads does elsewhere.
  std::vector<int64_t> boundary;
  // Rows [first, end), row-major, the caller's to overwrite until the next call.
  std::function<torch::stable::Tensor(int64_t first, int64_t end)> product;

  // Elements of the largest tile.
  int64_t largest() const;
};

// A linear layer's operands in the dtype of the computation: float16 and bfloat16 are multiplied in
// float32.
struct LinearOperands {
  torch::stable::Tensor grad;  // [batch, rows]
  torch::stable::Tensor x;     // [batch, cols]
};

// Checks the arguments, k among them.
LinearOperands linear_operands(
    const torch::stable::Tensor& grad,  // [..., rows]
    const torch::stable::Tensor& x,     // [..., cols]
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    int64_t k
);

// Both check the arguments likewise, and aim at tiles of tile_size elements.
GradientTiles linear_gradient_tiles(
    const torch::stable::Tensor& grad,  // [..., rows]
    const torch::stable::Tensor& x,     // [..., cols]
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    int64_t k,
    int64_t tile_size
);

GradientTiles conv2d_gradient_tiles(
    const torch::stable::Tensor& grad,  // [n, rows, h_out, w_out]
    const torch::stable::Tensor& x,     // [n, c_in, h, w], cols = c_in / groups * kh * kw
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    int64_t k,
    const Conv2dGeometry& geometry,
    int64_t tile_size
);

}  // namespace fullspectrum
