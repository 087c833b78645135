#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/aten.h"
#include "common/dispatch.h"
#include "spectrum/compress_cuda.h"
#include "spectrum/upload_cuda.h"

namespace fullspectrum::spectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;

enum class ValueType : int64_t { one, float32, float64, float16, bfloat16 };

// What a kernel knows of a matrix. `first_...` count through all matrices, and the entry after the
// last matrix holds the totals.
struct MatrixEntry {
  const void* crow;  // [rows + 1]
  const void* col;   // [nnz]
  const void* value;
  const int64_t* taps;
  int64_t wide;  // whether crow and col are int64
  ValueType value_type;
  int64_t first_row;
  int64_t first_column;
  int64_t first_entry;
  int64_t first_tap;

  __device__ int64_t crow_at(int64_t i) const { return index_at(crow, i); }
  __device__ int64_t col_at(int64_t i) const { return index_at(col, i); }
  __device__ double value_at(int64_t i) const {
    switch (value_type) {
      case ValueType::float32:
        return static_cast<const float*>(value)[i];
      case ValueType::float64:
        return static_cast<const double*>(value)[i];
      case ValueType::float16:
        return static_cast<float>(static_cast<const Half*>(value)[i]);
      case ValueType::bfloat16:
        return static_cast<float>(static_cast<const BFloat16*>(value)[i]);
      default:
        return 1;
    }
  }

 private:
  __device__ int64_t index_at(const void* data, int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// The last i <= count whose first(i) is not above `position`; first rises.
template <typename F>
__device__ int64_t find_last(int64_t count, int64_t position, F first) {
  int64_t low = 0;
  int64_t high = count + 1;
  while (low + 1 < high) {
    const int64_t middle = (low + high) / 2;
    (first(middle) <= position ? low : high) = middle;
  }
  return low;
}

// Makes each tap's problem its column's group. A thread owns a tap of any matrix; scattered writes.
// Launch: grid ceil(taps / 256), block 256.
__global__ void __launch_bounds__(kThreads) assign_groups_kernel(
    const MatrixEntry* __restrict__ matrix,  // [matrices + 1]
    int64_t matrices,
    const int64_t* __restrict__ first_tap,  // [problems + 1], through all matrices
    int64_t problems,
    int32_t* __restrict__ group  // [all columns]
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= first_tap[problems]) {
    return;
  }
  const int64_t m = find_last(matrices, i, [&](int64_t at) { return matrix[at].first_tap; });
  const int64_t problem = find_last(problems, i, [&](int64_t at) { return first_tap[at]; });
  const int64_t tap = matrix[m].taps[i - matrix[m].first_tap];
  if (tap >= 0 && tap < matrix[m + 1].first_column - matrix[m].first_column) {
    group[matrix[m].first_column + tap] = static_cast<int32_t>(problem);
  }
}

// Writes, for each entry of each matrix, sort keys (problem, row) and (problem, column) and its
// value.
//
// A warp owns a row of any matrix and its lanes the entries: all reads but those of group and all
// writes are coalesced. Launch: grid ceil(all rows / 8), block 256. Slow when few rows hold most
// entries.
__global__ void __launch_bounds__(kThreads) list_entries_kernel(
    const MatrixEntry* __restrict__ matrix,  // [matrices + 1]
    int64_t matrices,
    const int32_t* __restrict__ group,  // [all columns], their problems; null: the matrices'
    int64_t* __restrict__ row_key,      // [nnz]
    int64_t* __restrict__ column_key,   // [nnz]
    double* __restrict__ entry_value    // [nnz], or null
) {
  const MatrixEntry& totals = matrix[matrices];
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (row >= totals.first_row) {
    return;
  }
  const int64_t m = find_last(matrices, row, [&](int64_t at) { return matrix[at].first_row; });
  const MatrixEntry& own = matrix[m];
  const int64_t end = own.crow_at(row - own.first_row + 1);
  for (int64_t p = own.crow_at(row - own.first_row) + static_cast<int64_t>(threadIdx.x % kWarp);
       p < end;
       p += kWarp) {
    const int64_t column = own.first_column + own.col_at(p);
    const int64_t problem = group ? group[column] : m;
    row_key[own.first_entry + p] = problem * totals.first_row + row;
    column_key[own.first_entry + p] = problem * totals.first_column + column;
    if (entry_value) {
      entry_value[own.first_entry + p] = own.value_at(p);
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

// Fills one side's lists: the neighbour's number within its problem, and the value. Counts, for
// each problem, the entries that equal the one before; they stand together where the lists keep the
// order of the other side's nodes.
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
    int64_t problems,
    int32_t* __restrict__ index,               // [count]
    double* __restrict__ value,                // [count], or null
    unsigned long long* __restrict__ repeated  // [problems], or null
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) {
    return;
  }
  const int64_t entry = order[i];
  const int64_t problem = key[i] / nodes;
  index[i] = static_cast<int32_t>(other_node[entry] - other_first[problem]);
  if (value) {
    value[i] = entry_value[entry];
  }
  if (repeated && problem < problems && i > 0 && key[i] == key[i - 1] &&
      other_node[entry] == other_node[order[i - 1]]) {
    atomicAdd(&repeated[problem], 1ull);
  }
}

dim3 grid_for(int64_t count) { return dim3(ceil_div(count, kThreads)); }

ValueType value_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return ValueType::float32;
    case ScalarType::Double:
      return ValueType::float64;
    case ScalarType::Half:
      return ValueType::float16;
    default:
      return ValueType::bfloat16;
  }
}

