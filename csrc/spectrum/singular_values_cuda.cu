#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "common/aten.h"
#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "spectrum/block_lanczos.h"
#include "spectrum/cuda_team.h"
#include "spectrum/singular_values.h"

namespace fullspectrum {
namespace {

using spectrum::Lists;
using spectrum::Problem;
using spectrum::Sizes;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
// Workspace that one launch of the solver may take; more problems go in further launches.
constexpr int64_t kWorkspaceBytes = int64_t{2} << 30;

// Writes, for each entry of one matrix, sort keys (problem, row) and (problem, column) and its
// value.
//
// A warp owns a row and its lanes the entries: all reads but those of group and all writes are
// coalesced. Launch: grid ceil(rows / 8), block 256. Slow when few rows hold most entries.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kThreads) list_entries_kernel(
    const index_t* __restrict__ crow,    // [rows + 1]
    const index_t* __restrict__ col,     // [nnz]
    const scalar_t* __restrict__ value,  // [nnz], or null where all are one
    const int32_t* __restrict__ group,   // [cols], each column's problem
    int64_t rows,
    int64_t first_row,  // this matrix's first row and column among all matrices
    int64_t first_column,
    int64_t all_rows,
    int64_t all_columns,
    int64_t* __restrict__ row_key,     // [nnz]
    int64_t* __restrict__ column_key,  // [nnz]
    double* __restrict__ entry_value   // [nnz], or null
) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (row >= rows) {
    return;
  }
  for (int64_t p = crow[row] + static_cast<int64_t>(threadIdx.x % kWarp); p < crow[row + 1];
       p += kWarp) {
    const int64_t problem = group[col[p]];
    row_key[p] = problem * all_rows + first_row + row;
    column_key[p] = problem * all_columns + first_column + col[p];
    if (entry_value) {
      entry_value[p] = value ? static_cast<double>(value[p]) : 1.0;
    }
  }
}

// Marks each sorted key that differs from the one before. Launch: grid ceil(count / 256), block
// 256.
__global__ void __launch_bounds__(kThreads) mark_new_kernel(
    const int64_t* __restrict__ key,  // [count], sorted
    int64_t count,
    int64_t* __restrict__ is_new  // [count]
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) {
    is_new[i] = i == 0 || key[i] != key[i - 1];
  }
}

// From the sorted keys of one side and the running count of distinct ones: numbers the live nodes
// through all problems, and writes where each one's list and each problem's nodes start.
//
// A thread owns an entry in sorted order; one that starts a problem also writes the empty problems
// before it. Launch: grid ceil(count / 256), block 256.
__global__ void __launch_bounds__(kThreads) number_nodes_kernel(
    const int64_t* __restrict__ key,       // [count], sorted
    const int64_t* __restrict__ distinct,  // [count], distinct keys up to here
    const int64_t* __restrict__ order,     // [count], the entry that stands here
    int64_t count,
    int64_t nodes,                  // a key is problem * nodes + node
    int64_t problems,               // entries of problem `problems` belong to none
    int64_t* __restrict__ node_of,  // [count], by entry
    int64_t* __restrict__ offset,   // [count + 1], by live node
    int64_t* __restrict__ first     // [problems + 1], by problem
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) {
    return;
  }
  const int64_t node = distinct[i] - 1;
  const int64_t problem = key[i] / nodes;
  const int64_t before = i == 0 ? -1 : key[i - 1] / nodes;
  node_of[order[i]] = node;
  if (i == 0 || key[i] != key[i - 1]) {
    offset[node] = i;
  }
  for (int64_t p = before + 1; p <= problem; ++p) {
    first[p] = node;
  }
  if (i == count - 1) {
    offset[node + 1] = count;
    for (int64_t p = problem + 1; p <= problems; ++p) {
      first[p] = node + 1;
    }
  }
}

