#pragma once

#include <cstdint>

namespace fullspectrum {

// The inner loops of the Lanczos iteration on a Gram matrix, compiled once for each instruction
// set. Every vector and every row of a matrix is padded with zeros to a multiple of kGramPadding,
// so that no loop has a tail. All sums have a fixed order; it depends on the instruction set.
//
// A Gram matrix G is stored as its lower triangle L with half of the diagonal: G = L + L^T. Row i
// of L is zero from entry i + 1 to the next multiple of kGramPadding, undefined after that.
struct GramKernels {
  // L of G[i, j] = number of bits that nodes i and j share.
  void (*bit_gram)(
      const uint64_t* bits,  // [words, row]: word after word, for each one all nodes
      int64_t words,
      int64_t row,  // at least stride + kGramPadding
      int64_t size,
      int64_t stride,
      float* gram  // [size, stride]
  );
  // L of G = A A^T from the lists of A's rows, the indices of each rising.
  void (*sparse_gram)(
      const int64_t* offset,  // [size + 1]
      const int32_t* index,   // below length
      const double* value,    // or null where all are one or in `single`
      const float* single,
      int64_t size,
      int64_t length,
      int64_t stride,
      int64_t* part,  // scratch, [2, size]
      double* panel,  // scratch, [kGramPanel]
      double* gram    // [size, stride]
  );
  // y += G x for `width` vectors, 1 or 2.
  void (*multiply_float)(
      const float* gram,
      int64_t size,
      int64_t stride,
      const double* x,  // [width, stride]
      int64_t width,
      double* y  // [width, stride]
  );
  void (*multiply_double)(
      const double* gram, int64_t size, int64_t stride, const double* x, int64_t width, double* y
  );
  // y += A^T A x for two vectors at once, A given by lists: one pass over them.
  void (*multiply_lists)(
      const int64_t* offset,  // [lists + 1]
      const int32_t* index,   // below size
      const double* value,    // or null where all are one or in `single`
      const float* single,
      int64_t lists,
      const double* x,  // [size, 2]
      double* y         // [size, 2], zero
  );
  // y[t, i] = <matrix[i, :], x[t, :]> for t < width, width 1 or 2.
  void (*inner_products)(
      const double* matrix,  // [rows, stride]
      int64_t rows,
      int64_t stride,
      const double* x,  // [width, stride]
      int64_t width,
      double* y,  // [width, y_stride]
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
};

constexpr int64_t kGramPadding = 8;
constexpr int64_t kGramPanel = 512 * 64;  // doubles that the second level of cache holds

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
