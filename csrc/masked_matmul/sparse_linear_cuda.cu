#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/aten.h"
#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "masked_matmul/cuda_slices.h"
#include "masked_matmul/cuda_spans.h"
#include "masked_matmul/sparse_linear.h"

// One kernel for all products of a sparse linear layer. It walks the nonzeros of a CSR matrix S
// [rows, cols], meets their columns in activations `walked` [batch, cols], and computes
//
//   product[n, r] = sum over row r of value[p] walked[n, col(p)]  (+ bias[r]),
//   sampled[p]    = sum over n of met[n, row(p)] walked[n, col(p)],
//
// or both, which then share every load of `walked`:
//
//                          S     walked   met
//   forward                W     x              product
//   gradient for x         W^T   grad           product
//   gradient for values    W     x        grad  sampled
//   both gradients         W^T   grad     x     product and sampled

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;

template <typename scalar_t>
using Sum = typename Accumulator<scalar_t>::type;

// A nonzero as the inner loop reads it: its value, and where its column's line starts.
template <typename acc_t>
struct alignas(2 * sizeof(acc_t)) Nonzero {
  acc_t value;
  int start;
};

// How the work is cut. A block takes `groups` groups of kSpan rows, `tiles` groups apart from each
// other (so that rows whose lengths follow some order are mixed), and every slices-th span of the
// batch; it holds panel_lines columns at a time.
struct Plan {
  int64_t tiles;
  int64_t slices;
  int groups;
  int panel_lines;
  size_t shared_bytes;
};

template <typename scalar_t, typename index_t>
struct Problem {
  Activations<scalar_t> walked;  // [batch, cols]
  Activations<scalar_t> met;     // [batch, rows]
  const scalar_t* value;         // [nnz]
  const index_t* crow;           // [rows + 1]
  const index_t* col;            // [nnz], rising within each row
  const scalar_t* bias;          // [rows] or null
  scalar_t* product;             // [batch, rows]
  Sum<scalar_t>* sampled;        // [slices, nnz]
  int64_t batch;
  int64_t rows;
  int64_t cols;
  int64_t nnz;
};

