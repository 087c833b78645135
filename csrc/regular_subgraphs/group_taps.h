#pragma once

#include <cstdint>
#include <vector>

#include "common/csr.h"

namespace fullspectrum {

// Sorts the columns (input taps) of a 0/1 matrix by degree, ties by index, with a counting sort:
// O(rows + cols + nnz). Taps of one degree are one left-regular subgraph; live_outputs says how
// many rows it touches.
template <typename index_t>
void group_taps(
    const CsrView<index_t>& csr,
    int64_t* taps,         // [cols], the permutation
    int64_t* degrees,      // [cols], the degree of taps[i]
    int64_t* live_outputs  // [cols], rows that the taps of degree degrees[i] touch
) {
  std::vector<int64_t> degree_of(csr.cols, 0);
  int64_t largest = 0;
  for (int64_t p = 0; p < csr.nnz; ++p) {
    const int64_t degree = ++degree_of[csr.col_indices[p]];
    largest = degree > largest ? degree : largest;
  }
  std::vector<int64_t> live(largest + 1, 0);
  std::vector<int64_t> last_row(largest + 1, -1);
  for (int64_t row = 0; row < csr.rows; ++row) {
    for (int64_t p = csr.crow_indices[row]; p < csr.crow_indices[row + 1]; ++p) {
      const int64_t degree = degree_of[csr.col_indices[p]];
      live[degree] += last_row[degree] != row;
      last_row[degree] = row;
    }
  }
  std::vector<int64_t> first(largest + 2, 0);  // where each degree starts
  for (int64_t tap = 0; tap < csr.cols; ++tap) {
    ++first[degree_of[tap] + 1];
  }
  for (int64_t degree = 0; degree < largest; ++degree) {
    first[degree + 1] += first[degree];
  }
  for (int64_t tap = 0; tap < csr.cols; ++tap) {
    const int64_t at = first[degree_of[tap]]++;
    taps[at] = tap;
    degrees[at] = degree_of[tap];
    live_outputs[at] = live[degree_of[tap]];
  }
}

}  // namespace fullspectrum
