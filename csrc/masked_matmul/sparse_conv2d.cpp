#include "masked_matmul/sparse_conv2d.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>

#include "common/checks.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "sparse_conv2d";
constexpr const char* kBackwardOp = "sparse_conv2d_backward";

SparseConv2dSizes::Pair pair(
    const char* op, const char* name, const std::vector<int64_t>& values, int64_t least
) {
  STD_TORCH_CHECK(values.size() == 2, op, ": ", name, " must hold two integers");
  for (const int64_t value : values) {
    STD_TORCH_CHECK(value >= least, op, ": ", name, " must be at least ", least, ", got ", value);
  }
  return {values[0], values[1]};
}

SparseConv2dSizes check_shared(
    const char* op,
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const Conv2dGeometry& geometry
) {
  SparseConv2dSizes size{};
  size.out_channels = check_csr(op, crow_indices, col_indices);
  size.nnz = col_indices.numel();
  STD_TORCH_CHECK(
      values.dim() == 1 && values.numel() == size.nnz,
      op,
      ": values must be as long as col_indices, ",
      size.nnz,
      ", got ",
      values.numel()
  );
  check_floating(op, "x", x);
  check_same_dtype(op, "x", x, "values", values);
  check_same_device(op, "x", x, "values", values);
  check_same_device(op, "x", x, "col_indices", col_indices);
  STD_TORCH_CHECK(
      x.dim() == 4, op, ": x must be [batch, channels, height, width], got ", x.dim(), " dimensions"
  );
  size.batch = x.size(0);
  size.in_channels = x.size(1);
  size.groups = geometry.groups;
  STD_TORCH_CHECK(size.groups >= 1, op, ": groups must be at least 1, got ", size.groups);
  STD_TORCH_CHECK(
      size.in_channels % size.groups == 0 && size.out_channels % size.groups == 0,
      op,
      ": groups = ",
      size.groups,
      " must divide the ",
      size.in_channels,
      " input and the ",
      size.out_channels,
      " output channels"
  );
  size.kernel = pair(op, "kernel_size", geometry.kernel_size, 1);
  size.stride = pair(op, "stride", geometry.stride, 1);
  size.padding = pair(op, "padding", geometry.padding, 0);
  size.dilation = pair(op, "dilation", geometry.dilation, 1);
  for (int d = 0; d < 2; ++d) {
    size.in[d] = x.size(2 + d);
    const int64_t padded = size.in[d] + 2 * size.padding[d];
    const int64_t reach = size.dilation[d] * (size.kernel[d] - 1) + 1;
    STD_TORCH_CHECK(
        padded >= reach,
        op,
        ": the kernel spans ",
        reach,
        " pixels, more than the padded input's ",
        padded
    );
    size.out[d] = (padded - reach) / size.stride[d] + 1;
  }
  return size;
}

}  // namespace

SparseConv2dSizes check_sparse_conv2d(
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const Conv2dGeometry& geometry,
    const std::optional<Tensor>& bias
) {
  const SparseConv2dSizes size = check_shared(kOp, x, values, crow_indices, col_indices, geometry);
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->dim() == 1 && bias->numel() == size.out_channels,
        kOp,
        ": bias must be [out_channels] = [",
        size.out_channels,
        "], got ",
        bias->numel(),
        " elements"
    );
    check_same_dtype(kOp, "x", x, "bias", *bias);
    check_same_device(kOp, "x", x, "bias", *bias);
  }
  return size;
}

SparseConv2dSizes check_sparse_conv2d_backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const Conv2dGeometry& geometry
) {
  const SparseConv2dSizes size =
      check_shared(kBackwardOp, x, values, crow_indices, col_indices, geometry);
  check_same_dtype(kBackwardOp, "grad", grad, "x", x);
  check_same_device(kBackwardOp, "grad", grad, "x", x);
  bool fits = grad.dim() == 4;
  for (int d = 0; fits && d < 4; ++d) {
    fits = grad.size(d) == size.out_shape()[d];
  }
  STD_TORCH_CHECK(
      fits,
      kBackwardOp,
      ": grad must have the shape of the output, [",
      size.batch,
      ", ",
      size.out_channels,
      ", ",
      size.out[0],
      ", ",
      size.out[1],
      "]"
  );
  return size;
}

bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) {
    return false;
  }
  int64_t stride = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1) {
      if (tensor.stride(d) != stride) {
        return false;
      }
      stride *= tensor.size(d);
    }
  }
  return true;
}

Tensor new_image(const Tensor& x, const std::vector<int64_t>& shape, bool channels_last) {
  if (!channels_last) {
    return torch::stable::new_empty(x, shape);
  }
  const std::vector<int64_t> stored{shape[0], shape[2], shape[3], shape[1]};
  const Tensor image = torch::stable::new_empty(x, stored);
  return torch::stable::transpose(torch::stable::transpose(image, 2, 3), 1, 2);
}

}  // namespace fullspectrum
