#include "masked_matmul/sparse_linear.h"

#include <torch/headeronly/util/Exception.h>

#include "common/checks.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "sparse_linear";
constexpr const char* kBackward = "sparse_linear_backward";

// The product of all dimensions but the last.
int64_t batch_of(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() >= 1, op, ": ", name, " must have at least one dimension");
  int64_t batch = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) {
    batch *= tensor.size(d);
  }
  return batch;
}

}  // namespace

SparseLinearSizes check_sparse_linear(
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t out_features,
    const std::optional<Tensor>& bias
) {
  const int64_t rows = check_csr(kOp, crow_indices, col_indices);
  STD_TORCH_CHECK(
      rows == out_features,
      kOp,
      ": crow_indices must hold out_features + 1 = ",
      out_features + 1,
      " entries, got ",
      rows + 1
  );
  STD_TORCH_CHECK(
      values.dim() == 1 && values.numel() == col_indices.numel(),
      kOp,
      ": values must be as long as col_indices, ",
      col_indices.numel(),
      ", got ",
      values.numel()
  );
  check_floating(kOp, "x", x);
  check_same_dtype(kOp, "x", x, "values", values);
  check_same_device(kOp, "x", x, "values", values);
  check_same_device(kOp, "x", x, "col_indices", col_indices);
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->dim() == 1 && bias->numel() == out_features,
        kOp,
        ": bias must be [out_features] = [",
        out_features,
        "], got ",
        bias->numel(),
        " elements"
    );
    check_same_dtype(kOp, "x", x, "bias", *bias);
    check_same_device(kOp, "x", x, "bias", *bias);
  }
  const int64_t batch = batch_of(kOp, "x", x);
  return {batch, x.size(x.dim() - 1), out_features, values.numel()};
}

SparseLinearSizes check_sparse_linear_backward(
    const Tensor& grad,
    const std::optional<Tensor>& x,
    const std::optional<Tensor>& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t in_features,
    const std::optional<Tensor>& ccol_indices,
    const std::optional<Tensor>& row_indices,
    const std::optional<Tensor>& permutation
) {
  const int64_t rows = check_csr(kBackward, crow_indices, col_indices);
  const int64_t nnz = col_indices.numel();
  check_floating(kBackward, "grad", grad);
  check_same_device(kBackward, "grad", grad, "col_indices", col_indices);
  const int64_t batch = batch_of(kBackward, "grad", grad);
  STD_TORCH_CHECK(
      grad.size(grad.dim() - 1) == rows,
      kBackward,
      ": the last dimension of grad must be the number of rows, ",
      rows,
      ", got ",
      grad.size(grad.dim() - 1)
  );
  if (x.has_value()) {
    check_same_dtype(kBackward, "grad", grad, "x", *x);
    check_same_device(kBackward, "grad", grad, "x", *x);
    STD_TORCH_CHECK(
        grad.dim() == x->dim() && batch_of(kBackward, "x", *x) == batch,
        kBackward,
        ": grad and x must have the same leading dimensions"
    );
    STD_TORCH_CHECK(
        x->size(x->dim() - 1) == in_features,
        kBackward,
        ": the last dimension of x must be in_features = ",
        in_features,
        ", got ",
        x->size(x->dim() - 1)
    );
  }
  if (values.has_value()) {
    STD_TORCH_CHECK(
        values->dim() == 1 && values->numel() == nnz,
        kBackward,
        ": values must be as long as col_indices, ",
        nnz,
        ", got ",
        values->numel()
    );
    check_same_dtype(kBackward, "grad", grad, "values", *values);
    check_same_device(kBackward, "grad", grad, "values", *values);
    STD_TORCH_CHECK(
        ccol_indices.has_value() && row_indices.has_value() && permutation.has_value(),
        kBackward,
        ": the gradient for x needs ccol_indices, row_indices and permutation"
    );
    const int64_t columns = check_csr(kBackward, *ccol_indices, *row_indices);
    check_csr(kBackward, *ccol_indices, *permutation);
    check_same_dtype(kBackward, "col_indices", col_indices, "row_indices", *row_indices);
    check_same_device(kBackward, "col_indices", col_indices, "row_indices", *row_indices);
    STD_TORCH_CHECK(
        columns == in_features && row_indices->numel() == nnz && permutation->numel() == nnz,
        kBackward,
        ": ccol_indices, row_indices and permutation must be of lengths in_features + 1 = ",
        in_features + 1,
        ", nnz and nnz = ",
        nnz,
        ", got ",
        columns + 1,
        ", ",
        row_indices->numel(),
        " and ",
        permutation->numel()
    );
  }
  return {batch, in_features, rows, nnz};
}

}  // namespace fullspectrum