// A block stages a panel of `walked` and lets its warps take the tile's rows one by one, as they
// get free: a row's sums are one warp's own, in the order of its nonzeros, so that results do not
// depend on who takes it. A warp brings 32 nonzeros at a time from global memory (coalesced, those
// of the next step while it works on these) into shared memory; then each quarter of it takes every
// fourth. Where the columns do not fit into one panel, rows go on where the last panel ended.
//
// The bound is shared memory, 128 bytes a clock: a line (32 products of float32, 64 of 16-bit
// types) is one clock of it. Sums of a product stay in registers over a row, and in shared memory
// from panel to panel. Those of a sampled value are brought together from eight lanes by seven
// shuffles for 32 nonzeros, and added from span to span of the batch in global memory.
//
// Launch: grid (tiles * slices), block 512, dynamic shared memory as planned, up to what the device
// has. Slow when one row has most of the nonzeros (one warp's work), and when the batch is far
// below a span (idle lanes).
template <typename scalar_t, typename index_t, bool kProduct, bool kSampled>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_linear_kernel(Problem<scalar_t, index_t> g, Plan plan) {
  using acc_t = Sum<scalar_t>;
  using Line = Vector<scalar_t>;
  constexpr int kLine = kSpan<scalar_t>;
  constexpr int kSize = Line::kSize;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  const int quarter = lane / kQuarter, vector = lane % kQuarter;
  const int tile_rows = plan.groups * kLine;
  const int64_t tile = blockIdx.x % plan.tiles, slice = blockIdx.x / plan.tiles;
  const auto row_at = [&](int i) { return (tile + i / kLine * plan.tiles) * kLine + i % kLine; };

  FULLSPECTRUM_DYNAMIC_SHARED(unsigned char, panel);  // [panel_lines + 1], the last of zeros
  const int zeros = plan.panel_lines * kLineBytes;
  unsigned char* strips = panel + zeros + kLineBytes;  // [tile_rows] lines of `met`
  auto* staged =
      reinterpret_cast<Nonzero<acc_t>*>(strips + (kSampled ? tile_rows * kLineBytes : 0));
  auto* begin = reinterpret_cast<index_t*>(staged + kThreads);  // [tile_rows], what is to come of
  index_t* end = begin + tile_rows;                             // each row
  auto* sums = reinterpret_cast<acc_t*>(end + tile_rows);       // [tile_rows][kLine + 1]
  __shared__ int next_row;
  staged += warp * kWarp;
  if (thread < kQuarter) {
    vector_at<scalar_t>(panel, zeros, thread) = Line{};
  }

  for (int64_t first_entry = slice * kLine; first_entry < g.batch;
       first_entry += plan.slices * kLine) {
    for (int i = thread; i < tile_rows; i += kThreads) {
      const int64_t row = row_at(i);
      begin[i] = row < g.rows ? g.crow[row] : 0;
      end[i] = row < g.rows ? g.crow[row + 1] : 0;
    }
    if (kSampled) {
      const auto first_row = [&](int span) { return row_at(span * kLine); };
      stage_spans<kWarps>(g.met, first_entry, plan.groups, first_row, strips);
    }
    const bool first_span = first_entry == slice * kLine;
    int64_t first_col = 0;
    do {
      const auto first_feature = [&](int span) { return first_col + span * kLine; };
      stage_spans<kWarps>(g.walked, first_entry, plan.panel_lines / kLine, first_feature, panel);
      if (thread == 0) {
        next_row = kWarps;
      }
      __syncthreads();

      const auto end_col = static_cast<index_t>(min(first_col + plan.panel_lines, g.cols));
      index_t own_col = 0;
      acc_t own_value = 0;
      const auto bring = [&](index_t from, index_t to) {
        if (lane < to - from) {
          own_col = g.col[from + lane];
          own_value = kProduct ? static_cast<acc_t>(g.value[from + lane]) : acc_t{0};
        }
      };
      int i = warp;
      if (i < tile_rows) {
        bring(begin[i], end[i]);
      }
      while (i < tile_rows) {
        int next = lane == 0 ? atomicAdd(&next_row, 1) : 0;
        next = __shfl_sync(~0u, next, 0);
        index_t p = begin[i];
        const index_t row_end = end[i];
        acc_t sum[kSize] = {};
        acc_t strip[kSize] = {};
        if (kSampled) {
          const Line line = vector_at<scalar_t>(strips, line_start<scalar_t>(i), vector);
          FULLSPECTRUM_UNROLL
          for (int j = 0; j < kSize; ++j) {
            strip[j] = static_cast<acc_t>(line.at[j]);
          }
        }
        int count;
        do {
          const bool here = lane < row_end - p && own_col < end_col;
          count = __popc(__ballot_sync(~0u, here));
          const int start = line_start<scalar_t>(static_cast<int>(own_col - first_col));
          staged[lane] = {here ? own_value : acc_t{0}, here ? start : zeros};
          __syncwarp();
          const index_t first = p;
          p += count;
          if (count == kWarp) {
            bring(p, row_end);
          } else if (next < tile_rows) {
            bring(begin[next], end[next]);
          }
          // the lane's share of the results: nonzero 4 * vector + quarter, see transposed_sum
          const int mine = vector * 4 + quarter;
          acc_t* sampled = g.sampled + slice * g.nnz + first + mine;
          acc_t before = 0;
          if (kSampled && !first_span && mine < count) {
            before = *sampled;
          }
          acc_t part[kQuarter] = {};
          FULLSPECTRUM_UNROLL
          for (int step = 0; step < kQuarter; ++step) {
            if (step % 2 == 0 && step * 4 >= count) {
              break;
            }
            const Nonzero<acc_t> nonzero = staged[step * 4 + quarter];
            const Line line = vector_at<scalar_t>(panel, nonzero.start, vector);
            FULLSPECTRUM_UNROLL
            for (int j = 0; j < kSize; ++j) {
              const acc_t met = static_cast<acc_t>(line.at[j]);
              if (kProduct) {
                sum[j] += nonzero.value * met;
              }
              if (kSampled) {
                part[step] += strip[j] * met;
              }
            }
          }
          if (kSampled) {
            const acc_t total = before + transposed_sum(part);
            if (mine < count) {
              *sampled = total;
            }
          }
          __syncwarp();
        } while (count == kWarp);

        if (lane == 0) {
          begin[i] = p;
        }
        if (kProduct) {
          sum_quarters(sum, sums + i * (kLine + 1), first_col == 0);
        }
        i = next;
      }
      __syncthreads();
      first_col += plan.panel_lines;
    } while (first_col < g.cols);

    if (kProduct) {
      // lanes along the rows: whole lines of `product`, and sums of kLine + 1 in different banks
      for (int j = thread; j < tile_rows * kLine; j += kThreads) {
        const int i = j / (kLine * kLine) * kLine + j % kLine;
        const int n = j / kLine % kLine;
        const int64_t row = row_at(i);
        if (row < g.rows && first_entry + n < g.batch) {
          const acc_t bias = g.bias ? static_cast<acc_t>(g.bias[row]) : acc_t{0};
          const acc_t total = sums[i * (kLine + 1) + n] + bias;
          g.product[(first_entry + n) * g.rows + row] = static_cast<scalar_t>(total);
        }
      }
    }
  }
}

