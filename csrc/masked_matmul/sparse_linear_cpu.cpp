#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/ceil_div.h"
#include "common/compute_dtype.h"
#include "common/cpu_features.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "masked_matmul/batch_of_one.h"
#include "masked_matmul/linear_matrix.h"
#include "masked_matmul/panel_kernels.h"
#include "masked_matmul/sparse_linear.h"

namespace fullspectrum {
namespace {

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

// Memory as the kernels know it.
template <typename T>
const T* bits(const T* numbers) {
  return numbers;
}
template <typename T>
T* bits(T* numbers) {
  return numbers;
}
const Float16Bits* bits(const Half* numbers) {
  return reinterpret_cast<const Float16Bits*>(numbers);
}
Float16Bits* bits(Half* numbers) { return reinterpret_cast<Float16Bits*>(numbers); }
const BFloat16Bits* bits(const BFloat16* numbers) {
  return reinterpret_cast<const BFloat16Bits*>(numbers);
}
BFloat16Bits* bits(BFloat16* numbers) { return reinterpret_cast<BFloat16Bits*>(numbers); }

template <typename T>
using bits_t = std::remove_pointer_t<decltype(bits(static_cast<T*>(nullptr)))>;

template <typename storage_t, typename index_t>
PanelKernels<bits_t<storage_t>, index_t> active_kernels() {
  return FULLSPECTRUM_ACTIVE(panel_kernels<bits_t<storage_t>, index_t>());
}

// Below this many multiplications (some 10 us) a second thread costs more than it saves.
constexpr int64_t kWorthThreads = int64_t{1} << 18;

// y = x W^T + bias. Each panel's output rows are cut into chunks of equal cost; a thread takes a
// run of (panel, chunk) pairs and turns each panel that it meets once.
template <typename storage_t, typename index_t>
void multiply(
    const Matrix<index_t>& w,           // [out, in]
    const compute_t<storage_t>* value,  // [nnz]
    const compute_t<storage_t>* bias,   // [out] or null
    const storage_t* x,                 // [batch, in]
    int64_t batch,
    storage_t* y  // [batch, out]
) {
  using scalar_t = compute_t<storage_t>;
  const PanelKernels<bits_t<storage_t>, index_t> kernels = active_kernels<storage_t, index_t>();
  IndexCheck<index_t> check(kernels.inside, w);
  const Panels<scalar_t> panels{batch};
  const bool threaded = (w.nnz + kRowCost * w.rows) * batch >= kWorthThreads;
  const int64_t threads = threaded ? thread_count() : 1;
  const bool even = panels.count() % threads == 0 || panels.count() >= 4 * threads;
  const int64_t chunks = even ? 1 : threads;
  const std::vector<int64_t> boundary = balanced_rows(w.crow, w.rows, chunks);
  const int64_t tasks = panels.count() * chunks;
  parallel_for(0, tasks, threaded ? 1 : tasks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end;) {
      const int64_t panel = task / chunks;
      const int64_t stop = std::min(end, (panel + 1) * chunks);
      const int64_t first = panels.begin(panel), count = panels.size(panel);
      const int64_t width = panels.width(panel);
      const int64_t column_block = w.column_block(width * sizeof(scalar_t));
      const bool unchecked = task == begin || chunks > 1;
      scalar_t* block = scratch.reserve<scalar_t>((w.cols + kRowBlock) * width);
      scalar_t* packed = block + kRowBlock * width;
      kernels.pack(bits(x) + first * w.cols, w.cols, count, w.cols, width, packed);
      const int64_t last_row = boundary[stop - panel * chunks];
      for (int64_t r = boundary[task - panel * chunks]; r < last_row; r += kRowBlock) {
        const int64_t rows = std::min(kRowBlock, last_row - r);
        if (unchecked && !check.passes(r, rows)) {
          return;
        }
        kernels.multiply(
            w.part(r, rows, column_block), value, bias ? bias + r : nullptr, packed, width, block
        );
        kernels.unpack(block, width, count, rows, w.rows, bits(y) + first * w.rows + r);
      }
      task = stop;
    }
    scratch.release_if_large();
  });
  check.report();
}

