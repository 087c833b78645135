#include "selection/projection.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "common/checks.h"

namespace fullspectrum {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t check_project_scores(const std::vector<Tensor>& scores, double budget) {
  constexpr const char* kOp = "project_scores_";
  STD_TORCH_CHECK(!scores.empty(), kOp, ": expected at least one tensor, got none");
  STD_TORCH_CHECK(budget >= 0, kOp, ": budget must be at least 0, got ", budget);
  int64_t size = 0;
  for (const Tensor& tensor : scores) {
    const ScalarType dtype = tensor.scalar_type();
    STD_TORCH_CHECK(
        dtype == ScalarType::Float || dtype == ScalarType::Double,
        kOp,
        ": scores must be float32 or float64, got ",
        torch::headeronly::toString(dtype)
    );
    check_same_dtype(kOp, "scores", scores[0], "scores", tensor);
    check_same_device(kOp, "scores", scores[0], "scores", tensor);
    STD_TORCH_CHECK(tensor.is_contiguous(), kOp, ": scores must be contiguous");
    size += tensor.numel();
  }
  return size;
}

}  // namespace fullspectrum