// The cut of least cost, in clocks of shared memory: about 1.4 a nonzero and span (a line, and its
// share of the nonzeros' own loads), 16 a row and panel (its sums), 2 a line to stage (128 bytes
// from the second-level cache at 64 a clock). More rows to a block share the staging better; fewer
// give every multiprocessor something to do.
template <typename scalar_t, typename index_t>
Plan plan_for(
    const Problem<scalar_t, index_t>& g, bool product, bool sampled, const DeviceLimits& limits
) {
  using acc_t = Sum<scalar_t>;
  constexpr int64_t kLine = kSpan<scalar_t>;
  const int64_t row_bytes = (sampled ? kLineBytes : 0) + 2 * sizeof(index_t) +
                            (product ? (kLine + 1) * sizeof(acc_t) : 0);
  const int64_t room = limits.shared_bytes - 1024 - kThreads * sizeof(Nonzero<acc_t>) - kLineBytes;
  const int64_t spans = ceil_div(g.batch, kLine);
  const int64_t all_groups = ceil_div(g.rows, kLine);
  const int64_t most_groups =
      std::min(all_groups, std::max<int64_t>(room / 3 / (kLine * row_bytes), 1));
  const int64_t col_spans = std::max<int64_t>(ceil_div(g.cols, kLine), 1);
  const double row_nonzeros = static_cast<double>(g.nnz) / static_cast<double>(g.rows);
  Plan best{};
  if (g.batch == 0) {
    return best;
  }
  double least = 0;
  for (int64_t groups = 1; groups <= most_groups; ++groups) {
    const int64_t tile_rows = groups * kLine;
    const int64_t tiles = ceil_div(all_groups, groups);
    const int64_t fitting = (room - tile_rows * row_bytes) / (kLine * kLineBytes);
    const int64_t panels = ceil_div(col_spans, fitting);
    const int64_t panel_lines = ceil_div(col_spans, panels) * kLine;
    const int64_t slices = std::clamp<int64_t>(limits.multiprocessors / tiles, 1, spans);
    const int64_t rounds =
        ceil_div(tiles * slices, limits.multiprocessors) * ceil_div(spans, slices);
    const double rows_cost = 1.4 * row_nonzeros + 16.0 * static_cast<double>(panels);
    const double cost = static_cast<double>(rounds) * (static_cast<double>(tile_rows) * rows_cost +
                                                       2.0 * static_cast<double>(g.cols));
    if (groups == 1 || cost < least) {
      least = cost;
      const int64_t lines = panel_lines + 1 + (sampled ? tile_rows : 0);
      const int64_t others = tile_rows * (row_bytes - (sampled ? kLineBytes : 0));
      best = {
          tiles,
          slices,
          static_cast<int>(groups),
          static_cast<int>(panel_lines),
          static_cast<size_t>(lines * kLineBytes + others) + kThreads * sizeof(Nonzero<acc_t>)
      };
    }
  }
  return best;
}

template <typename scalar_t>
Activations<scalar_t> activations(const Tensor& tensor, int64_t batch, int64_t features) {
  const auto* data = tensor.const_data_ptr<scalar_t>();
  const bool aligned = reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0 &&
                       features * sizeof(scalar_t) % kVectorBytes == 0;
  return {data, batch, features, aligned};
}

// What the kernel is to meet and to give; see the head of this file.
struct Walk {
  const Tensor& crow;
  const Tensor& col;
  std::optional<Tensor> values;
  const Tensor& walked;
  std::optional<Tensor> met = std::nullopt;
  std::optional<Tensor> bias = std::nullopt;
  std::optional<Tensor> product = std::nullopt;
  std::optional<Tensor> sampled = std::nullopt;
  std::optional<Tensor> order =
      std::nullopt;  // where sampled values go; in order where it is not given
  int64_t batch = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};

