#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace fullspectrum {

// The checks that every operator on CSR matrices shares, so that all backends refuse the same
// inputs with the same words. They are cheap: sizes, dtypes and devices, never the index values
// (fullspectrum_ext/_checks.py does those, on demand, before an operator is called).

// crow_indices [rows + 1] and col_indices [nnz]: contiguous, of one integer dtype and one device.
// Returns rows.
int64_t check_csr(
    const char* op,
    const torch::stable::Tensor& crow_indices,
    const torch::stable::Tensor& col_indices
);

// The tensor is of one of the floating dtypes that the operators compute with.
void check_floating(const char* op, const char* name, const torch::stable::Tensor& tensor);

// The two tensors lie on one device.
void check_same_device(
    const char* op,
    const char* name_a,
    const torch::stable::Tensor& a,
    const char* name_b,
    const torch::stable::Tensor& b
);

// The two tensors have one dtype.
void check_same_dtype(
    const char* op,
    const char* name_a,
    const torch::stable::Tensor& a,
    const char* name_b,
    const torch::stable::Tensor& b
);

}  // namespace fullspectrum