// Fills one side's lists: the neighbour's number within its problem, and the value.
//
// A thread owns an entry in this side's order; reads by entry are scattered. Launch: grid
// ceil(count / 256), block 256.
__global__ void __launch_bounds__(kThreads) fill_lists_kernel(
    const int64_t* __restrict__ key,          // [count], sorted
    const int64_t* __restrict__ order,        // [count]
    const int64_t* __restrict__ other_node,   // [count], by entry
    const int64_t* __restrict__ other_first,  // [problems + 1]
    const double* __restrict__ entry_value,   // [count], or null
    int64_t count,
    int64_t nodes,
    int32_t* __restrict__ index,  // [count]
    double* __restrict__ value    // [count], or null
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) {
    const int64_t entry = order[i];
    index[i] = static_cast<int32_t>(other_node[entry] - other_first[key[i] / nodes]);
    if (value) {
      value[i] = entry_value[entry];
    }
  }
}

// One side's lists of all problems.
struct Side {
  const int64_t* offset;  // [live nodes + 1]
  const int64_t* first;   // [problems + 1]
  const int32_t* index;   // [nnz]
  const double* value;    // [nnz], or null
};

// Solves one problem a block, see block_lanczos.h; every array of a problem is private to its
// block.
//
// Basis vectors are contiguous, so inner products (a warp each) and updates (a thread an element)
// are coalesced; products with the matrix gather through the lists, a thread a list. Launch: grid
// problems, block 64 to 256. Slow when one problem is much larger than the others, or alone.
__global__ void __launch_bounds__(kThreads) block_lanczos_kernel(
    Side rows,
    Side columns,
    const int64_t* __restrict__ workspace_first,  // [problems]
    double* __restrict__ workspace,
    int64_t first_problem,
    int64_t k,
    double tol,
    double* __restrict__ sigma,  // [problems, k], zeros
    double* __restrict__ bound   // [problems, k], zeros
) {
  __shared__ int flags[kThreads / kWarp];
  const int64_t p = first_problem + blockIdx.x;
  const auto lists = [p](const Side& side) {
    const int64_t from = side.first[p];
    return Lists{side.first[p + 1] - from, side.offset + from, side.index, side.value};
  };
  const Problem problem(lists(rows), lists(columns));
  const Sizes sizes(problem.tall.size, problem.narrow.size, k);
  if (sizes.narrow == 0) {
    return;
  }
  spectrum::CudaTeam team(flags);
  spectrum::BlockLanczos<spectrum::CudaTeam> lanczos(
      team, problem, sizes, workspace + workspace_first[p]
  );
  lanczos.run(tol, sigma + p * k, bound + p * k);
}

// Makes `problem` the group of each of its taps. A thread owns a tap; scattered writes. Launch:
// grid ceil(count / 256), block 256.
__global__ void __launch_bounds__(kThreads) assign_groups_kernel(
    const int64_t* __restrict__ tap,      // [count]
    const int64_t* __restrict__ problem,  // [count]
    int64_t count,
    int64_t cols,
    int32_t* __restrict__ group  // [cols]
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count && tap[i] >= 0 && tap[i] < cols) {
    group[tap[i]] = static_cast<int32_t>(problem[i]);
  }
}

dim3 grid_for(int64_t count) { return dim3(ceil_div(count, kThreads)); }

template <typename T>
Tensor to_device(const Tensor& like, const std::vector<T>& data, ScalarType dtype) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const int64_t size = static_cast<int64_t>(data.size());
  Tensor host = torch::stable::empty({size}, dtype, std::nullopt, cpu);
  std::copy(data.begin(), data.end(), host.mutable_data_ptr<T>());
  return torch::stable::to(host, like.device());
}

std::vector<int64_t> to_host(const Tensor& tensor) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const Tensor host = torch::stable::to(tensor, cpu);
  const int64_t* data = host.const_data_ptr<int64_t>();
  return std::vector<int64_t>(data, data + host.numel());
}

// The matrices of one call.
struct Matrices {
  std::vector<Tensor> crow_indices;
  std::vector<Tensor> col_indices;
  std::vector<Tensor> values;
  std::vector<int64_t> rows;
  std::vector<int64_t> cols;
  int64_t all_rows = 0;
  int64_t all_columns = 0;
  int64_t nnz = 0;

  const Tensor& like() const { return crow_indices[0]; }
  bool weighted() const { return !values.empty(); }
  Tensor new_entries(ScalarType dtype) const {
    return torch::stable::new_empty(like(), {nnz}, dtype);
  }
};