template <typename T>
const T* read_from(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

template <typename T>
T* write_to(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->mutable_data_ptr<T>() : nullptr;
}

template <typename scalar_t, typename index_t>
void launch_walk(const char* op, const DeviceScope& scope, const Walk& walk) {
  using acc_t = Sum<scalar_t>;
  const bool product = walk.product.has_value(), sampled = walk.sampled.has_value();
  Problem<scalar_t, index_t> g{};
  g.walked = activations<scalar_t>(walk.walked, walk.batch, walk.cols);
  if (sampled) {
    g.met = activations<scalar_t>(*walk.met, walk.batch, walk.rows);
  }
  g.value = read_from<scalar_t>(walk.values);
  g.crow = walk.crow.const_data_ptr<index_t>();
  g.col = walk.col.const_data_ptr<index_t>();
  g.bias = read_from<scalar_t>(walk.bias);
  g.product = write_to<scalar_t>(walk.product);
  g.batch = walk.batch;
  g.rows = walk.rows;
  g.cols = walk.cols;
  g.nnz = walk.col.numel();
  const Plan plan = plan_for(g, product, sampled, device_limits(walk.walked));

  const auto walk_all = [&](acc_t* sampled_slices) {
    g.sampled = sampled_slices;
    launch(
        scope,
        {"sparse_linear_kernel",
         grid_of(op, plan.tiles * plan.slices),
         dim3(kThreads),
         plan.shared_bytes},
        !sampled  ? sparse_linear_kernel<scalar_t, index_t, true, false>
        : product ? sparse_linear_kernel<scalar_t, index_t, true, true>
                  : sparse_linear_kernel<scalar_t, index_t, false, true>,
        g,
        plan
    );
  };
  if (sampled) {
    const auto* order = read_from<index_t>(walk.order);
    sum_in_slices<scalar_t, index_t>(op, scope, plan.slices, order, *walk.sampled, walk_all);
  } else {
    walk_all(nullptr);
  }
}

void run(const char* op, const DeviceScope& scope, const Walk& walk) {
  dispatch_floating(walk.walked.scalar_type(), op, [&](auto tag) {
    dispatch_index(walk.col.scalar_type(), op, [&](auto index_tag) {
      launch_walk<typename decltype(tag)::type, typename decltype(index_tag)::type>(
          op, scope, walk
      );
    });
  });
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::make_optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

Tensor sparse_linear_cuda(
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
  const DeviceScope scope(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = size.out;
  const Tensor y = torch::stable::new_empty(x, shape);
  const Tensor rows = torch::stable::contiguous(x);
  Walk walk{crow_indices, col_indices, contiguous(values), rows};
  walk.bias = contiguous(bias);
  walk.product = y;
  walk.batch = size.batch;
  walk.rows = size.out;
  walk.cols = size.in;
  run(op, scope, walk);
  return y;
}

std::tuple<Tensor, Tensor> sparse_linear_backward_cuda(
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
  const DeviceScope scope(grad);
  std::vector<int64_t> shape(grad.sizes().begin(), grad.sizes().end());
  shape.back() = values ? size.in : 0;
  const Tensor grad_x = torch::stable::new_empty(grad, shape);
  const std::vector<int64_t> nnz{x ? size.nnz : 0};
  const Tensor grad_values = torch::stable::new_empty(grad, nnz);
  const Tensor grads = torch::stable::contiguous(grad);
  const std::optional<Tensor> inputs = contiguous(x);
  if (values) {
    Walk walk{*ccol_indices, *row_indices, index_select(*values, *permutation), grads};
    walk.product = grad_x;
    if (x) {
      walk.met = inputs;
      walk.sampled = grad_values;
      walk.order = permutation;
    }
    walk.batch = size.batch;
    walk.rows = size.in;
    walk.cols = size.out;
    run(op, scope, walk);
  } else if (x) {
    Walk walk{crow_indices, col_indices, std::nullopt, *inputs};
    walk.met = grads;
    walk.sampled = grad_values;
    walk.batch = size.batch;
    walk.rows = size.out;
    walk.cols = size.in;
    run(op, scope, walk);
  }
  return {grad_x, grad_values};
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) {
  m.impl("sparse_linear", TORCH_BOX(&sparse_linear_cuda));
  m.impl("sparse_linear_backward", TORCH_BOX(&sparse_linear_backward_cuda));
}

}  // namespace fullspectrum
