#include "spectrum/cpu_problems.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "spectrum/block_lanczos.h"
#include "spectrum/serial_team.h"

namespace fullspectrum::spectrum {
namespace {

int64_t longest(const std::vector<int64_t>& offset) {
  int64_t length = 0;
  for (size_t i = 0; i + 1 < offset.size(); ++i) {
    length = std::max(length, offset[i + 1] - offset[i]);
  }
  return length;
}

// Whether a method's memory and its numbers stay within bounds.
bool feasible(const OwnedProblem& problem, Method method) {
  constexpr int64_t kLargestGram = 2048;
  constexpr int64_t kMostBits = int64_t{1} << 32;
  constexpr int64_t kMostCounted = int64_t{1} << 24;  // float32 holds counts up to it exactly
  const int64_t narrow = std::min(problem.rows(), problem.columns());
  const int64_t tall = std::max(problem.rows(), problem.columns());
  switch (method) {
    case Method::bit_gram:
      return !problem.weighted() && narrow <= kLargestGram && tall < kMostCounted &&
             narrow * tall <= kMostBits;
    case Method::sparse_gram:
      return narrow <= kLargestGram;
    default:
      return true;
  }
}

// About how many nanoseconds a method takes; the constants are of one core of a server processor.
double cost(const OwnedProblem& problem, Method method) {
  const double narrow = static_cast<double>(std::min(problem.rows(), problem.columns()));
  const double tall = static_cast<double>(std::max(problem.rows(), problem.columns()));
  const double entries = static_cast<double>(problem.nnz());
  constexpr double kSteps = 24;
  const bool complete = narrow <= GramLanczos::kComplete;
  const double steps = complete ? 1 : kSteps;
  switch (method) {
    case Method::bit_gram:
      return 1.5 * entries + narrow * narrow * (0.1 + tall / 64 * 0.03) +
             steps * 0.08 * narrow * narrow;
    case Method::sparse_gram:
      return entries * (3 + (narrow + 64) * 0.025) + steps * 0.12 * narrow * narrow;
    case Method::matrix_free:
      return 2 * entries + (complete ? std::numeric_limits<double>::infinity()
                                     : steps * (2.2 * entries + 2 * tall + 2 * narrow));
    default:
      return std::numeric_limits<double>::infinity();
  }
}

Method choose(const OwnedProblem& problem, int64_t k) {
  const int64_t narrow = std::min(problem.rows(), problem.columns());
  if (!problem.distinct || !GramLanczos::can_find(k, narrow)) {
    return Method::golub_kahan;
  }
  Method best = Method::matrix_free;
  for (const Method method : {Method::bit_gram, Method::sparse_gram}) {
    if (feasible(problem, method) && cost(problem, method) < cost(problem, best)) {
      best = method;
    }
  }
  return best;
}

// The errors of forming and multiplying with G, in units of the rounding of the sum of all squares
// of entries: that bounds the norm of |A|^T |A|.
double rounding(const OwnedProblem& problem, Method method) {
  const int64_t narrow = std::min(problem.rows(), problem.columns());
  const bool rows_are_narrow = problem.rows() <= problem.columns();
  const int64_t terms = longest(rows_are_narrow ? problem.row_offset : problem.column_offset);
  double units = static_cast<double>(narrow + 8);
  if (method == Method::sparse_gram) {
    units += static_cast<double>(terms);
  }
  if (method == Method::matrix_free) {
    units = static_cast<double>(
        8 + terms + longest(rows_are_narrow ? problem.column_offset : problem.row_offset)
    );
  }
  double squares = static_cast<double>(problem.nnz());
  if (problem.weighted()) {
    squares = 0;
    for (const double value : problem.row_value) {
      squares += value * value;
    }
    for (const double value : problem.row_single) {
      squares += value * value;
    }
  }
  return kEpsilon * units * squares;
}

GramOperator make_gram(OwnedProblem& problem, Method method, GramScratch& scratch) {
  const int64_t narrow = std::min(problem.rows(), problem.columns());
  const int64_t tall = std::max(problem.rows(), problem.columns());
  const bool rows_are_narrow = problem.rows() <= problem.columns();
  switch (method) {
    case Method::bit_gram:
      return GramOperator::from_bits(problem.row_lists(), rows_are_narrow, narrow, tall, scratch);
    case Method::sparse_gram:
      return GramOperator::from_lists(
          rows_are_narrow ? problem.row_lists() : problem.column_lists(), tall, scratch
      );
    default:
      return GramOperator::matrix_free(problem.tall_lists(), narrow, scratch);
  }
}

// A complete bipartite graph has one singular value that is not zero.
bool is_complete_graph(const OwnedProblem& problem) {
  return problem.distinct && !problem.weighted() &&
         problem.nnz() == problem.rows() * problem.columns();
}

// The norms of rows with one entry a column, or of columns with one entry a row: such rows or
// columns are orthogonal, and these are the singular values. False for any other matrix.
bool orthogonal(const OwnedProblem& problem, int64_t k, double* sigma, double* bound) {
  if (problem.nnz() != problem.rows() && problem.nnz() != problem.columns()) {
    return false;
  }
  const bool by_columns = problem.nnz() == problem.rows();
  std::vector<double> square(by_columns ? problem.columns() : problem.rows(), 0.0);
  for (int64_t r = 0; r < problem.rows(); ++r) {
    for (int64_t p = problem.row_offset[r]; p < problem.row_offset[r + 1]; ++p) {
      const double value = !problem.row_value.empty()    ? problem.row_value[p]
                           : !problem.row_single.empty() ? problem.row_single[p]
                                                         : 1;
      square[by_columns ? problem.column[p] : r] += value * value;
    }
  }
  std::partial_sort(square.begin(), square.begin() + k, square.end(), std::greater<>());
  const int64_t terms = longest(by_columns ? problem.column_offset : problem.row_offset);
  for (int64_t i = 0; i < k; ++i) {
    sigma[i] = std::sqrt(square[i]);
    bound[i] = kEpsilon * static_cast<double>(terms + 2) * sigma[i];
  }
  return true;
}

void golub_kahan(
    OwnedProblem& problem, int64_t k, double tol, GramScratch& scratch, double* sigma, double* bound
) {
  const Sizes sizes(problem.rows(), problem.columns(), k);
  SerialTeam team;
  problem.widen();
  const Problem view(problem.row_lists(), problem.column_lists());
  BlockLanczos<SerialTeam> lanczos(team, view, sizes, room(scratch.golub_kahan, sizes.workspace()));
  lanczos.run(tol, sigma, bound);
}

}  // namespace

Lists OwnedProblem::row_lists() const {
  return {
      rows(),
      row_offset.data(),
      column.data(),
      row_value.empty() ? nullptr : row_value.data(),
      row_single.empty() ? nullptr : row_single.data()
  };
}

Lists OwnedProblem::column_lists() {
  if (row.size() != column.size()) {
    transpose();
  }
  return {
      columns(),
      column_offset.data(),
      row.data(),
      column_value.empty() ? nullptr : column_value.data(),
      column_single.empty() ? nullptr : column_single.data()
  };
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
      }
      if (!row_single.empty()) {
        column_single[at] = row_single[p];
      }
    }
  }
}

