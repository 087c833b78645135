#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "common/ceil_div.h"
#include "common/cpu_features.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "common/scratch.h"
#include "masked_matmul/panel_kernels.h"
#include "masked_matmul/sparse_linear.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

thread_local Scratch scratch;

// How the batch is cut into panels.
template <typename scalar_t>
struct Panels {
  static constexpr int64_t kFull = kPanelBytes / static_cast<int64_t>(sizeof(scalar_t));
  int64_t batch;

  int64_t count() const { return ceil_div(batch, kFull); }
  int64_t begin(int64_t panel) const { return panel * kFull; }
  int64_t size(int64_t panel) const { return std::min(kFull, batch - begin(panel)); }
  // The narrowest of the three widths that holds the panel's rows.
  int64_t width(int64_t panel) const {
    const int64_t rows = size(panel);
    return rows <= kFull / 4 ? kFull / 4 : rows <= kFull / 2 ? kFull / 2 : kFull;
  }
};

// Output rows are computed in blocks, so that a block is still in the first-level cache when it is
// turned back to row-major.
constexpr int64_t kRowBlock = 128;

// The cost of a row apart from its nonzeros (turning it to row-major), in nonzeros.
constexpr int64_t kRowCost = 8;

// Below this many multiplications (some 10 us) a second thread costs more than it saves.
constexpr int64_t kWorthThreads = int64_t{1} << 18;

// Cuts the rows into `parts` ranges of about equal cost: parts + 1 boundaries.
template <typename index_t>
std::vector<int64_t> balanced_rows(const index_t* crow, int64_t rows, int64_t parts) {
  std::vector<int64_t> boundary(parts + 1, rows);
  boundary[0] = 0;
  const int64_t total = crow[rows] + kRowCost * rows;
  int64_t row = 0;
  for (int64_t part = 1; part < parts; ++part) {
    // total * part / parts without overflow
    const int64_t target = total / parts * part + total % parts * part / parts;
    while (row < rows && crow[row] + kRowCost * row < target) {
      ++row;
    }
    boundary[part] = row;
  }
  return boundary;
}

template <typename scalar_t, typename index_t>
PanelKernels<scalar_t, index_t> active_kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return avx512::panel_kernels<scalar_t, index_t>();
    case Isa::avx2:
      return avx2::panel_kernels<scalar_t, index_t>();
    default:
      break;
  }
#endif
  return baseline::panel_kernels<scalar_t, index_t>();
}

// A column out of range or an offset that decreases would read foreign memory. Checking costs less
// than one batch row.
template <typename scalar_t, typename index_t>
void check_indices(
    const char* op,
    const PanelKernels<scalar_t, index_t>& kernels,
    const index_t* crow,  // [out + 1]
    const index_t* col,   // [nnz]
    SparseLinearSizes size
) {
  bool falls = crow[0] != 0 || crow[size.out] != size.nnz;
  for (int64_t r = 0; r < size.out; ++r) {
    falls |= crow[r] > crow[r + 1];
  }
  STD_TORCH_CHECK(!falls, op, ": crow_indices must rise from 0 to nnz = ", size.nnz);
  const int64_t last = std::min(size.in - 1, int64_t{std::numeric_limits<index_t>::max()});
  if (!kernels.inside(col, size.nnz, static_cast<index_t>(last))) {
    const index_t* wrong =
        std::find_if(col, col + size.nnz, [&](index_t c) { return c < 0 || c > last; });
    STD_TORCH_CHECK(false, op, ": col_indices must lie in [0, ", size.in, "), got ", *wrong);
  }
}

