#include "selection/gradient_tiles.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "common/aten.h"
#include "common/checks.h"
#include "common/compute_dtype.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr const char* kLinear = "dense_grad_topk";
constexpr const char* kConv2d = "conv2d_dense_grad_topk";

// Fewer rows than this make a slow product.
constexpr int64_t kLeastRows = 64;

void check_operands(
    const char* op, const Tensor& grad, const Tensor& x, const Tensor& col_indices
) {
  check_floating(op, "x", x);
  check_same_dtype(op, "grad", grad, "x", x);
  check_same_device(op, "grad", grad, "x", x);
  check_same_device(op, "x", x, "col_indices", col_indices);
}

void check_k(const char* op, int64_t k, int64_t rows, int64_t cols, int64_t nnz) {
  const int64_t free = rows * cols - nnz;
  STD_TORCH_CHECK(
      k >= 0 && k <= free,
      op,
      ": k must lie between 0 and the number of positions outside the topology, ",
      free,
      ", got ",
      k
  );
}

int64_t rows_of_a_tile(int64_t cols, int64_t tile_size) {
  return std::max(kLeastRows, tile_size / std::max<int64_t>(cols, 1));
}

// 0, rows and the steps between them; no step leads across a multiple of `section`.
std::vector<int64_t> boundaries(int64_t rows, int64_t step, int64_t section) {
  std::vector<int64_t> boundary{0};
  while (boundary.back() < rows) {
    const int64_t row = boundary.back();
    boundary.push_back(std::min(row + step, (row / section + 1) * section));
  }
  return boundary;
}

// The product of all dimensions but the last.
int64_t batch_of(const Tensor& tensor) {
  int64_t batch = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) {
    batch *= tensor.size(d);
  }
  return batch;
}

}  // namespace

int64_t GradientTiles::largest() const {
  int64_t most = 0;
  for (size_t i = 1; i < boundary.size(); ++i) {
    most = std::max(most, boundary[i] - boundary[i - 1]);
  }
  return most * cols;
}

LinearOperands linear_operands(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t k
) {
  const int64_t rows = check_csr(kLinear, crow_indices, col_indices);
  check_operands(kLinear, grad, x, col_indices);
  STD_TORCH_CHECK(
      grad.dim() >= 1 && grad.dim() == x.dim() && batch_of(grad) == batch_of(x),
      kLinear,
      ": grad and x must have the same leading dimensions"
  );
  STD_TORCH_CHECK(
      grad.size(grad.dim() - 1) == rows,
      kLinear,
      ": the last dimension of grad must be the number of rows, ",
      rows,
      ", got ",
      grad.size(grad.dim() - 1)
  );
  const int64_t batch = batch_of(x);
  const int64_t cols = x.size(x.dim() - 1);
  check_k(kLinear, k, rows, cols, col_indices.numel());
  return {
      torch::stable::reshape(in_compute_dtype(grad), {batch, rows}),
      torch::stable::reshape(in_compute_dtype(x), {batch, cols})
  };
}

GradientTiles linear_gradient_tiles(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t k,
    int64_t tile_size
) {
  const LinearOperands operands = linear_operands(grad, x, crow_indices, col_indices, k);
  const int64_t rows = operands.grad.size(1);
  const int64_t cols = operands.x.size(1);
  const int64_t tile_rows = std::min(rows, rows_of_a_tile(cols, tile_size));
  Tensor buffer = torch::stable::new_empty(operands.x, {tile_rows, cols});
  return {
      rows,
      cols,
      boundaries(rows, tile_rows, rows),
      [=,
       by_row = torch::stable::transpose(operands.grad, 0, 1)](int64_t first, int64_t end) mutable {
        Tensor tile = torch::stable::narrow(buffer, 0, 0, end - first);
        mm_out(tile, torch::stable::narrow(by_row, 0, first, end - first), operands.x);
        return tile;
      }
  };
}

GradientTiles conv2d_gradient_tiles(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t k,
    const Conv2dGeometry& geometry,
    int64_t tile_size
) {
  const int64_t rows = check_csr(kConv2d, crow_indices, col_indices);
  check_operands(kConv2d, grad, x, col_indices);
  STD_TORCH_CHECK(
      grad.dim() == 4 && x.dim() == 4 && grad.size(0) == x.size(0),
      kConv2d,
      ": grad must be [n, c_out, h_out, w_out] and x [n, c_in, h, w]"
  );
  STD_TORCH_CHECK(
      grad.size(1) == rows,
      kConv2d,
      ": grad must have as many channels as there are rows, ",
      rows,
      ", got ",
      grad.size(1)
  );
  const int64_t groups = geometry.groups;
  STD_TORCH_CHECK(
      groups > 0 && rows % groups == 0 && x.size(1) % groups == 0,
      kConv2d,
      ": groups must divide the channels of x and of grad, ",
      x.size(1),
      " and ",
      rows,
      ", got ",
      groups
  );
  for (int d = 0; d < 2; ++d) {
    const int64_t kernel = geometry.kernel_size.at(d), stride = geometry.stride.at(d);
    const int64_t padding = geometry.padding.at(d), dilation = geometry.dilation.at(d);
    STD_TORCH_CHECK(
        kernel > 0 && stride > 0 && padding >= 0 && dilation > 0,
        kConv2d,
        ": kernel_size, stride and dilation must be positive and padding not negative"
    );
    const int64_t span = x.size(2 + d) + 2 * padding - dilation * (kernel - 1) - 1;
    const int64_t expected = span < 0 ? 0 : span / stride + 1;
    STD_TORCH_CHECK(
        grad.size(2 + d) == expected,
        kConv2d,
        ": grad must be ",
        expected,
        " long in dimension ",
        2 + d,
        " for this x and this geometry, got ",
        grad.size(2 + d)
    );
  }
  const int64_t group_inputs = x.size(1) / groups;
  const int64_t group_rows = rows / groups;
  const int64_t cols = group_inputs * geometry.kernel_size[0] * geometry.kernel_size[1];
  // A tile is a part of one group, or some whole groups.
  const int64_t wanted = rows_of_a_tile(cols, tile_size);
  const bool whole_groups = group_rows <= wanted;
  const int64_t step =
      whole_groups ? wanted / std::max<int64_t>(group_rows, 1) * group_rows : wanted;
  Tensor outputs = in_compute_dtype(grad);
  Tensor inputs = in_compute_dtype(x);
  const bool empty = outputs.numel() == 0 || inputs.numel() == 0;
  const GradientTiles tiles{
      rows,
      cols,
      boundaries(rows, step, whole_groups ? rows : group_rows),
      [=](int64_t first, int64_t end) mutable {
        const std::vector<int64_t> shape{
            end - first, group_inputs, geometry.kernel_size[0], geometry.kernel_size[1]
        };
        if (empty) {
          return torch::stable::new_zeros(inputs, shape);
        }
        const int64_t first_group = first / group_rows;
        const int64_t count = (end - 1) / group_rows + 1 - first_group;
        const Tensor weight = torch::stable::new_empty(inputs, shape);
        const Tensor gradient = convolution_weight_gradient(
            torch::stable::narrow(outputs, 1, first, end - first),
            torch::stable::narrow(inputs, 1, first_group * group_inputs, count * group_inputs),
            weight,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            count
        );
        return torch::stable::contiguous(gradient);
      }
  };
  check_k(kConv2d, k, rows, cols, col_indices.numel());
  return tiles;
}

}  // namespace fullspectrum
