#include "masked_matmul/keep_masked.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "common/checks.h"
#include "common/dispatch.h"

namespace fullspectrum {

using torch::headeronly::ScalarType;
using torch::headeronly::toString;
using torch::stable::Tensor;

void check_keep_masked(const Tensor& x, const Tensor& mask) {
  constexpr const char* kOp = "keep_masked_";
  dispatch_floating(x.scalar_type(), kOp, [](auto) {});
  STD_TORCH_CHECK(
      mask.scalar_type() == ScalarType::Bool,
      kOp,
      ": mask must be bool, got ",
      toString(mask.scalar_type())
  );
  STD_TORCH_CHECK(
      mask.dim() == x.dim() && mask.numel() == x.numel(), kOp, ": mask must have the shape of x"
  );
  for (int64_t d = 0; d < x.dim(); ++d) {
    STD_TORCH_CHECK(mask.size(d) == x.size(d), kOp, ": mask must have the shape of x");
  }
  check_same_device(kOp, "x", x, "mask", mask);
  STD_TORCH_CHECK(
      x.is_contiguous() && mask.is_contiguous(), kOp, ": x and mask must be contiguous"
  );
}

}  // namespace fullspectrum
