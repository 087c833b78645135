#pragma once

#include <cstdint>

namespace fullspectrum::spectrum {

// The leading eigenpairs of small symmetric matrices: eigenvalues by bisection on a tridiagonal
// matrix that has them too, eigenvectors by inverse iteration.
//
// Writes value [min(k + 1, size)], descending, and the vectors of the first k of them,
// [k, stride]. `work` is memory of leading_pairs_workspace(stride) doubles. A stride is a multiple
// of kGramPadding.
int64_t leading_pairs_workspace(int64_t stride);

// Of a full matrix h [size, stride], which is destroyed.
void leading_pairs_of_dense(
    double* h, int64_t size, int64_t stride, int64_t k, double* value, double* vector, double* work
);

// Of a matrix with two diagonals on each side: band[3 * i + d] is its entry [i, i - d], what lies
// outside of the matrix is zero.
void leading_pairs_of_band(
    const double* band,
    int64_t size,
    int64_t stride,
    int64_t k,
    double* value,
    double* vector,
    double* work
);

}  // namespace fullspectrum::spectrum