void OwnedProblem::widen() {
  row_value.insert(row_value.end(), row_single.begin(), row_single.end());
  column_value.insert(column_value.end(), column_single.begin(), column_single.end());
  row_single = {};
  column_single = {};
}

void solve(
    OwnedProblem& problem,
    int64_t k,
    double tol,
    Method method,
    GramScratch& scratch,
    double* sigma,
    double* bound
) {
  std::fill(sigma, sigma + k, 0.0);
  std::fill(bound, bound + k, 0.0);
  const int64_t narrow = std::min(problem.rows(), problem.columns());
  const int64_t found = std::min(k, narrow);
  if (found == 0) {
    return;
  }
  if (method == Method::automatic && is_complete_graph(problem)) {
    sigma[0] = std::sqrt(static_cast<double>(problem.nnz()));
    bound[0] = kEpsilon * sigma[0];
    return;
  }
  if (method == Method::automatic && orthogonal(problem, found, sigma, bound)) {
    return;
  }
  const Method chosen = choose(problem, found);
  if (method == Method::automatic || chosen == Method::golub_kahan) {
    method = chosen;
  }
  if (method == Method::bit_gram && problem.weighted()) {
    method = Method::sparse_gram;
  }
  if (method != Method::golub_kahan && feasible(problem, method)) {
    const GramOperator gram = make_gram(problem, method, scratch);
    GramLanczos lanczos(gram, rounding(problem, method), scratch);
    if (lanczos.run(found, tol, sigma, bound)) {
      return;
    }
  }
  golub_kahan(problem, k, tol, scratch, sigma, bound);
}

}  // namespace fullspectrum::spectrum