std::vector<MatrixEntry> matrix_table(const DeviceMatrices& all) {
  std::vector<MatrixEntry> table(1, MatrixEntry{});
  for (size_t i = 0; i < all.cols.size(); ++i) {
    MatrixEntry& own = table.back();
    const Tensor& crow = all.crow_indices[i];
    own.wide = crow.scalar_type() == ScalarType::Long;
    own.crow = crow.const_data_ptr();
    own.col = all.col_indices[i].const_data_ptr();
    if (!all.values.empty()) {
      own.value = all.values[i].const_data_ptr();
      own.value_type = value_type(all.values[i].scalar_type());
    }
    MatrixEntry next{};
    next.first_row = own.first_row + all.rows[i];
    next.first_column = own.first_column + all.cols[i];
    next.first_entry = own.first_entry + all.col_indices[i].numel();
    next.first_tap = own.first_tap;
    if (!all.taps.empty()) {
      own.taps = all.taps[i].const_data_ptr<int64_t>();
      next.first_tap += all.taps[i].numel();
    }
    table.push_back(next);
  }
  return table;
}

// Each column's problem, `problems` for none.
Tensor group_columns(
    const DeviceScope& scope,
    const DeviceMatrices& all,
    const MatrixEntry* matrix,
    const MatrixEntry& totals,
    const std::vector<int64_t>& taps_of
) {
  const int64_t problems = static_cast<int64_t>(taps_of.size());
  std::vector<int64_t> first_tap(1, 0);
  for (const int64_t taps : taps_of) {
    first_tap.push_back(first_tap.back() + taps);
  }
  const Tensor first = upload(scope, all.like(), first_tap);
  Tensor group = torch::stable::new_empty(all.like(), {totals.first_column}, ScalarType::Int);
  torch::stable::fill_(group, static_cast<double>(problems));
  launch(
      scope,
      {"assign_groups_kernel", grid_for(totals.first_tap), dim3(kThreads)},
      assign_groups_kernel,
      matrix,
      static_cast<int64_t>(all.cols.size()),
      first.const_data_ptr<int64_t>(),
      problems,
      group.mutable_data_ptr<int32_t>()
  );
  return group;
}

// One side of all problems: the entries in the order of its nodes.
struct SortedSide {
  int64_t nodes;   // of all matrices
  Tensor key;      // [nnz]
  Tensor order;    // [nnz], the entry that stands here
  Tensor node_of;  // [nnz], by entry: its node on this side
  Tensor offset;   // [nnz + 1], where each node's list starts
  Tensor first;    // [problems + 1], each problem's first node
};

SortedSide sort_side(
    const DeviceScope& scope, const Tensor& keys, int64_t nodes, int64_t problems
) {
  const int64_t count = keys.numel();
  SortedSide side;
  side.nodes = nodes;
  std::tie(side.key, side.order) = stable_sort(keys);
  side.node_of = torch::stable::new_empty(keys, {count});
  side.offset = torch::stable::new_empty(keys, {count + 1});
  side.first = torch::stable::new_empty(keys, {problems + 1});
  Tensor is_new = torch::stable::new_empty(keys, {count});
  launch(
      scope,
      {"mark_new_kernel", grid_for(count), dim3(kThreads)},
      mark_new_kernel,
      side.key.const_data_ptr<int64_t>(),
      count,
      is_new.mutable_data_ptr<int64_t>()
  );
  const Tensor distinct = cumulative_sum(is_new);
  launch(
      scope,
      {"number_nodes_kernel", grid_for(count), dim3(kThreads)},
      number_nodes_kernel,
      side.key.const_data_ptr<int64_t>(),
      distinct.const_data_ptr<int64_t>(),
      side.order.const_data_ptr<int64_t>(),
      count,
      nodes,
      problems,
      side.node_of.mutable_data_ptr<int64_t>(),
      side.offset.mutable_data_ptr<int64_t>(),
      side.first.mutable_data_ptr<int64_t>()
  );
  return side;
}

