#include "common/checks.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace fullspectrum {

using torch::headeronly::ScalarType;
using torch::headeronly::toString;
using torch::stable::Tensor;

int64_t check_csr(const char* op, const Tensor& crow_indices, const Tensor& col_indices) {
  STD_TORCH_CHECK(
      crow_indices.dim() == 1 && crow_indices.numel() >= 1,
      op,
      ": crow_indices must be [rows + 1], got ",
      crow_indices.dim(),
      " dimensions and ",
      crow_indices.numel(),
      " elements"
  );
  STD_TORCH_CHECK(
      col_indices.dim() == 1,
      op,
      ": col_indices must be [nnz], got ",
      col_indices.dim(),
      " dimensions"
  );
  const ScalarType dtype = crow_indices.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Int || dtype == ScalarType::Long,
      op,
      ": crow_indices must be int32 or int64, got ",
      toString(dtype)
  );
  check_same_dtype(op, "crow_indices", crow_indices, "col_indices", col_indices);
  check_same_device(op, "crow_indices", crow_indices, "col_indices", col_indices);
  STD_TORCH_CHECK(
      crow_indices.is_contiguous() && col_indices.is_contiguous(),
      op,
      ": crow_indices and col_indices must be contiguous"
  );
  return crow_indices.numel() - 1;
}

void check_floating(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
          dtype == ScalarType::BFloat16,
      op,
      ": ",
      name,
      " must be float32, float64, float16 or bfloat16, got ",
      toString(dtype)
  );
}

void check_same_device(
    const char* op, const char* name_a, const Tensor& a, const char* name_b, const Tensor& b
) {
  STD_TORCH_CHECK(
      a.device() == b.device(), op, ": ", name_a, " and ", name_b, " must be on one device"
  );
}

void check_same_dtype(
    const char* op, const char* name_a, const Tensor& a, const char* name_b, const Tensor& b
) {
  STD_TORCH_CHECK(
      a.scalar_type() == b.scalar_type(),
      op,
      ": ",
      name_a,
      " is ",
      toString(a.scalar_type()),
      " but ",
      name_b,
      " is ",
      toString(b.scalar_type())
  );
}

}  // namespace fullspectrum
