#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

namespace fullspectrum {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename T>
struct TypeTag {
  using type = T;
};

// The type in which sums over elements of type T are kept.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// Calls f(TypeTag<scalar_t>{}) with the C++ type behind a runtime dtype. A function rather than
// THO_DISPATCH_V2: that macro splits its body at every comma outside parentheses, so a launch
// written <<<grid, block>>> inside it does not compile.
template <typename F>
decltype(auto) dispatch_floating(torch::headeronly::ScalarType dtype, const char* op, F&& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::Double:
      return f(TypeTag<double>{});
    case ScalarType::Half:
      return f(TypeTag<Half>{});
    case ScalarType::BFloat16:
      return f(TypeTag<BFloat16>{});
    default:
      STD_TORCH_CHECK(
          false,
          op,
          ": expected float32, float64, float16 or bfloat16, got ",
          torch::headeronly::toString(dtype)
      );
  }
}

// The same for the dtype of crow_indices and col_indices.
template <typename F>
decltype(auto) dispatch_index(torch::headeronly::ScalarType dtype, const char* op, F&& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Int:
      return f(TypeTag<int32_t>{});
    case ScalarType::Long:
      return f(TypeTag<int64_t>{});
    default:
      STD_TORCH_CHECK(
          false, op, ": expected int32 or int64 indices, got ", torch::headeronly::toString(dtype)
      );
  }
}

}  // namespace fullspectrum