// The lists of one side. `memory` keeps what they lie in.
Side fill_side(
    const DeviceScope& scope,
    const SortedSide& side,
    const SortedSide& other,
    const Tensor& entry_value,  // of length zero where all are one
    int64_t problems,
    unsigned long long* repeated,
    std::vector<Tensor>& memory
) {
  const int64_t count = side.key.numel();
  const bool weighted = entry_value.numel() > 0;
  Tensor index = torch::stable::new_empty(side.key, {count}, ScalarType::Int);
  Tensor value = torch::stable::new_empty(entry_value, {entry_value.numel()});
  const double* from = weighted ? entry_value.const_data_ptr<double>() : nullptr;
  double* to = weighted ? value.mutable_data_ptr<double>() : nullptr;
  launch(
      scope,
      {"fill_lists_kernel", grid_for(count), dim3(kThreads)},
      fill_lists_kernel,
      side.key.const_data_ptr<int64_t>(),
      side.order.const_data_ptr<int64_t>(),
      other.node_of.const_data_ptr<int64_t>(),
      other.first.const_data_ptr<int64_t>(),
      from,
      count,
      side.nodes,
      problems,
      index.mutable_data_ptr<int32_t>(),
      to,
      repeated
  );
  memory.insert(memory.end(), {side.offset, side.first, index, value});
  return {
      side.offset.const_data_ptr<int64_t>(),
      side.first.const_data_ptr<int64_t>(),
      index.const_data_ptr<int32_t>(),
      to
  };
}

}  // namespace

DeviceProblems compress(
    const DeviceScope& scope,
    const DeviceMatrices& all,
    const std::vector<int64_t>& taps_of,
    int64_t problems
) {
  const std::vector<MatrixEntry> table = matrix_table(all);
  const MatrixEntry& totals = table.back();
  const int64_t entries = totals.first_entry;
  const Tensor on_device = upload(scope, all.like(), table);
  const auto* matrix = reinterpret_cast<const MatrixEntry*>(on_device.const_data_ptr<int64_t>());
  Tensor group;
  const int32_t* group_of = nullptr;
  if (!all.taps.empty()) {
    group = group_columns(scope, all, matrix, totals, taps_of);
    group_of = group.const_data_ptr<int32_t>();
  }
  Tensor row_key = torch::stable::new_empty(all.like(), {entries}, ScalarType::Long);
  Tensor column_key = torch::stable::new_empty(row_key, {entries});
  Tensor entry_value =
      torch::stable::new_empty(row_key, {all.values.empty() ? 0 : entries}, ScalarType::Double);
  launch(
      scope,
      {"list_entries_kernel", dim3(ceil_div(totals.first_row, kThreads / kWarp)), dim3(kThreads)},
      list_entries_kernel,
      matrix,
      static_cast<int64_t>(all.cols.size()),
      group_of,
      row_key.mutable_data_ptr<int64_t>(),
      column_key.mutable_data_ptr<int64_t>(),
      all.values.empty() ? nullptr : entry_value.mutable_data_ptr<double>()
  );
  const SortedSide rows = sort_side(scope, row_key, totals.first_row, problems);
  const SortedSide columns = sort_side(scope, column_key, totals.first_column, problems);
  DeviceProblems result;
  Tensor repeated = torch::stable::new_zeros(all.like(), {problems}, ScalarType::Long);
  auto* count = reinterpret_cast<unsigned long long*>(repeated.mutable_data_ptr<int64_t>());
  unsigned long long* const uncounted = nullptr;
  result.rows = fill_side(scope, rows, columns, entry_value, problems, uncounted, result.memory);
  result.columns = fill_side(scope, columns, rows, entry_value, problems, count, result.memory);
  result.repeated = repeated.const_data_ptr<int64_t>();
  result.memory.push_back(repeated);
  return result;
}

}  // namespace fullspectrum::spectrum