// y = x W^T + bias. Each panel's output rows are cut into chunks of equal cost; a thread takes a
// run of (panel, chunk) pairs and turns each panel that it meets once.
template <typename scalar_t, typename index_t>
void multiply(
    const char* op,
    const scalar_t* x,      // [batch, in]
    const scalar_t* value,  // [nnz]
    const index_t* crow,    // [out + 1]
    const index_t* col,     // [nnz]
    const scalar_t* bias,   // [out] or null
    scalar_t* y,            // [batch, out]
    SparseLinearSizes size
) {
  const PanelKernels<scalar_t, index_t> kernels = active_kernels<scalar_t, index_t>();
  check_indices(op, kernels, crow, col, size);
  const Panels<scalar_t> panels{size.batch};
  const bool threaded = (size.nnz + kRowCost * size.out) * size.batch >= kWorthThreads;
  const int64_t threads = threaded ? torch::stable::get_num_threads() : 1;
  const bool even = panels.count() % threads == 0 || panels.count() >= 4 * threads;
  const int64_t chunks = even ? 1 : threads;
  const std::vector<int64_t> boundary = balanced_rows(crow, size.out, chunks);
  const int64_t tasks = panels.count() * chunks;
  torch::stable::parallel_for(0, tasks, threaded ? 1 : tasks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end;) {
      const int64_t panel = task / chunks;
      const int64_t stop = std::min(end, (panel + 1) * chunks);
      const int64_t first = panels.begin(panel), count = panels.size(panel);
      const int64_t width = panels.width(panel);
      scalar_t* block = scratch.reserve<scalar_t>((size.in + kRowBlock) * width);
      scalar_t* packed = block + kRowBlock * width;
      kernels.pack(x + first * size.in, size.in, count, size.in, width, packed);
      const int64_t last_row = boundary[stop - panel * chunks];
      for (int64_t r = boundary[task - panel * chunks]; r < last_row; r += kRowBlock) {
        const int64_t rows = std::min(kRowBlock, last_row - r);
        kernels.multiply(
            crow + r, col, value, bias ? bias + r : nullptr, packed, rows, width, block
        );
        kernels.unpack(block, width, count, rows, size.out, y + first * size.out + r);
      }
      task = stop;
    }
    scratch.release_if_large();
  });
}

// Partial results, one of nnz numbers for each group of panels, are added at the end; this many
// bound their memory.
constexpr int64_t kMaxGroups = 8;

// out[p] = sum over the batch of grad[:, row(p)] x[:, col(p)]. The panels are cut into groups and
// the rows into chunks; a thread does whole (group, chunk) pairs, each with its own results.
template <typename scalar_t, typename index_t>
void sample(
    const char* op,
    const scalar_t* grad,  // [batch, out]
    const scalar_t* x,     // [batch, in]
    const index_t* crow,   // [out + 1]
    const index_t* col,    // [nnz]
    scalar_t* out,         // [nnz], zeros
    SparseLinearSizes size
) {
  const PanelKernels<scalar_t, index_t> kernels = active_kernels<scalar_t, index_t>();
  check_indices(op, kernels, crow, col, size);
  const Panels<scalar_t> panels{size.batch};
  if (panels.count() == 0 || size.nnz == 0) {
    return;
  }
  const bool threaded = size.nnz * size.batch >= kWorthThreads;
  const int64_t threads = threaded ? torch::stable::get_num_threads() : 1;
  const int64_t groups = std::min({panels.count(), threads, kMaxGroups});
  const int64_t chunks = ceil_div(threads, groups);
  const std::vector<int64_t> boundary = balanced_rows(crow, size.out, chunks);
  // The first group's results go to `out` itself.
  std::unique_ptr<scalar_t[]> others(new scalar_t[(groups - 1) * size.nnz]);
  torch::stable::parallel_for(0, groups * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / chunks, chunk = task % chunks;
      scalar_t* result = group == 0 ? out : others.get() + (group - 1) * size.nnz;
      const int64_t first_panel = panels.count() * group / groups;
      for (int64_t panel = first_panel; panel < panels.count() * (group + 1) / groups; ++panel) {
        const int64_t first = panels.begin(panel), count = panels.size(panel);
        const int64_t width = panels.width(panel);
        scalar_t* block = scratch.reserve<scalar_t>((size.in + kRowBlock) * width);
        scalar_t* packed = block + kRowBlock * width;
        kernels.pack(x + first * size.in, size.in, count, size.in, width, packed);
        for (int64_t r = boundary[chunk]; r < boundary[chunk + 1]; r += kRowBlock) {
          const int64_t rows = std::min(kRowBlock, boundary[chunk + 1] - r);
          kernels.pack(grad + first * size.out + r, size.out, count, rows, width, block);
          kernels.sample(crow + r, col, block, packed, rows, width, panel > first_panel, result);
        }
      }
    }
    scratch.release_if_large();
  });
  torch::stable::parallel_for(0, size.nnz, kWorthThreads, [&](int64_t begin, int64_t end) {
    for (int64_t group = 1; group < groups; ++group) {
      const scalar_t* partial = others.get() + (group - 1) * size.nnz;
      for (int64_t p = begin; p < end; ++p) {
        out[p] += partial[p];
      }
    }
  });
}