// Partial results, one of nnz numbers for each group of panels, are added at the end; this many
// bound their memory.
constexpr int64_t kMaxGroups = 8;

// Sums over the batch, one for each nonzero p, of g[:, row(p)] x[:, col(p)], and where `value` is
// given beside them y = x W^T. The panels are cut into groups and the rows into chunks; a thread
// does whole (group, chunk) pairs. Returns the sums of the groups one after the other, each [nnz].
template <typename storage_t, typename index_t>
std::vector<std::unique_ptr<compute_t<storage_t>[]>> sample(
    const Matrix<index_t>& w,           // [rows, cols]
    const compute_t<storage_t>* value,  // [nnz] or null
    const storage_t* x,                 // [batch, cols]
    const storage_t* g,                 // [batch, rows]
    int64_t batch,
    storage_t* y  // [batch, rows] or null
) {
  using scalar_t = compute_t<storage_t>;
  const PanelKernels<bits_t<storage_t>, index_t> kernels = active_kernels<storage_t, index_t>();
  IndexCheck<index_t> check(kernels.inside, w);
  const Panels<scalar_t> panels{batch};
  const bool threaded = w.nnz * batch >= kWorthThreads;
  const int64_t threads = threaded ? thread_count() : 1;
  const int64_t groups = std::max(int64_t{1}, std::min({panels.count(), threads, kMaxGroups}));
  const int64_t chunks = ceil_div(threads, groups);
  const std::vector<int64_t> boundary = balanced_rows(w.crow, w.rows, chunks);
  std::vector<std::unique_ptr<scalar_t[]>> sums(groups);
  for (auto& partial : sums) {
    partial.reset(panels.count() == 0 ? new scalar_t[w.nnz]() : new scalar_t[w.nnz]);
  }
  parallel_for(0, groups * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / chunks, chunk = task % chunks;
      scalar_t* out = sums[group].get();
      const int64_t first_panel = panels.count() * group / groups;
      for (int64_t panel = first_panel; panel < panels.count() * (group + 1) / groups; ++panel) {
        const int64_t first = panels.begin(panel), count = panels.size(panel);
        const int64_t width = panels.width(panel);
        const int64_t column_block = w.column_block(width * sizeof(scalar_t));
        scalar_t* block = scratch.reserve<scalar_t>((w.cols + 2 * kRowBlock) * width);
        scalar_t* product = block + kRowBlock * width;
        scalar_t* packed = product + kRowBlock * width;
        kernels.pack(bits(x) + first * w.cols, w.cols, count, w.cols, width, packed);
        for (int64_t r = boundary[chunk]; r < boundary[chunk + 1]; r += kRowBlock) {
          const int64_t rows = std::min(kRowBlock, boundary[chunk + 1] - r);
          if (panel == first_panel && !check.passes(r, rows)) {
            return;
          }
          const SparseRows<index_t> part = w.part(r, rows, column_block);
          const bool accumulate = panel > first_panel;
          kernels.pack(bits(g) + first * w.rows + r, w.rows, count, rows, width, block);
          if (value == nullptr) {
            kernels.sample(part, packed, block, width, accumulate, out);
          } else {
            kernels.multiply_and_sample(
                part, value, packed, block, width, accumulate, product, out
            );
            kernels.unpack(product, width, count, rows, w.rows, bits(y) + first * w.rows + r);
          }
        }
      }
    }
    scratch.release_if_large();
  });
  check.report();
  return sums;
}

// Reading and writing through a permutation is slower than the additions beside it: from so many
// elements on, threads help.
constexpr int64_t kWorthThreadsToPermute = int64_t{1} << 14;

