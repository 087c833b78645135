#include "regular_subgraphs/regular_subgraphs.h"

#include <torch/headeronly/util/Exception.h>

#include "common/checks.h"

namespace fullspectrum {

using torch::stable::Tensor;

std::vector<int64_t> check_regular_subgraphs(
    const std::vector<Tensor>& crow_indices,
    const std::vector<Tensor>& col_indices,
    const std::vector<int64_t>& cols
) {
  constexpr const char* kOp = "regular_subgraphs";
  STD_TORCH_CHECK(!crow_indices.empty(), kOp, ": expected at least one matrix");
  STD_TORCH_CHECK(
      col_indices.size() == crow_indices.size() && cols.size() == crow_indices.size(),
      kOp,
      ": expected as many col_indices and cols as crow_indices, ",
      crow_indices.size()
  );
  std::vector<int64_t> first{0};
  for (size_t i = 0; i < cols.size(); ++i) {
    check_csr(kOp, crow_indices[i], col_indices[i]);
    check_same_device(kOp, "crow_indices", crow_indices[0], "crow_indices", crow_indices[i]);
    STD_TORCH_CHECK(cols[i] >= 0, kOp, ": cols must not be negative, got ", cols[i]);
    first.push_back(first.back() + cols[i]);
  }
  return first;
}

}  // namespace fullspectrum
