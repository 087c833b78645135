#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace fullspectrum {

// The tensor itself, or as float32 what is float16 or bfloat16: those are computed in float32.
inline torch::stable::Tensor in_compute_dtype(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  const ScalarType dtype = tensor.scalar_type();
  const bool narrow = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  return narrow ? torch::stable::to(tensor, ScalarType::Float) : tensor;
}

}  // namespace fullspectrum
