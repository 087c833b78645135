#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/library.h"
#include "masked_matmul/sparse_conv2d_cuda.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

// The kernels count pixels of a side, channels and columns of W in 32 bits.
int narrow(const char* op, int64_t value) {
  STD_TORCH_CHECK(value <= INT32_MAX / 4, op, ": too large for the CUDA kernel, got ", value);
  return static_cast<int>(value);
}

Meeting meeting_of_y(const char* op, const SparseConv2dSizes& size) {
  Meeting g{};
  g.batch = size.batch;
  g.source_channels = narrow(op, size.in_channels);
  g.target_channels = narrow(op, size.out_channels);
  g.groups = narrow(op, size.groups);
  g.group_source = narrow(op, size.group_in());
  g.group_target = narrow(op, size.group_out());
  g.taps = narrow(op, size.taps());
  narrow(op, size.cols());
  for (int d = 0; d < 2; ++d) {
    narrow(op, size.in[d] + 2 * size.padding[d]);
    g.source[d] = narrow(op, size.in[d]);
    g.target[d] = narrow(op, size.out[d]);
    g.kernel[d] = narrow(op, size.kernel[d]);
    g.step[d] = narrow(op, size.stride[d]);
    g.shift[d] = -narrow(op, size.padding[d]);
    g.tap[d] = narrow(op, size.dilation[d]);
    g.every[d] = 1;
    g.phases[d] = 1;
  }
  return g;
}

Meeting meeting_of_grad_x(const char* op, const SparseConv2dSizes& size) {
  Meeting g = meeting_of_y(op, size);
  std::swap(g.source_channels, g.target_channels);
  std::swap(g.group_source, g.group_target);
  for (int d = 0; d < 2; ++d) {
    std::swap(g.source[d], g.target[d]);
    std::swap(g.step[d], g.every[d]);
    g.shift[d] = -g.shift[d];
    g.tap[d] = -g.tap[d];
    g.phases[d] = std::min(g.every[d], g.target[d]);
  }
  narrow(op, int64_t{g.phases[0]} * g.phases[1] * g.target_channels);
  return g;
}

Tensor sparse_conv2d_cuda(
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    std::vector<int64_t> kernel_size,
    std::optional<Tensor> bias,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    std::vector<int64_t> dilation,
    int64_t groups,
    std::optional<Tensor>,  // the transposed index is for the derivative
    std::optional<Tensor>,
    std::optional<Tensor>
) {
  const char* op = "sparse_conv2d";
  const SparseConv2dSizes size = check_sparse_conv2d(
      x, values, crow_indices, col_indices, {kernel_size, stride, padding, dilation, groups}, bias
  );
  const DeviceScope scope(x);
  const Tensor y = new_image(x, size.out_shape(), is_channels_last(x));
  if (bias) {
    bias = torch::stable::contiguous(*bias);
  }
  sparse_conv2d_product(
      op,
      scope,
      meeting_of_y(op, size),
      torch::stable::contiguous(x),
      torch::stable::contiguous(values),
      crow_indices,
      col_indices,
      bias,
      y
  );
  return y;
}

std::tuple<Tensor, Tensor> sparse_conv2d_backward_cuda(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    std::vector<int64_t> kernel_size,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    std::vector<int64_t> dilation,
    int64_t groups,
    bool need_x,
    bool need_values,
    std::optional<Tensor> ccol_indices,
    std::optional<Tensor> row_indices,
    std::optional<Tensor> permutation
) {
  const char* op = "sparse_conv2d_backward";
  const SparseConv2dSizes size = check_sparse_conv2d_backward(
      grad, x, values, crow_indices, col_indices, {kernel_size, stride, padding, dilation, groups}
  );
  STD_TORCH_CHECK(
      !need_x || (ccol_indices && row_indices && permutation),
      op,
      ": the gradient for x needs the transposed index on CUDA"
  );
  const DeviceScope scope(x);
  const std::vector<int64_t> none{0}, nnz{size.nnz};
  const Tensor grad_x = need_x ? new_image(x, size.in_shape(), is_channels_last(x))
                               : torch::stable::new_empty(x, none);
  const Tensor grad_values = torch::stable::new_empty(x, need_values ? nnz : none);
  const Tensor grads = torch::stable::contiguous(grad);
  if (need_x) {
    sparse_conv2d_transposed_product(
        op,
        scope,
        meeting_of_grad_x(op, size),
        grads,
        torch::stable::contiguous(values),
        *ccol_indices,
        *row_indices,
        *permutation,
        grad_x
    );
  }
  if (need_values) {
    sparse_conv2d_grad_values(
        op,
        scope,
        meeting_of_y(op, size),
        grads,
        torch::stable::contiguous(x),
        crow_indices,
        col_indices,
        grad_values
    );
  }
  return {grad_x, grad_values};
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) {
  m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d_cuda));
  m.impl("sparse_conv2d_backward", TORCH_BOX(&sparse_conv2d_backward_cuda));
}

}  // namespace fullspectrum
