#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/conv2d_geometry.h"

namespace fullspectrum {

// y[batch, out channels, ...] = the convolution of x[batch, in channels, ...] with W, plus bias. W
// [out channels, in channels / groups * kernel height * kernel width] is in CSR form. Pairs are
// (height, width).
struct SparseConv2dSizes {
  using Pair = std::array<int64_t, 2>;
  int64_t batch;
  int64_t in_channels;
  int64_t out_channels;
  int64_t groups;
  int64_t nnz;
  Pair in;
  Pair out;
  Pair kernel;
  Pair stride;
  Pair padding;
  Pair dilation;

  int64_t group_in() const { return in_channels / groups; }
  int64_t group_out() const { return out_channels / groups; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t cols() const { return group_in() * taps(); }
  std::vector<int64_t> in_shape() const { return {batch, in_channels, in[0], in[1]}; }
  std::vector<int64_t> out_shape() const { return {batch, out_channels, out[0], out[1]}; }
};

// Shared by the CPU and the CUDA kernel so that both refuse the same inputs with the same words.
SparseConv2dSizes check_sparse_conv2d(
    const torch::stable::Tensor& x,
    const torch::stable::Tensor& values,
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    const Conv2dGeometry& geometry,
    const std::optional<torch::stable::Tensor>& bias
);

SparseConv2dSizes check_sparse_conv2d_backward(
    const torch::stable::Tensor& grad,
    const torch::stable::Tensor& x,
    const torch::stable::Tensor& values,
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices,
    const Conv2dGeometry& geometry
);

// Whether a tensor [batch, channels, height, width] holds its channels innermost, and not also (as
// where there is one channel) in torch's default order.
bool is_channels_last(const torch::stable::Tensor& tensor);

// A new tensor of this shape [batch, channels, height, width] in x's dtype, order as x's.
torch::stable::Tensor new_image(
    const torch::stable::Tensor& x, const std::vector<int64_t>& shape, bool channels_last
);

}  // namespace fullspectrum
