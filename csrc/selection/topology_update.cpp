#include "selection/topology_update.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>

#include "common/checks.h"

namespace fullspectrum {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr const char* kOp = "topology_update";

void check_list(const char* name, const Tensor& list, const Tensor& col_indices, int64_t most) {
  STD_TORCH_CHECK(
      list.dim() == 1 && list.scalar_type() == ScalarType::Long && list.is_contiguous(),
      kOp,
      ": ",
      name,
      " must be int64, contiguous and of one dimension"
  );
  STD_TORCH_CHECK(
      list.numel() <= most,
      kOp,
      ": ",
      name,
      " must hold at most ",
      most,
      " entries, got ",
      list.numel()
  );
  check_same_device(kOp, name, list, "col_indices", col_indices);
}

}  // namespace

TopologyUpdateSizes check_topology_update(
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const Tensor& drop,
    const Tensor& grow,
    int64_t cols
) {
  const int64_t rows = check_csr(kOp, crow_indices, col_indices);
  STD_TORCH_CHECK(cols >= 0, kOp, ": cols must not be negative, got ", cols);
  const int64_t nnz = col_indices.numel();
  check_list("drop", drop, col_indices, nnz);
  check_list("grow", grow, col_indices, rows * cols);
  const int64_t new_nnz = nnz - drop.numel() + grow.numel();
  STD_TORCH_CHECK(
      crow_indices.scalar_type() == ScalarType::Long ||
          new_nnz <= std::numeric_limits<int32_t>::max(),
      kOp,
      ": ",
      new_nnz,
      " entries need int64 indices"
  );
  return {rows, cols, nnz, drop.numel(), grow.numel(), new_nnz};
}

}  // namespace fullspectrum
