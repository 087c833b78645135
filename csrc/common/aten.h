#pragma once

// torch's own operators that the kernels lean on and torch::stable has no wrapper for
// (before 2.14).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/version.h>

#include <array>
#include <optional>
#include <utility>

namespace fullspectrum {

// The keys in ascending order, and where each stood; equal keys keep their order.
inline std::pair<torch::stable::Tensor, torch::stable::Tensor> stable_sort(
    const torch::stable::Tensor& keys  // [n]
) {
  using torch::stable::detail::from;
  const std::optional<bool> stable = true;
  const int64_t dim = 0;
  std::array<StableIValue, 4> stack{from(keys), from(stable), from(dim), from(false)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION)
  );
  return {
      torch::stable::detail::to<torch::stable::Tensor>(stack[0]),
      torch::stable::detail::to<torch::stable::Tensor>(stack[1])
  };
}

// tensor[index]
inline torch::stable::Tensor index_select(
    const torch::stable::Tensor& tensor,  // [n]
    const torch::stable::Tensor& index    // [m], below n
) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(tensor), from(int64_t{0}), from(index)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION)
  );
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

// Running sums, in the tensor's own dtype.
inline torch::stable::Tensor cumulative_sum(const torch::stable::Tensor& tensor  // [n]
) {
  using torch::stable::detail::from;
  const std::optional<torch::headeronly::ScalarType> dtype = tensor.scalar_type();
  const int64_t dim = 0;
  std::array<StableIValue, 3> stack{from(tensor), from(dim), from(dtype)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack.data(), TORCH_ABI_VERSION)
  );
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace fullspectrum