Matrices gather(
    const char* op,
    std::vector<Tensor>& crow_indices,
    std::vector<Tensor>& col_indices,
    std::vector<Tensor>& values,
    const std::vector<int64_t>& cols
) {
  Matrices all;
  all.rows = check_matrices(op, crow_indices, col_indices, values, cols);
  for (size_t i = 0; i < cols.size(); ++i) {
    all.all_rows += all.rows[i];
    all.all_columns += cols[i];
    all.nnz += col_indices[i].numel();
  }
  all.crow_indices = std::move(crow_indices);
  all.col_indices = std::move(col_indices);
  all.values = std::move(values);
  all.cols = cols;
  return all;
}

// All entries of all matrices: their keys on both sides, and their values.
struct Entries {
  Tensor row_key;
  Tensor column_key;
  Tensor value;  // of length zero where all are one
};

template <typename scalar_t>
void list_matrix(
    const DeviceScope& scope,
    const Matrices& all,
    size_t i,
    const scalar_t* value,
    const int32_t* group,
    int64_t first_row,
    int64_t first_column,
    int64_t* row_key,
    int64_t* column_key,
    double* entry_value
) {
  dispatch_index(all.crow_indices[i].scalar_type(), "singular_values", [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    launch(
        scope,
        {"list_entries_kernel", dim3(ceil_div(all.rows[i], kThreads / kWarp)), dim3(kThreads)},
        list_entries_kernel<scalar_t, index_t>,
        all.crow_indices[i].const_data_ptr<index_t>(),
        all.col_indices[i].const_data_ptr<index_t>(),
        value,
        group,
        all.rows[i],
        first_row,
        first_column,
        all.all_rows,
        all.all_columns,
        row_key,
        column_key,
        entry_value
    );
  });
}

Entries list_entries(const DeviceScope& scope, const Matrices& all, const Tensor& group) {
  Entries entries{
      all.new_entries(ScalarType::Long),
      all.new_entries(ScalarType::Long),
      torch::stable::new_empty(all.like(), {all.weighted() ? all.nnz : 0}, ScalarType::Double)
  };
  int64_t first_row = 0;
  int64_t first_column = 0;
  int64_t first_entry = 0;
  for (size_t i = 0; i < all.cols.size(); ++i) {
    const int32_t* of_column = group.const_data_ptr<int32_t>() + first_column;
    int64_t* row_key = entries.row_key.mutable_data_ptr<int64_t>() + first_entry;
    int64_t* column_key = entries.column_key.mutable_data_ptr<int64_t>() + first_entry;
    if (all.weighted()) {
      double* entry_value = entries.value.mutable_data_ptr<double>() + first_entry;
      dispatch_floating(all.values[i].scalar_type(), "singular_values", [&](auto tag) {
        using scalar_t = typename decltype(tag)::type;
        const scalar_t* value = all.values[i].const_data_ptr<scalar_t>();
        list_matrix(
            scope,
            all,
            i,
            value,
            of_column,
            first_row,
            first_column,
            row_key,
            column_key,
            entry_value
        );
      });
    } else {
      const float* ones = nullptr;
      double* none = nullptr;
      list_matrix(
          scope, all, i, ones, of_column, first_row, first_column, row_key, column_key, none
      );
    }
    first_row += all.rows[i];
    first_column += all.cols[i];
    first_entry += all.col_indices[i].numel();
  }
  return entries;
}

// One side of all problems: the entries in the order of its nodes.
struct SortedSide {
  Tensor key;      // [nnz]
  Tensor order;    // [nnz], the entry that stands here
  Tensor node_of;  // [nnz], by entry: its node on this side
  Tensor offset;   // [nnz + 1], where each node's list starts
  Tensor first;    // [problems + 1], each problem's first node
  Tensor index;    // [nnz], neighbours
  Tensor value;    // [nnz], or of length zero
};

