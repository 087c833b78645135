#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/narrow_floats.h"
#include "common/parallel.h"
#include "masked_matmul/linear_matrix.h"

// The sparse linear operators for a batch of one, which would leave a panel all but empty. What
// bounds them is the walk along the nonzeros, so both gradients come from the rows of W: there is
// no transposed index to follow and no value to be read through a permutation.

namespace fullspectrum {

// From so many nonzeros on (some 20 us) a second thread is worth its start.
constexpr int64_t kNonzerosWorthThreads = int64_t{1} << 15;

template <typename index_t>
int64_t row_ranges(const Matrix<index_t>& w) {
  return w.nnz >= kNonzerosWorthThreads ? thread_count() : 1;
}

// Calls body(range, row) for all rows of W, whose columns have been checked then. The ranges are of
// about equal cost; each is walked by one thread.
template <typename index_t, typename Body>
void for_checked_rows(
    const Matrix<index_t>& w, IndexCheck<index_t>& check, int64_t ranges, const Body& body
) {
  const std::vector<int64_t> boundary = balanced_rows(w.crow, w.rows, ranges);
  parallel_for(0, ranges, 1, [&](int64_t begin, int64_t end) {
    for (int64_t range = begin; range < end; ++range) {
      for (int64_t first = boundary[range]; first < boundary[range + 1]; first += kRowBlock) {
        const int64_t last = std::min(first + kRowBlock, boundary[range + 1]);
        if (!check.passes(first, last - first)) {
          return;
        }
        for (int64_t r = first; r < last; ++r) {
          body(range, r);
        }
      }
    }
  });
  check.report();
}

// The loops along a row. Inlined into all the rest, they would run out of registers.

// The sum of value[p] x[col[p]].
template <typename scalar_t, typename index_t>
[[gnu::noinline]] scalar_t gathered_product(
    const scalar_t* value, const index_t* col, int64_t count, const scalar_t* x
) {
  constexpr int kSums = 8;  // which do not wait for each other
  scalar_t sum[kSums] = {};
  int64_t p = 0;
  for (; p + kSums <= count; p += kSums) {
#pragma GCC unroll 8
    for (int s = 0; s < kSums; ++s) {
      sum[s] += value[p + s] * x[col[p + s]];
    }
  }
  for (; p < count; ++p) {
    sum[0] += value[p] * x[col[p]];
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

// out[p] = g x[col[p]].
template <typename scalar_t, typename index_t, typename storage_t>
[[gnu::noinline]] void gather_scaled(
    scalar_t g, const scalar_t* x, const index_t* col, int64_t count, storage_t* out
) {
#pragma GCC unroll 4
  for (int64_t p = 0; p < count; ++p) {
    out[p] = static_cast<storage_t>(g * x[col[p]]);
  }
}

// out[col[p]] += g value[p].
template <typename scalar_t, typename index_t, typename storage_t>
[[gnu::noinline]] void scatter_scaled(
    scalar_t g, const storage_t* value, const index_t* col, int64_t count, scalar_t* out
) {
#pragma GCC unroll 4
  for (int64_t p = 0; p < count; ++p) {
    out[col[p]] += g * static_cast<scalar_t>(value[p]);
  }
}

// y = W x + bias.
template <typename storage_t, typename index_t>
void multiply_one(
    const Matrix<index_t>& w,  // [out, in]
    IndexCheck<index_t>& check,
    const compute_t<storage_t>* value,  // [nnz]
    const compute_t<storage_t>* bias,   // [out] or null
    const storage_t* x,                 // [in]
    storage_t* y                        // [out]
) {
  const std::vector<compute_t<storage_t>> from(x, x + w.cols);
  for_checked_rows(w, check, row_ranges(w), [&](int64_t, int64_t r) {
    const int64_t begin = w.crow[r], count = w.crow[r + 1] - begin;
    const auto sum = gathered_product(value + begin, w.col + begin, count, from.data());
    y[r] = static_cast<storage_t>(bias == nullptr ? sum : sum + bias[r]);
  });
}

// grad_x = W^T g, to which each range of rows adds apart, and grad_values[p] = g[row(p)] x[col(p)].
// Either may be null, with what it alone needs.
template <typename storage_t, typename index_t>
void differentiate_one(
    const Matrix<index_t>& w,  // [out, in]
    IndexCheck<index_t>& check,
    const storage_t* value,  // [nnz] or null
    const storage_t* x,      // [in] or null
    const storage_t* g,      // [out]
    storage_t* grad_x,       // [in] or null
    storage_t* grad_values   // [nnz] or null
) {
  using scalar_t = compute_t<storage_t>;
  const int64_t ranges = row_ranges(w);
  const std::vector<scalar_t> from(x, x == nullptr ? x : x + w.cols);
  std::vector<scalar_t> partial(grad_x == nullptr ? 0 : ranges * w.cols);
  for_checked_rows(w, check, ranges, [&](int64_t range, int64_t r) {
    const int64_t begin = w.crow[r], count = w.crow[r + 1] - begin;
    const auto factor = static_cast<scalar_t>(g[r]);
    if (grad_values != nullptr) {
      gather_scaled(factor, from.data(), w.col + begin, count, grad_values + begin);
    }
    if (grad_x != nullptr) {
      scalar_t* to = partial.data() + range * w.cols;
      scatter_scaled(factor, value + begin, w.col + begin, count, to);
    }
  });
  for (int64_t c = 0; grad_x != nullptr && c < w.cols; ++c) {
    scalar_t sum = partial[c];
    for (int64_t range = 1; range < ranges; ++range) {
      sum += partial[range * w.cols + c];
    }
    grad_x[c] = static_cast<storage_t>(sum);
  }
}

}  // namespace fullspectrum
