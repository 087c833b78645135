#pragma once

#include <cstdint>

namespace fullspectrum {

// Loops over vectors that come in pairs, element by element: x [rows, 2]. Compiled once for each
// instruction set. Pairs are padded with zeros to kPairPadding rows, so that no loop has a tail.
// A factor is a matrix [2, 2], row after row. All sums have a fixed order; it depends on the
// instruction set.
struct PairKernels {
  // x += sum_i in_i factor_i
  void (*add_products)(
      int64_t count,
      const double* const* in,
      const double* factor,  // [count, 2, 2]
      int64_t rows,
      double* x
  );
  // x = x factor
  void (*transform)(const double* factor, int64_t rows, double* x);
  // out_i = in_i^T x
  void (*inner_products)(
      int64_t count,
      const double* const* in,
      const double* x,
      int64_t rows,
      double* out  // [count, 2, 2]
  );
};

constexpr int64_t kPairPadding = 4;

namespace baseline {
PairKernels pair_kernels();
}
namespace avx2 {
PairKernels pair_kernels();
}
namespace avx512 {
PairKernels pair_kernels();
}

}  // namespace fullspectrum
