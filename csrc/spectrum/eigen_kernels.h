#pragma once

#include <cstdint>

namespace fullspectrum {

// The inner loops of small dense eigenvalue problems, compiled once for each instruction set; rows
// are padded as in gram_kernels.h.
struct EigenKernels {
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
  // The `wanted` largest eigenvalues of a tridiagonal matrix, descending, to 128 roundings of its
  // norm: bisection by the signs of Sturm's sequence, many points at a time.
  void (*leading_eigenvalues)(
      const double* diagonal, const double* off, int64_t size, int64_t wanted, double* value
  );
};

namespace baseline {
EigenKernels eigen_kernels();
}
namespace avx2 {
EigenKernels eigen_kernels();
}
namespace avx512 {
EigenKernels eigen_kernels();
}

}  // namespace fullspectrum
