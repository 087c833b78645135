#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/cuda_launch.h"

namespace fullspectrum::spectrum {

// Copies words to the device as the arguments of kernels: nothing waits, as a copy from pageable
// memory would, and a CUDA graph that captures the launches keeps the words.
void upload_words(
    const DeviceScope& scope, const int64_t* words, int64_t count, int64_t* to  // on the device
);

// A table of plain structs of whole words, on `like`'s device.
template <typename T>
torch::stable::Tensor upload(
    const DeviceScope& scope, const torch::stable::Tensor& like, const std::vector<T>& table
) {
  static_assert(sizeof(T) % sizeof(int64_t) == 0, "a table is copied by words");
  std::vector<int64_t> words(table.size() * sizeof(T) / sizeof(int64_t));
  std::memcpy(words.data(), table.data(), words.size() * sizeof(int64_t));
  const int64_t count = static_cast<int64_t>(words.size());
  torch::stable::Tensor result =
      torch::stable::new_empty(like, {count}, torch::headeronly::ScalarType::Long);
  upload_words(scope, words.data(), count, result.mutable_data_ptr<int64_t>());
  return result;
}

}  // namespace fullspectrum::spectrum
