#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#include "masked_matmul/panel_kernels.h"

namespace fullspectrum {

// The cost of a row apart from its nonzeros (turning it to row-major), in nonzeros.
constexpr int64_t kRowCost = 8;

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

// A block of columns is worth the loads and stores of the sums between blocks, and a walk along the
// nonzeros that breaks off, where a row has about this many nonzeros in it, and where so many full
// strips are more than the first-level cache holds. Elsewhere strips come from the second level,
// asked for in advance.
constexpr double kNonzerosPerBlock = 96;
constexpr int64_t kLeastBlock = 384;

// A sparse matrix [rows, cols] in CSR form, with the names of its fields for messages.
template <typename index_t>
struct Matrix {
  const char* op;
  const char* crow_name;
  const char* col_name;
  const index_t* crow;  // [rows + 1]
  const index_t* col;   // [nnz]
  int64_t rows;
  int64_t cols;
  int64_t nnz;

  index_t last_column() const {
    return static_cast<index_t>(std::min(cols - 1, int64_t{std::numeric_limits<index_t>::max()}));
  }
  // How many columns the kernels take at a time, of a panel with strips of so many bytes.
  int64_t column_block(int64_t strip_bytes) const {
    const double needed = kNonzerosPerBlock * static_cast<double>(rows) *
                          static_cast<double>(cols) /
                          static_cast<double>(std::max(nnz, int64_t{1}));
    const auto block = static_cast<int64_t>(std::min(needed, static_cast<double>(cols)));
    return std::max({block, kLeastBlock * kPanelBytes / strip_bytes, int64_t{1}});
  }
  SparseRows<index_t> part(int64_t first, int64_t count, int64_t block) const {
    return {crow + first, col, count, int64_t{last_column()} + 1, block};
  }
};

// Whether the indices of a matrix can be followed. An offset that decreases or a column out of
// range would read foreign memory. The offsets are checked at once; the columns by the threads,
// each when it first meets a row, which brings them into its cache.
template <typename index_t>
class IndexCheck {
 public:
  using Inside = bool (*)(const index_t* index, int64_t count, index_t last);

  IndexCheck(Inside inside, const Matrix<index_t>& matrix) : inside_(inside), matrix_(matrix) {
    const index_t* crow = matrix.crow;
    bool falls = crow[0] != 0 || crow[matrix.rows] != matrix.nnz;
    for (int64_t r = 0; r < matrix.rows; ++r) {
      falls |= crow[r] > crow[r + 1];
    }
    STD_TORCH_CHECK(
        !falls, matrix.op, ": ", matrix.crow_name, " must rise from 0 to nnz = ", matrix.nnz
    );
  }
  bool passes(int64_t first, int64_t rows) {
    const int64_t begin = matrix_.crow[first], end = matrix_.crow[first + rows];
    if (!inside_(matrix_.col + begin, end - begin, matrix_.last_column())) {
      failed_.store(true, std::memory_order_relaxed);
      return false;
    }
    return true;
  }
  // To be called when all threads are done.
  void report() const {
    if (failed_.load(std::memory_order_relaxed)) {
      const index_t* end = matrix_.col + matrix_.nnz;
      const index_t* wrong = std::find_if(matrix_.col, end, [&](index_t c) {
        return c < 0 || c > matrix_.last_column();
      });
      STD_TORCH_CHECK(
          false,
          matrix_.op,
          ": ",
          matrix_.col_name,
          " must lie in [0, ",
          matrix_.cols,
          "), got ",
          *wrong
      );
    }
  }

 private:
  Inside inside_;
  const Matrix<index_t>& matrix_;
  std::atomic<bool> failed_{false};
};

}  // namespace fullspectrum