SortedSide sort_side(
    const DeviceScope& scope,
    const Matrices& all,
    const Tensor& keys,
    int64_t nodes,
    int64_t problems
) {
  SortedSide side;
  std::tie(side.key, side.order) = stable_sort(keys);
  side.node_of = all.new_entries(ScalarType::Long);
  side.offset = torch::stable::new_empty(all.like(), {all.nnz + 1}, ScalarType::Long);
  side.first = torch::stable::new_empty(all.like(), {problems + 1}, ScalarType::Long);
  Tensor is_new = all.new_entries(ScalarType::Long);
  launch(
      scope,
      {"mark_new_kernel", grid_for(all.nnz), dim3(kThreads)},
      mark_new_kernel,
      side.key.const_data_ptr<int64_t>(),
      all.nnz,
      is_new.mutable_data_ptr<int64_t>()
  );
  const Tensor distinct = cumulative_sum(is_new);
  launch(
      scope,
      {"number_nodes_kernel", grid_for(all.nnz), dim3(kThreads)},
      number_nodes_kernel,
      side.key.const_data_ptr<int64_t>(),
      distinct.const_data_ptr<int64_t>(),
      side.order.const_data_ptr<int64_t>(),
      all.nnz,
      nodes,
      problems,
      side.node_of.mutable_data_ptr<int64_t>(),
      side.offset.mutable_data_ptr<int64_t>(),
      side.first.mutable_data_ptr<int64_t>()
  );
  return side;
}

// Fills index and value of `side`. Returns what the solver reads of it.
Side fill_side(
    const DeviceScope& scope,
    const Matrices& all,
    SortedSide& side,
    const SortedSide& other,
    const Tensor& entry_value,
    int64_t nodes
) {
  side.index = all.new_entries(ScalarType::Int);
  side.value = torch::stable::new_empty(entry_value, {entry_value.numel()});
  const double* from = all.weighted() ? entry_value.const_data_ptr<double>() : nullptr;
  double* to = all.weighted() ? side.value.mutable_data_ptr<double>() : nullptr;
  launch(
      scope,
      {"fill_lists_kernel", grid_for(all.nnz), dim3(kThreads)},
      fill_lists_kernel,
      side.key.const_data_ptr<int64_t>(),
      side.order.const_data_ptr<int64_t>(),
      other.node_of.const_data_ptr<int64_t>(),
      other.first.const_data_ptr<int64_t>(),
      from,
      all.nnz,
      nodes,
      side.index.mutable_data_ptr<int32_t>(),
      to
  );
  return {
      side.offset.const_data_ptr<int64_t>(),
      side.first.const_data_ptr<int64_t>(),
      side.index.const_data_ptr<int32_t>(),
      to
  };
}

// Launches the solver over all problems, as many at a time as the workspace allows.
void solve(
    const DeviceScope& scope,
    const Matrices& all,
    const SortedSide& rows,
    const SortedSide& columns,
    const Side& row_lists,
    const Side& column_lists,
    int64_t k,
    double tol,
    Tensor& sigma,
    Tensor& bound
) {
  const std::vector<int64_t> first_row = to_host(rows.first);  // waits for the device
  const std::vector<int64_t> first_column = to_host(columns.first);
  const int64_t problems = sigma.size(0);
  constexpr int64_t kMost = kWorkspaceBytes / static_cast<int64_t>(sizeof(double));
  for (int64_t begin = 0; begin < problems;) {
    std::vector<int64_t> start(problems, 0);  // by problem, within this launch's workspace
    int64_t doubles = 0;
    int64_t tallest = 0;
    int64_t end = begin;
    for (; end < problems; ++end) {
      const Sizes sizes(
          first_row[end + 1] - first_row[end], first_column[end + 1] - first_column[end], k
      );
      if (end > begin && doubles + sizes.workspace() > kMost) {
        break;
      }
      start[end] = doubles;
      doubles += sizes.workspace();
      tallest = std::max(tallest, sizes.tall);
    }
    const Tensor starts = to_device(all.like(), start, ScalarType::Long);
    Tensor workspace = torch::stable::new_empty(all.like(), {doubles}, ScalarType::Double);
    const int64_t threads = std::clamp<int64_t>(ceil_div(tallest, kWarp) * kWarp, 64, kThreads);
    launch(
        scope,
        {"block_lanczos_kernel", dim3(end - begin), dim3(threads)},
        block_lanczos_kernel,
        row_lists,
        column_lists,
        starts.const_data_ptr<int64_t>(),
        workspace.mutable_data_ptr<double>(),
        begin,
        k,
        tol,
        sigma.mutable_data_ptr<double>(),
        bound.mutable_data_ptr<double>()
    );
    begin = end;
  }
}

