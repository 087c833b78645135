#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/csr.h"
#include "spectrum/gram_lanczos.h"
#include "spectrum/method.h"
#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

// A problem with its own memory. Weights of single precision or less stay in single precision.
struct OwnedProblem {
  std::vector<int64_t> row_offset{0};     // [live rows + 1]
  std::vector<int32_t> column;            // [nnz]
  std::vector<double> row_value;          // [nnz], or empty where all are one, or
  std::vector<float> row_single;          // the same
  std::vector<int64_t> column_offset{0};  // [live columns + 1]
  std::vector<int32_t> row;               // [nnz] once transpose() has run
  std::vector<double> column_value;
  std::vector<float> column_single;
  bool distinct = true;  // whether the columns of every row rise

  int64_t rows() const { return static_cast<int64_t>(row_offset.size()) - 1; }
  int64_t columns() const { return static_cast<int64_t>(column_offset.size()) - 1; }
  int64_t nnz() const { return static_cast<int64_t>(column.size()); }
  bool weighted() const { return !row_value.empty() || !row_single.empty(); }
  Lists row_lists() const;
  Lists column_lists();
  // The weights of the rows' entries, in the precision that holds numbers of type value_t.
  template <typename value_t>
  auto& weights() {
    if constexpr (std::is_same_v<value_t, double>) {
      return row_value;
    } else {
      return row_single;
    }
  }
  void widen();  // weights of single precision become doubles
  Lists tall_lists() { return rows() >= columns() ? row_lists() : column_lists(); }

 private:
  void transpose();
};

// The whole matrix as one problem, without the rows and columns that are zero.
template <typename index_t, typename value_t>
OwnedProblem whole_matrix(const CsrView<index_t>& csr, const value_t* values) {
  OwnedProblem problem;
  std::vector<int64_t> entries(csr.cols, 0);
  problem.column.assign(csr.col_indices, csr.col_indices + csr.nnz);
  if (values) {
    problem.weights<value_t>().assign(values, values + csr.nnz);
  }
  for (int64_t row = 0; row < csr.rows; ++row) {
    const int64_t end = csr.crow_indices[row + 1];
    int64_t last = -1;
    bool rising = true;
    for (int64_t p = csr.crow_indices[row]; p < end; ++p) {
      const int64_t col = csr.col_indices[p];
      rising &= col > last;
      last = col;
      ++entries[col];
    }
    problem.distinct &= rising;
    if (end > problem.row_offset.back()) {
      problem.row_offset.push_back(end);
    }
  }
  std::vector<int32_t> local(csr.cols, 0);  // a live column's number
  for (int64_t col = 0; col < csr.cols; ++col) {
    local[col] = static_cast<int32_t>(problem.columns());
    if (entries[col] > 0) {
      problem.column_offset.push_back(problem.column_offset.back() + entries[col]);
    }
  }
  if (problem.columns() < csr.cols) {
    for (int32_t& column : problem.column) {
      column = local[column];
    }
  }
  return problem;
}

// One problem a group of columns, without the rows and columns that are zero; O(rows + cols + nnz)
// for all of them. group_of [cols] names each column's group, -1 for none.
template <typename index_t, typename value_t>
std::vector<OwnedProblem> split_columns(
    const CsrView<index_t>& csr,
    const value_t* values,  // [nnz], or null where all are one
    const std::vector<int32_t>& group_of,
    int64_t groups
) {
  std::vector<int64_t> entries(csr.cols, 0);
  for (int64_t p = 0; p < csr.nnz; ++p) {
    ++entries[csr.col_indices[p]];
  }
  std::vector<OwnedProblem> problems(groups);
  std::vector<int32_t> local(csr.cols, 0);  // a live column's number within its group
  for (int64_t col = 0; col < csr.cols; ++col) {
    if (group_of[col] >= 0 && entries[col] > 0) {
      std::vector<int64_t>& offset = problems[group_of[col]].column_offset;
      local[col] = static_cast<int32_t>(offset.size() - 1);
      offset.push_back(offset.back() + entries[col]);
    }
  }
  std::vector<int32_t*> next_column(groups);
  using weight_t = std::conditional_t<std::is_same_v<value_t, double>, double, float>;
  std::vector<weight_t*> next_value(groups);
  std::vector<int64_t> used(groups, 0);
  for (int64_t group = 0; group < groups; ++group) {
    OwnedProblem& problem = problems[group];
    problem.column.resize(problem.column_offset.back());
    std::vector<weight_t>& weights = problem.weights<value_t>();
    weights.resize(values ? problem.column_offset.back() : 0);
    next_column[group] = problem.column.data();
    next_value[group] = weights.data();
    problem.row_offset.clear();
  }
  std::vector<int64_t> last_row(groups, -1);
  bool distinct = true;
  for (int64_t row = 0; row < csr.rows; ++row) {
    int64_t last = -1;
    for (int64_t p = csr.crow_indices[row]; p < csr.crow_indices[row + 1]; ++p) {
      const int64_t col = csr.col_indices[p];
      distinct &= col > last;
      last = col;
      const int32_t group = group_of[col];
      if (group < 0) {
        continue;
      }
      if (last_row[group] != row) {
        last_row[group] = row;
        problems[group].row_offset.push_back(used[group]);
      }
      next_column[group][used[group]] = local[col];
      if (values) {
        next_value[group][used[group]] = static_cast<weight_t>(values[p]);
      }
      ++used[group];
    }
  }
  for (int64_t group = 0; group < groups; ++group) {
    problems[group].row_offset.push_back(used[group]);
    problems[group].distinct = distinct;
  }
  return problems;
}

// The k leading singular values, descending, and their error bounds; exact zeros beyond the number
// of live rows and columns. `scratch` is memory to use again from call to call.
void solve(
    OwnedProblem& problem,
    int64_t k,
    double tol,
    Method method,
    GramScratch& scratch,
    double* sigma,  // [k]
    double* bound   // [k]
);

}  // namespace fullspectrum::spectrum
