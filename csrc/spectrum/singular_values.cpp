#include "spectrum/singular_values.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>

#include "common/checks.h"
#include "common/dispatch.h"

namespace fullspectrum {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::vector<int64_t> check_matrices(
    const char* op,
    const std::vector<Tensor>& crow_indices,
    const std::vector<Tensor>& col_indices,
    const std::vector<Tensor>& values,
    const std::vector<int64_t>& cols
) {
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  const size_t matrices = crow_indices.size();
  STD_TORCH_CHECK(matrices > 0, op, ": expected at least one matrix");
  STD_TORCH_CHECK(
      col_indices.size() == matrices && cols.size() == matrices &&
          (values.empty() || values.size() == matrices),
      op,
      ": expected as many col_indices, values and cols as crow_indices, ",
      matrices
  );
  std::vector<int64_t> rows;
  for (size_t i = 0; i < matrices; ++i) {
    rows.push_back(check_csr(op, crow_indices[i], col_indices[i]));
    STD_TORCH_CHECK(
        cols[i] >= 0 && cols[i] <= kLargest && rows[i] <= kLargest,
        op,
        ": rows and columns must be below 2^31, got ",
        rows[i],
        " and ",
        cols[i]
    );
    check_same_device(op, "crow_indices", crow_indices[0], "crow_indices", crow_indices[i]);
    if (values.empty()) {
      continue;
    }
    STD_TORCH_CHECK(
        values[i].dim() == 1 && values[i].numel() == col_indices[i].numel(),
        op,
        ": values must be as long as col_indices, ",
        col_indices[i].numel(),
        ", got ",
        values[i].numel()
    );
    STD_TORCH_CHECK(values[i].is_contiguous(), op, ": values must be contiguous");
    check_same_device(op, "values", values[i], "col_indices", col_indices[i]);
    dispatch_floating(values[i].scalar_type(), op, [](auto) {});  // refuses other dtypes
  }
  return rows;
}

void check_accuracy(const char* op, int64_t k, double tol, int64_t method) {
  STD_TORCH_CHECK(k >= 1, op, ": k must be at least 1, got ", k);
  STD_TORCH_CHECK(tol > 0, op, ": tol must be above 0, got ", tol);
  STD_TORCH_CHECK(method >= 0 && method <= 4, op, ": method must lie in [0, 4], got ", method);
}

void check_subgraphs(
    const char* op,
    const std::vector<Tensor>& crow_indices,
    const std::vector<Tensor>& taps,
    const std::vector<int64_t>& subgraphs,
    const std::vector<int64_t>& taps_of
) {
  STD_TORCH_CHECK(
      taps.size() == crow_indices.size() && subgraphs.size() == crow_indices.size(),
      op,
      ": expected taps and subgraphs for each of the ",
      crow_indices.size(),
      " matrices"
  );
  size_t next = 0;
  for (size_t i = 0; i < taps.size(); ++i) {
    STD_TORCH_CHECK(
        taps[i].dim() == 1 && taps[i].is_contiguous() && taps[i].scalar_type() == ScalarType::Long,
        op,
        ": taps must be contiguous, one-dimensional int64 tensors"
    );
    check_same_device(op, "taps", taps[i], "crow_indices", crow_indices[i]);
    int64_t total = 0;
    for (int64_t s = 0; s < subgraphs[i] && next < taps_of.size(); ++s) {
      STD_TORCH_CHECK(taps_of[next] >= 0, op, ": taps_of must not be negative");
      total += taps_of[next++];
    }
    STD_TORCH_CHECK(
        total == taps[i].numel(),
        op,
        ": taps holds ",
        taps[i].numel(),
        " taps, taps_of says ",
        total
    );
  }
  STD_TORCH_CHECK(next == taps_of.size(), op, ": taps_of must have one entry a subgraph");
}

}  // namespace fullspectrum
