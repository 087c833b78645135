#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "spectrum/compress_cuda.h"
#include "spectrum/gram_lanczos_cuda.h"
#include "spectrum/method.h"
#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

// How a problem is solved and where its workspace lies, both known to the host from the shapes.
struct Plan {
  Method method;   // one of the four, not automatic
  int64_t offset;  // first double of its workspace
};

// A problem's workspace on the way over the Gram matrix, in doubles: the matrix, the rows of bits
// it is counted from, then what the iteration takes. Grows with both sides.
struct GramLayout {
  int64_t narrow;
  int64_t tall;
  Method method;

  // 32-bit words in a row of bits.
  FULLSPECTRUM_HOST_DEVICE int64_t words() const { return ceil_div(tall, 32); }
  FULLSPECTRUM_HOST_DEVICE int64_t bits() const {  // where they start
    const int64_t small = Sizes::smaller(narrow, CudaGramLanczos::kComplete);
    return method == Method::matrix_free
               ? 0
               : Sizes::larger(small * small, ceil_div(narrow * narrow, 2));
  }
  FULLSPECTRUM_HOST_DEVICE int64_t iteration() const {  // where its memory starts
    return bits() + (method == Method::bit_gram ? ceil_div(narrow * words(), 2) : 0);
  }
};

// What every kernel of the Gram matrix knows.
struct GramProblems {
  Side rows;
  Side columns;
  const int64_t* repeated;
  const Plan* plan;  // [problems]
  double* workspace;
  int64_t k;

  __device__ Problem problem(int64_t p) const { return Problem(rows.lists(p), columns.lists(p)); }
  // Whether the problem's Gram matrix is wanted as `method` makes it.
  __device__ bool wants(int64_t p, const Problem& problem, Method method) const {
    return plan[p].method == method && repeated[p] == 0 &&
           CudaGramLanczos::can_find(Sizes::smaller(k, problem.narrow.size), problem.narrow.size);
  }
  __device__ double* memory(int64_t p) const { return workspace + plan[p].offset; }
};

// Launches what forms the Gram matrices of problems [begin, end), of those among them whose plan
// says so. `narrow` is the largest of their shorter sides.
void launch_bit_gram(
    const DeviceScope& scope,
    const GramProblems& problems,
    int64_t begin,
    int64_t end,
    int64_t narrow
);
void launch_sparse_gram(
    const DeviceScope& scope,
    const GramProblems& problems,
    int64_t begin,
    int64_t end,
    int64_t narrow
);

}  // namespace fullspectrum::spectrum
