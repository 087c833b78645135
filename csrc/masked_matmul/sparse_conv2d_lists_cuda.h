#pragma once

// The lists of nonzeros that the CUDA product of images and a sparse matrix walks, and how those of
// W^T are made.

#include "common/first_not_below.h"
#include "masked_matmul/sparse_conv2d_cuda.h"

namespace fullspectrum {
namespace {

// The nonzeros that target channel c of phase f sums over: begin[f * channels + c] to end[...].
// column[p] = source channel in its group * taps + tap; source channels rise within a list.
template <typename scalar_t, typename index_t>
struct Lists {
  const index_t* begin;
  const index_t* end;
  const index_t* column;
  const scalar_t* value;
};

constexpr int kListThreads = 256;

// Lists W's nonzeros for the gradient for x. Those of an input channel lie side by side in the
// transposed index, tap by tap; here they are put in order of phase, then of output channel (of
// which each group has a part), then of tap. Where a nonzero goes is counted: bisection finds how
// many of each other tap of its phase come before it.
//
// Launch: grid (threads / 256), block 256, with a thread for each nonzero and for each phase and
// input channel; no shared memory. The larger the kernel, the more bisections.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kListThreads) sparse_conv2d_lists_kernel(
    const scalar_t* __restrict__ value,       // [nnz]
    const index_t* __restrict__ ccol,         // [columns + 1]
    const index_t* __restrict__ row_of,       // [nnz]
    const index_t* __restrict__ permutation,  // [nnz]
    index_t* __restrict__ begin,              // [phases, target channels]
    index_t* __restrict__ end,                // [phases, target channels]
    index_t* __restrict__ column,             // [nnz]
    scalar_t* __restrict__ listed,            // [nnz]
    Meeting g,
    int64_t nnz
) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kListThreads + threadIdx.x;
  const int columns = g.group_target * g.taps;
  // taps that no pixel meets come last
  const auto phase_of = [&](int tap) {
    const int down = g.phase_of(0, tap / g.kernel[1]), right = g.phase_of(1, tap % g.kernel[1]);
    const bool met = down < g.phases[0] && right < g.phases[1];
    return met ? down * g.phases[1] + right : g.all_phases();
  };
  // how many nonzeros of a column are of rows before `row`
  const auto before = [&](int at, int row) {
    return first_not_below(row_of, ccol[at], ccol[at + 1], row) - ccol[at];
  };

  if (thread < g.all_phases() * g.target_channels) {
    const int list = static_cast<int>(thread);
    const int phase = list / g.target_channels, channel = list % g.target_channels;
    const int group = channel / g.group_target, first = channel % g.group_target * g.taps;
    int64_t from = ccol[first], to = from;
    for (int tap = 0; tap < g.taps; ++tap) {
      const int at = first + tap, other = phase_of(tap);
      if (other == phase) {
        from += before(at, group * g.group_source);
        to += before(at, (group + 1) * g.group_source);
      } else if (other < phase) {
        from += ccol[at + 1] - ccol[at];
        to += ccol[at + 1] - ccol[at];
      }
    }
    begin[list] = static_cast<index_t>(from);
    end[list] = static_cast<index_t>(to);
  }

  if (thread < nnz) {
    // the first column that ends behind this nonzero
    const int own = static_cast<int>(first_not_below(ccol + 1, 0, columns - 1, thread + 1));
    const int own_tap = own % g.taps, first = own - own_tap, phase = phase_of(own_tap);
    const int row = static_cast<int>(row_of[thread]);
    int64_t to = ccol[first] + (thread - ccol[own]);
    for (int tap = 0; tap < g.taps; ++tap) {
      const int at = first + tap, other = phase_of(tap);
      if (other == phase && tap != own_tap) {
        to += before(at, tap < own_tap ? row + 1 : row);
      } else if (other < phase) {
        to += ccol[at + 1] - ccol[at];
      }
    }
    column[to] = static_cast<index_t>(row % g.group_source * g.taps + own_tap);
    listed[to] = value[permutation[thread]];
  }
}

}  // namespace
}  // namespace fullspectrum
