#include "spectrum/cpu_problems.h"

#include <algorithm>

#include "spectrum/block_lanczos.h"
#include "spectrum/serial_team.h"

namespace fullspectrum::spectrum {

namespace {

template <typename T>
const T* data_or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

}  // namespace

Problem OwnedProblem::view() const {
  return Problem(
      {rows(), row_offset.data(), column.data(), data_or_null(row_value), data_or_null(row_single)},
      {columns(),
       column_offset.data(),
       row.data(),
       data_or_null(column_value),
       data_or_null(column_single)}
  );
}

void OwnedProblem::transpose() {
  row.resize(column.size());
  column_value.resize(row_value.size());
  column_single.resize(row_single.size());
  std::vector<int64_t> next(column_offset.begin(), column_offset.end() - 1);
  for (int64_t r = 0; r < rows(); ++r) {
    for (int64_t p = row_offset[r]; p < row_offset[r + 1]; ++p) {
      const int64_t at = next[column[p]]++;
      row[at] = static_cast<int32_t>(r);
      if (!row_value.empty()) {
        column_value[at] = row_value[p];
      } else if (!row_single.empty()) {
        column_single[at] = row_single[p];
      }
    }
  }
}

void solve(
    const OwnedProblem& problem,
    int64_t k,
    double tol,
    std::vector<double>& workspace,
    double* sigma,
    double* bound
) {
  std::fill(sigma, sigma + k, 0.0);
  std::fill(bound, bound + k, 0.0);
  const Sizes sizes(problem.rows(), problem.columns(), k);
  if (sizes.narrow == 0) {
    return;
  }
  if (static_cast<int64_t>(workspace.size()) < sizes.workspace()) {
    workspace.resize(sizes.workspace());
  }
  SerialTeam team;
  BlockLanczos<SerialTeam> lanczos(team, problem.view(), sizes, workspace.data());
  lanczos.run(tol, sigma, bound);
}

}  // namespace fullspectrum::spectrum
