#pragma once

#include <cstdint>

namespace fullspectrum {

// The inner loops of the Lanczos iteration on a Gram matrix, compiled once for each instruction
// set. Every vector and every row of a matrix is padded with zeros to a multiple of kGramPadding,
// so that no loop has a tail. All sums have a fixed order; it depends on the instruction set.
struct GramKernels {
  // gram[i, j] = number of bits that rows i and j share. 64-bit words, `words` a multiple of 8.
  void (*bit_gram)(
      const uint64_t* bits,  // [size, words]
      int64_t words,
      int64_t size,
      int64_t stride,
      float* gram  // [size, stride], its padding untouched
  );
  // gram += sum over the lists of the outer product of each list's values with itself. The indices
  // of a list rise. The lower triangle is summed, then mirrored.
  void (*sparse_gram)(
      const int64_t* offset,  // [lists + 1]
      const int32_t* index,   // below size
      const double* value,    // or null where all are one
      int64_t lists,
      int64_t size,
      int64_t stride,
      double* gram  // [size, stride], zero
  );
  // y[t, i] = <matrix[i, :], x[t, :]> for t < width, width 1 or 2.
  void (*multiply_float)(
      const float* matrix,  // [rows, stride]
      int64_t rows,
      int64_t stride,
      const double* x,  // [width, stride]
      int64_t width,
      double* y,  // [width, y_stride]
      int64_t y_stride
  );
  void (*multiply_double)(
      const double* matrix,
      int64_t rows,
      int64_t stride,
      const double* x,
      int64_t width,
      double* y,
      int64_t y_stride
  );
  // y[t, :] += sum_i weight[t, i] matrix[i, :] for t < width, width 1 or 2.
  void (*combine)(
      const double* matrix,  // [rows, stride]
      int64_t rows,
      int64_t stride,
      const double* weight,  // [width, weight_stride]
      int64_t weight_stride,
      int64_t width,
      double* y  // [width, stride]
  );
  // y += A^T A x for two vectors at once, A given by lists: one pass over them.
  void (*multiply_lists)(
      const int64_t* offset,  // [lists + 1]
      const int32_t* index,   // below size
      const double* value,    // or null where all are one
      int64_t lists,
      const double* x,  // [size, 2]
      double* y         // [size, 2], zero
  );
  // Householder reflections that make a symmetric matrix tridiagonal. Row i of h then holds the
  // i-th reflection's vector, from entry i + 1 on, and factor[i] its factor.
  void (*tridiagonalise)(
      double* h,  // [size, stride], both triangles
      int64_t size,
      int64_t stride,
      double* diagonal,  // [size]
      double* off,       // [size], the last one 0
      double* factor,    // [size]
      double* scratch    // [4, stride]
  );
  // The `wanted` largest eigenvalues of a tridiagonal matrix, descending, to the rounding of its
  // norm: bisection by the signs of the pivots, many points at a time.
  void (*leading_eigenvalues)(
      const double* diagonal, const double* off, int64_t size, int64_t wanted, double* value
  );
};

constexpr int64_t kGramPadding = 8;

namespace baseline {
GramKernels gram_kernels();
}
namespace avx2 {
GramKernels gram_kernels();
}
namespace avx512 {
GramKernels gram_kernels();
}

}  // namespace fullspectrum
