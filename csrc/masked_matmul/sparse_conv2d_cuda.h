#pragma once

// The sparse convolution on CUDA:
//
//   sparse_conv2d_cuda.h               which pixels meet which; what the other files give
//   sparse_conv2d_cuda.cu              the operators
//   sparse_conv2d_product_cuda.cu      images times a sparse matrix: y, and the gradient for x
//   sparse_conv2d_lists_cuda.h         the nonzeros that it walks
//   sparse_conv2d_grad_values_cuda.cu  the gradient for the stored values
//   sparse_conv2d_tiles_cuda.h         tiles of images in shared memory, for product and gradient

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/cuda_launch.h"
#include "masked_matmul/sparse_conv2d.h"

namespace fullspectrum {

// Which pixel of the images that are read ("sources") a tap joins with which pixel of those that
// are written ("targets"). In each dimension, tap k joins target pixel t with source pixel
//
//   (t * step + shift + k * tap) / every,   where that is a whole number:
//
//                      sources  targets  step    shift     tap        every
//   y                  x        y        stride  -padding  dilation   1
//   gradient for x     grad     x        1       padding   -dilation  stride
//
// Target pixels that are `every` apart meet the same taps: they are of one phase. Pairs are
// (height, width).
struct Meeting {
  int64_t batch;
  int source_channels, target_channels, groups, group_source, group_target;
  int source[2], target[2], kernel[2];
  int step[2], shift[2], tap[2], every[2];
  int phases[2];  // that have a pixel
  int taps;

  __host__ __device__ int all_phases() const { return phases[0] * phases[1]; }
  // The most pixels that a phase has in one dimension.
  __host__ __device__ int phase_pixels(int d) const { return (target[d] - 1) / every[d] + 1; }
  __device__ int64_t source_pixels() const { return int64_t{source[0]} * source[1]; }
  __device__ int64_t target_pixels() const { return int64_t{target[0]} * target[1]; }

  // The phase that meets tap k; there may be no pixel of it.
  __device__ int phase_of(int d, int k) const {
    const int past = -(shift[d] + k * tap[d]) % every[d];
    return past < 0 ? past + every[d] : past;
  }
  // Where a phase's first target pixel meets a tap of its own; may lie outside the sources.
  __device__ int first_met(int d, int phase, int k) const {
    return (phase * step[d] + shift[d] + k * tap[d]) / every[d];
  }
  // At most the first_met of every tap.
  __device__ int least_met(int d, int phase) const {
    const int least = phase * step[d] + shift[d] + min(0, (kernel[d] - 1) * tap[d]);
    return least / every[d] - (least % every[d] < 0 ? 1 : 0);
  }
  __device__ bool inside(int y, int x) const {
    return y >= 0 && y < source[0] && x >= 0 && x < source[1];
  }
};

// y is the product of the images x and W, plus bias.
void sparse_conv2d_product(
    const char* op,
    const DeviceScope& scope,
    const Meeting& meeting,
    const torch::stable::Tensor& x,             // [batch, in channels, height, width]
    const torch::stable::Tensor& values,        // [nnz]
    const torch::stable::Tensor& crow_indices,  // [out channels + 1]
    const torch::stable::Tensor& col_indices,   // [nnz]
    const std::optional<torch::stable::Tensor>& bias,
    const torch::stable::Tensor& y  // [batch, out channels, out height, out width], any order
);

// grad_x is the product of the images grad and W^T.
void sparse_conv2d_transposed_product(
    const char* op,
    const DeviceScope& scope,
    const Meeting& meeting,
    const torch::stable::Tensor& grad,          // [batch, out channels, out height, out width]
    const torch::stable::Tensor& values,        // [nnz]
    const torch::stable::Tensor& ccol_indices,  // [columns + 1]
    const torch::stable::Tensor& row_indices,   // [nnz]
    const torch::stable::Tensor& permutation,   // [nnz]
    const torch::stable::Tensor& grad_x         // [batch, in channels, height, width], any order
);

// grad_values holds, for each nonzero, the sum over all pairs of pixels that it joins of grad's
// times x's.
void sparse_conv2d_grad_values(
    const char* op,
    const DeviceScope& scope,
    const Meeting& meeting,                     // of y
    const torch::stable::Tensor& grad,          // [batch, out channels, out height, out width]
    const torch::stable::Tensor& x,             // [batch, in channels, height, width]
    const torch::stable::Tensor& crow_indices,  // [out channels + 1]
    const torch::stable::Tensor& col_indices,   // [nnz]
    const torch::stable::Tensor& grad_values    // [nnz]
);

}  // namespace fullspectrum
