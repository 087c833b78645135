#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/csr.h"
#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

// A problem with its own memory. Weights are kept as they come: those of at most single precision
// as float, for these two copies of a layer are most of the memory that scoring a large one takes.
struct OwnedProblem {
  std::vector<int64_t> row_offset{0};     // [live rows + 1]
  std::vector<int32_t> column;            // [nnz]
  std::vector<double> row_value;          // [nnz], or empty where all are one or in row_single
  std::vector<float> row_single;          // [nnz], or empty
  std::vector<int64_t> column_offset{0};  // [live columns + 1]
  std::vector<int32_t> row;
  std::vector<double> column_value;
  std::vector<float> column_single;

  int64_t rows() const { return static_cast<int64_t>(row_offset.size()) - 1; }
  int64_t columns() const { return static_cast<int64_t>(column_offset.size()) - 1; }
  Problem view() const;

  // Fills the column side from the row side.
  void transpose();
};

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
  const auto row_weights = [](OwnedProblem& problem) -> auto& {
    if constexpr (std::is_same_v<value_t, double>) {
      return problem.row_value;
    } else {
      return problem.row_single;
    }
  };
  for (OwnedProblem& problem : problems) {
    problem.column.reserve(problem.column_offset.back());
    row_weights(problem).reserve(values ? problem.column_offset.back() : 0);
  }
  std::vector<int64_t> last_row(groups, -1);
  for (int64_t row = 0; row < csr.rows; ++row) {
    for (int64_t p = csr.crow_indices[row]; p < csr.crow_indices[row + 1]; ++p) {
      const int64_t col = csr.col_indices[p];
      if (group_of[col] < 0) {
        continue;
      }
      OwnedProblem& problem = problems[group_of[col]];
      if (last_row[group_of[col]] != row) {
        last_row[group_of[col]] = row;
        problem.row_offset.push_back(problem.row_offset.back());
      }
      ++problem.row_offset.back();
      problem.column.push_back(local[col]);
      if (values) {
        row_weights(problem).push_back(values[p]);
      }
    }
  }
  for (OwnedProblem& problem : problems) {
    problem.transpose();
  }
  return problems;
}

// The k leading singular values, descending, and their error bounds; exact zeros beyond the number
// of live rows and columns. `workspace` is memory to use again from call to call.
void solve(
    const OwnedProblem& problem,
    int64_t k,
    double tol,
    std::vector<double>& workspace,
    double* sigma,  // [k]
    double* bound   // [k]
);

}  // namespace fullspectrum::spectrum