// float16 and bfloat16 are computed in float32 and rounded once, at the end.
ScalarType compute_dtype(ScalarType dtype) {
  const bool narrow = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  return narrow ? ScalarType::Float : dtype;
}

// Row-major and in the dtype of the computation; the tensor itself where it is so already.
Tensor prepared(const Tensor& tensor) {
  const ScalarType dtype = compute_dtype(tensor.scalar_type());
  return torch::stable::contiguous(
      dtype == tensor.scalar_type() ? tensor : torch::stable::to(tensor, dtype)
  );
}

Tensor rounded(const Tensor& tensor, ScalarType dtype) {
  return dtype == tensor.scalar_type() ? tensor : torch::stable::to(tensor, dtype);
}

// Calls f(TypeTag<float or double>, TypeTag<index_t>).
template <typename F>
void dispatch_prepared(const char* op, ScalarType dtype, ScalarType index_dtype, F&& f) {
  dispatch_index(index_dtype, op, [&](auto index_tag) {
    dtype == ScalarType::Double ? f(TypeTag<double>{}, index_tag) : f(TypeTag<float>{}, index_tag);
  });
}

Tensor sparse_linear_cpu(
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t out_features,
    std::optional<Tensor> bias,
    std::optional<Tensor>,  // the transposed index is for the derivative
    std::optional<Tensor>,
    std::optional<Tensor>
) {
  const char* op = "sparse_linear";
  const SparseLinearSizes size =
      check_sparse_linear(x, values, crow_indices, col_indices, out_features, bias);
  const Tensor in = prepared(x), weights = prepared(values);
  const std::optional<Tensor> b = bias ? std::make_optional(prepared(*bias)) : std::nullopt;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = out_features;
  Tensor out = torch::stable::new_empty(in, shape);
  dispatch_prepared(
      op,
      in.scalar_type(),
      crow_indices.scalar_type(),
      [&](auto tag, auto index_tag) {
        using scalar_t = typename decltype(tag)::type;
        using index_t = typename decltype(index_tag)::type;
        const index_t* crow = crow_indices.const_data_ptr<index_t>();
        const index_t* col = col_indices.const_data_ptr<index_t>();
        multiply<scalar_t, index_t>(
            op,
            in.const_data_ptr<scalar_t>(),
            weights.const_data_ptr<scalar_t>(),
            crow,
            col,
            b ? b->const_data_ptr<scalar_t>() : nullptr,
            out.mutable_data_ptr<scalar_t>(),
            size
        );
      }
  );
  return rounded(out, x.scalar_type());
}

Tensor
sparse_linear_grad_values_cpu(const Tensor& grad, const Tensor& x, const Tensor& crow_indices, const Tensor& col_indices, std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>) {
  const char* op = "sparse_linear_grad_values";
  const SparseLinearSizes size =
      check_sparse_linear_grad_values(grad, x, crow_indices, col_indices);
  const Tensor from = prepared(grad), in = prepared(x);
  const std::vector<int64_t> shape{size.nnz};
  Tensor out = torch::stable::new_zeros(in, shape);
  dispatch_prepared(
      op,
      in.scalar_type(),
      crow_indices.scalar_type(),
      [&](auto tag, auto index_tag) {
        using scalar_t = typename decltype(tag)::type;
        using index_t = typename decltype(index_tag)::type;
        const index_t* crow = crow_indices.const_data_ptr<index_t>();
        const index_t* col = col_indices.const_data_ptr<index_t>();
        sample<scalar_t, index_t>(
            op,
            from.const_data_ptr<scalar_t>(),
            in.const_data_ptr<scalar_t>(),
            crow,
            col,
            out.mutable_data_ptr<scalar_t>(),
            size
        );
      }
  );
  return rounded(out, x.scalar_type());
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) {
  m.impl("sparse_linear", TORCH_BOX(&sparse_linear_cpu));
  m.impl("sparse_linear_grad_values", TORCH_BOX(&sparse_linear_grad_values_cpu));
}

}  // namespace fullspectrum
