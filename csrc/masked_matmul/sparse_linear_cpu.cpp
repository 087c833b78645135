#include <torch/csrc/stable/ops.h>

#include <vector>

#include "common/dispatch.h"
#include "common/library.h"
#include "masked_matmul/sparse_linear.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

Tensor sparse_linear_cpu(
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t out_features,
    std::optional<Tensor> bias
) {
  const SparseLinearSizes size =
      check_sparse_linear(x, values, crow_indices, col_indices, out_features, bias);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = out_features;
  Tensor out = torch::stable::new_zeros(x, shape);
  const Tensor rows = torch::stable::contiguous(x);
  dispatch_floating(x.scalar_type(), "sparse_linear", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = typename Accumulator<scalar_t>::type;
    dispatch_index(crow_indices.scalar_type(), "sparse_linear", [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      const index_t* crow = crow_indices.const_data_ptr<index_t>();
      const index_t* col = col_indices.const_data_ptr<index_t>();
      const scalar_t* value = values.const_data_ptr<scalar_t>();
      const scalar_t* in = rows.const_data_ptr<scalar_t>();
      const scalar_t* b = bias ? bias->const_data_ptr<scalar_t>() : nullptr;
      scalar_t* y = out.mutable_data_ptr<scalar_t>();
      for (int64_t n = 0; n < size.batch; ++n) {
        for (int64_t o = 0; o < size.out; ++o) {
          acc_t sum = b ? static_cast<acc_t>(b[o]) : acc_t{0};
          for (index_t p = crow[o]; p < crow[o + 1]; ++p) {
            sum += static_cast<acc_t>(value[p]) * static_cast<acc_t>(in[n * size.in + col[p]]);
          }
          y[n * size.out + o] = static_cast<scalar_t>(sum);
        }
      }
    });
  });
  return out;
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("sparse_linear", TORCH_BOX(&sparse_linear_cpu)); }

}  // namespace fullspectrum