std::tuple<Tensor, Tensor> solve_all(
    const DeviceScope& scope,
    const Matrices& all,
    const Tensor& group,  // [all columns], each column's problem, `problems` for none
    int64_t problems,
    int64_t k,
    double tol
) {
  Tensor sigma = torch::stable::new_zeros(all.like(), {problems, k}, ScalarType::Double);
  Tensor bound = torch::stable::new_zeros(all.like(), {problems, k}, ScalarType::Double);
  if (all.nnz == 0 || problems == 0) {
    return {sigma, bound};
  }
  const Entries entries = list_entries(scope, all, group);
  SortedSide rows = sort_side(scope, all, entries.row_key, all.all_rows, problems);
  SortedSide columns = sort_side(scope, all, entries.column_key, all.all_columns, problems);
  const Side row_lists = fill_side(scope, all, rows, columns, entries.value, all.all_rows);
  const Side column_lists = fill_side(scope, all, columns, rows, entries.value, all.all_columns);
  solve(scope, all, rows, columns, row_lists, column_lists, k, tol, sigma, bound);
  return {sigma, bound};
}

std::tuple<Tensor, Tensor> singular_values_cuda(
    std::vector<Tensor> crow_indices,
    std::vector<Tensor> col_indices,
    std::vector<Tensor> values,
    std::vector<int64_t> cols,
    int64_t k,
    double tol,
    int64_t method  // one way here, block Golub-Kahan-Lanczos: checked and ignored
) {
  constexpr const char* kOp = "singular_values";
  const Matrices all = gather(kOp, crow_indices, col_indices, values, cols);
  check_accuracy(kOp, k, tol, method);
  const DeviceScope scope(all.like());
  std::vector<int32_t> group;
  for (size_t i = 0; i < cols.size(); ++i) {
    group.insert(group.end(), cols[i], static_cast<int32_t>(i));
  }
  const Tensor groups = to_device(all.like(), group, ScalarType::Int);
  return solve_all(scope, all, groups, static_cast<int64_t>(cols.size()), k, tol);
}

std::tuple<Tensor, Tensor> subgraph_singular_values_cuda(
    std::vector<Tensor> crow_indices,
    std::vector<Tensor> col_indices,
    std::vector<Tensor> values,
    std::vector<int64_t> cols,
    std::vector<Tensor> taps,
    std::vector<int64_t> subgraphs,
    std::vector<int64_t> taps_of,
    int64_t k,
    double tol,
    int64_t method  // one way here, block Golub-Kahan-Lanczos: checked and ignored
) {
  constexpr const char* kOp = "subgraph_singular_values";
  const Matrices all = gather(kOp, crow_indices, col_indices, values, cols);
  check_subgraphs(kOp, all.crow_indices, taps, subgraphs, taps_of);
  check_accuracy(kOp, k, tol, method);
  const DeviceScope scope(all.like());
  const int64_t problems = static_cast<int64_t>(taps_of.size());
  const std::vector<int32_t> none(all.all_columns, static_cast<int32_t>(problems));
  Tensor groups = to_device(all.like(), none, ScalarType::Int);
  int64_t first_column = 0;
  int64_t problem = 0;
  for (size_t i = 0; i < cols.size(); ++i) {
    std::vector<int64_t> of_tap;
    for (int64_t s = 0; s < subgraphs[i]; ++s, ++problem) {
      of_tap.insert(of_tap.end(), taps_of[problem], problem);
    }
    const Tensor of_taps = to_device(all.like(), of_tap, ScalarType::Long);
    launch(
        scope,
        {"assign_groups_kernel", grid_for(taps[i].numel()), dim3(kThreads)},
        assign_groups_kernel,
        taps[i].const_data_ptr<int64_t>(),
        of_taps.const_data_ptr<int64_t>(),
        taps[i].numel(),
        cols[i],
        groups.mutable_data_ptr<int32_t>() + first_column
    );
    first_column += cols[i];
  }
  return solve_all(scope, all, groups, problems, k, tol);
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) {
  m.impl("singular_values", TORCH_BOX(&singular_values_cuda));
  m.impl("subgraph_singular_values", TORCH_BOX(&subgraph_singular_values_cuda));
}

}  // namespace fullspectrum