// to[i] = from[permutation[i]]. The permutation is checked on the way, a piece at a time.
template <typename storage_t, typename index_t>
std::unique_ptr<compute_t<storage_t>[]> gathered(
    const char* op,
    const storage_t* from,       // [nnz]
    const index_t* permutation,  // [nnz]
    int64_t nnz
) {
  using scalar_t = compute_t<storage_t>;
  const auto inside = active_kernels<storage_t, index_t>().inside;
  constexpr int64_t kPiece = 1024;
  std::unique_ptr<scalar_t[]> to(new scalar_t[nnz]);
  std::atomic<bool> failed{false};
  parallel_for(0, nnz, kWorthThreadsToPermute, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; piece += kPiece) {
      const int64_t stop = std::min(end, piece + kPiece);
      if (!inside(permutation + piece, stop - piece, static_cast<index_t>(nnz - 1))) {
        failed.store(true, std::memory_order_relaxed);
        return;
      }
#pragma GCC unroll 8
      for (int64_t i = piece; i < stop; ++i) {
        to[i] = static_cast<scalar_t>(from[permutation[i]]);
      }
    }
  });
  STD_TORCH_CHECK(!failed, op, ": permutation must lie in [0, nnz) = [0, ", nnz, ")");
  return to;
}

// to[permutation[i]], or to[i] where there is none, = the sum of all partial[i].
template <typename storage_t, typename index_t>
void scatter_sum(
    const std::vector<std::unique_ptr<compute_t<storage_t>[]>>& partial,  // each [nnz]
    const index_t* permutation,                                           // [nnz] or null
    int64_t nnz,
    storage_t* to  // [nnz]
) {
  const int64_t groups = static_cast<int64_t>(partial.size());
  parallel_for(0, nnz, kWorthThreadsToPermute, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      compute_t<storage_t> sum = partial[0][i];
      for (int64_t group = 1; group < groups; ++group) {
        sum += partial[group][i];
      }
      to[permutation == nullptr ? i : permutation[i]] = static_cast<storage_t>(sum);
    }
  });
}

// ---- the operators -----------------------------------------------------------------------------

