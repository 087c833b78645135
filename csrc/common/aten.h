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
#include <vector>

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

// Where a mask is false.
inline torch::stable::Tensor logical_not(const torch::stable::Tensor& mask) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(mask)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::logical_not", "", stack.data(), TORCH_ABI_VERSION)
  );
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

// The indices where a mask is true, [number, dimensions]. Waits for the device.
inline torch::stable::Tensor nonzero(const torch::stable::Tensor& mask) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(mask)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::nonzero", "", stack.data(), TORCH_ABI_VERSION)
  );
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

// out = a b. The result replaces what `out` held.
inline void mm_out(
    torch::stable::Tensor& out,      // [m, n]
    const torch::stable::Tensor& a,  // [m, k], any strides
    const torch::stable::Tensor& b   // [k, n], any strides
) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  out = torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

// The gradient of a 2-d convolution for its weight; `weight` is there for its shape and dtype.
inline torch::stable::Tensor convolution_weight_gradient(
    const torch::stable::Tensor& grad,    // [n, c_out, h_out, w_out]
    const torch::stable::Tensor& x,       // [n, c_in, h, w]
    const torch::stable::Tensor& weight,  // [c_out, c_in / groups, kh, kw]
    const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation,
    int64_t groups
) {
  using torch::stable::Tensor;
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  constexpr std::array<bool, 3> kWeightOnly{false, true, false};
  const std::optional<std::vector<int64_t>> bias_sizes;
  const std::vector<int64_t> output_padding{0, 0};
  std::array<StableIValue, 11> stack{
      from(grad),
      from(x),
      from(weight),
      from(bias_sizes),
      from(stride),
      from(padding),
      from(dilation),
      from(false),  // transposed
      from(output_padding),
      from(groups),
      from(torch::headeronly::HeaderOnlyArrayRef<bool>(kWeightOnly.data(), kWeightOnly.size()))
  };
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION)
  );
  for (const int unused : {0, 2}) {  // undefined tensors, to be freed all the same
    to<Tensor>(stack[unused]);
  }
  return to<Tensor>(stack[1]);
}

}  // namespace fullspectrum
