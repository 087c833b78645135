#pragma once

#include <cstdint>
#include <string>

namespace fullspectrum {

// The pattern of a matrix in CSR form, in memory that somebody else owns.
template <typename index_t>
struct CsrView {
  int64_t rows;
  int64_t cols;
  int64_t nnz;
  const index_t* crow_indices;  // [rows + 1]
  const index_t* col_indices;   // [nnz]
};

// What would make reading the pattern unsafe, in words; empty if nothing does. Of the starts of
// rows alone, O(rows), of columns alone, and of all, O(rows + nnz).
template <typename index_t>
std::string crow_fault(const CsrView<index_t>& csr) {
  const index_t* crow = csr.crow_indices;
  if (crow[0] != 0 || crow[csr.rows] != csr.nnz) {
    return "crow_indices must start at 0 and end at nnz = " + std::to_string(csr.nnz) + ", got " +
           std::to_string(crow[0]) + " and " + std::to_string(crow[csr.rows]);
  }
  for (int64_t row = 0; row < csr.rows; ++row) {
    if (crow[row + 1] < crow[row]) {
      return "crow_indices must never decrease, row " + std::to_string(row) + " does";
    }
  }
  return "";
}

template <typename index_t>
std::string col_fault(const index_t* col, int64_t count, int64_t cols) {
  index_t lowest = 0, highest = 0;  // found without a branch, several columns at a time
  for (int64_t p = 0; p < count; ++p) {
    lowest = col[p] < lowest ? col[p] : lowest;
    highest = col[p] > highest ? col[p] : highest;
  }
  if (count > 0 && (lowest < 0 || highest >= cols)) {
    return "col_indices must lie in [0, " + std::to_string(cols) + "), got " +
           std::to_string(lowest < 0 ? lowest : highest);
  }
  return "";
}

template <typename index_t>
std::string csr_fault(const CsrView<index_t>& csr) {
  const std::string fault = crow_fault(csr);
  return fault.empty() ? col_fault(csr.col_indices, csr.nnz, csr.cols) : fault;
}

}  // namespace fullspectrum