// Row-major; asking torch only where it is not so already.
Tensor row_major(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Row-major and in the dtype of the computation: float32 for float16 and bfloat16.
Tensor computed(const Tensor& tensor) { return row_major(in_compute_dtype(tensor)); }

// Calls f(TypeTag<scalar_t>, TypeTag<index_t>).
template <typename F>
void dispatch(const char* op, const Tensor& values, const Tensor& indices, F&& f) {
  dispatch_floating(values.scalar_type(), op, [&](auto tag) {
    dispatch_index(indices.scalar_type(), op, [&](auto index_tag) { f(tag, index_tag); });
  });
}

template <typename index_t>
Matrix<index_t> weight_of(
    const char* op,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const SparseLinearSizes& size
) {
  return {
      op,
      "crow_indices",
      "col_indices",
      crow_indices.const_data_ptr<index_t>(),
      col_indices.const_data_ptr<index_t>(),
      size.out,
      size.in,
      size.nnz,
  };
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
  const Tensor in = row_major(x), weights = computed(values);
  const std::optional<Tensor> b = bias ? std::make_optional(computed(*bias)) : std::nullopt;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = out_features;
  Tensor out = torch::stable::new_empty(in, shape);
  dispatch(op, x, col_indices, [&](auto tag, auto index_tag) {
    using storage_t = typename decltype(tag)::type;
    using index_t = typename decltype(index_tag)::type;
    using scalar_t = compute_t<storage_t>;
    const Matrix<index_t> w = weight_of<index_t>(op, crow_indices, col_indices, size);
    if (size.batch == 1) {
      IndexCheck<index_t> check(active_kernels<storage_t, index_t>().inside, w);
      multiply_one(
          w,
          check,
          weights.const_data_ptr<scalar_t>(),
          b ? b->const_data_ptr<scalar_t>() : nullptr,
          in.const_data_ptr<storage_t>(),
          out.mutable_data_ptr<storage_t>()
      );
      return;
    }
    multiply<storage_t, index_t>(
        w,
        weights.const_data_ptr<scalar_t>(),
        b ? b->const_data_ptr<scalar_t>() : nullptr,
        in.const_data_ptr<storage_t>(),
        size.batch,
        out.mutable_data_ptr<storage_t>()
    );
  });
  return out;
}

std::tuple<Tensor, Tensor> sparse_linear_backward_cpu(
    const Tensor& grad,
    std::optional<Tensor> x,
    std::optional<Tensor> values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t in_features,
    std::optional<Tensor> ccol_indices,
    std::optional<Tensor> row_indices,
    std::optional<Tensor> permutation
) {
  const char* op = "sparse_linear_backward";
  const SparseLinearSizes size = check_sparse_linear_backward(
      grad,
      x,
      values,
      crow_indices,
      col_indices,
      in_features,
      ccol_indices,
      row_indices,
      permutation
  );
  std::vector<int64_t> shape(grad.sizes().begin(), grad.sizes().end());
  shape.back() = values ? in_features : 0;
  Tensor grad_x = torch::stable::new_empty(grad, shape);
  Tensor grad_values = torch::stable::new_empty(grad, std::vector<int64_t>{x ? size.nnz : 0});
  const Tensor from = row_major(grad);
  const std::optional<Tensor> in = x ? std::make_optional(row_major(*x)) : std::nullopt;
  const std::optional<Tensor> weights =
      values ? std::make_optional(row_major(*values)) : std::nullopt;
  dispatch(op, grad, col_indices, [&](auto tag, auto index_tag) {
    using storage_t = typename decltype(tag)::type;
    using index_t = typename decltype(index_tag)::type;
    const Matrix<index_t> w = weight_of<index_t>(op, crow_indices, col_indices, size);
    if (size.batch == 1) {
      IndexCheck<index_t> check(active_kernels<storage_t, index_t>().inside, w);
      differentiate_one<storage_t, index_t>(
          w,
          check,
          values ? weights->const_data_ptr<storage_t>() : nullptr,
          x ? in->const_data_ptr<storage_t>() : nullptr,
          from.const_data_ptr<storage_t>(),
          values ? grad_x.mutable_data_ptr<storage_t>() : nullptr,
          x ? grad_values.mutable_data_ptr<storage_t>() : nullptr
      );
      return;
    }
    if (!values) {
      if (x) {
        const auto sums = sample<storage_t, index_t>(
            w,
            nullptr,
            in->const_data_ptr<storage_t>(),
            from.const_data_ptr<storage_t>(),
            size.batch,
            nullptr
        );
        scatter_sum<storage_t, index_t>(
            sums, nullptr, size.nnz, grad_values.mutable_data_ptr<storage_t>()
        );
      }
      return;
    }
    const Matrix<index_t> transposed{
        op,
        "ccol_indices",
        "row_indices",
        ccol_indices->const_data_ptr<index_t>(),
        row_indices->const_data_ptr<index_t>(),
        size.in,
        size.out,
        size.nnz,
    };
    const index_t* order = permutation->const_data_ptr<index_t>();
    const auto weight =
        gathered<storage_t, index_t>(op, weights->const_data_ptr<storage_t>(), order, size.nnz);
    if (!x) {
      multiply<storage_t, index_t>(
          transposed,
          weight.get(),
          nullptr,
          from.const_data_ptr<storage_t>(),
          size.batch,
          grad_x.mutable_data_ptr<storage_t>()
      );
      return;
    }
    const auto sums = sample<storage_t, index_t>(
        transposed,
        weight.get(),
        from.const_data_ptr<storage_t>(),
        in->const_data_ptr<storage_t>(),
        size.batch,
        grad_x.mutable_data_ptr<storage_t>()
    );
    scatter_sum<storage_t, index_t>(
        sums, order, size.nnz, grad_values.mutable_data_ptr<storage_t>()
    );
  });
  return {grad_x, grad_values};
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) {
  m.impl("sparse_linear", TORCH_BOX(&sparse_linear_cpu));
  m.impl("sparse_linear_backward", TORCH_BOX(&sparse_linear_backward_cpu));
}

}  // namespace fullspectrum
