#pragma once

// Panels of activations in shared memory: what the CUDA kernels of sparse layers read from.
//
// A panel holds one line of 128 bytes for each feature, with the values of kSpan batch entries:
// 32 of 4 bytes, 64 of 2, 16 of 8. Eight lanes read a line with one 16-byte load each, so that the
// four quarters of a warp read the lines of four nonzeros with one instruction, in four passes over
// the 32 banks, whichever lines those are.

#include "common/cuda_launch.h"

namespace fullspectrum {
namespace {

constexpr int kLineBytes = 128;
constexpr int kVectorBytes = 16;
constexpr int kQuarter = kLineBytes / kVectorBytes;  // lanes that read a line together

template <typename scalar_t>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorBytes / static_cast<int>(sizeof(scalar_t));
  scalar_t at[kSize];
};

template <typename scalar_t>
constexpr int kSpan = kLineBytes / static_cast<int>(sizeof(scalar_t));

// The byte at which feature `line` starts. Its vectors stand in an order of their own, vector v at
// line_start ^ (v * 16): lines written by neighbouring lanes (see stage_spans) then meet in
// different banks.
template <typename scalar_t>
__device__ int line_start(int line) {
  return line * kLineBytes + line / Vector<scalar_t>::kSize % kQuarter * kVectorBytes;
}

template <typename scalar_t>
__device__ Vector<scalar_t>& vector_at(unsigned char* panel, int start, int vector) {
  return *reinterpret_cast<Vector<scalar_t>*>(panel + (start ^ (vector * kVectorBytes)));
}

// A row-major matrix [entries, features] in global memory.
template <typename scalar_t>
struct Activations {
  const scalar_t* data;
  int64_t entries;
  int64_t features;
  bool aligned;  // every row starts at a multiple of 16 bytes

  // Features feature, feature + 1, ... of one entry; zeros outside the matrix.
  __device__ Vector<scalar_t> load(int64_t entry, int64_t feature) const {
    constexpr int kSize = Vector<scalar_t>::kSize;
    Vector<scalar_t> loaded;
    const scalar_t* from = data + entry * features + feature;
    if (aligned && entry < entries && feature < features) {
      return *reinterpret_cast<const Vector<scalar_t>*>(from);
    }
    FULLSPECTRUM_UNROLL
    for (int j = 0; j < kSize; ++j) {
      const bool inside = entry < entries && feature + j < features;
      loaded.at[j] = inside ? from[j] : scalar_t(0);
    }
    return loaded;
  }
};

// Fills `spans` times kSpan lines of a panel with batch entries first_entry, first_entry + 1, ...;
// the lines of span s are the features from first_feature(s) on. The whole block takes part; the
// caller synchronizes.
//
// A warp reads 128 bytes of four rows at a time and turns them in registers: lane (a, b) reads
// vector a of the rows b * kSize + j, and writes feature a * kSize + i of them as one vector.
template <int kWarps, typename scalar_t, typename First>
__device__ void stage_spans(
    const Activations<scalar_t>& from,
    int64_t first_entry,
    int spans,
    const First& first_feature,
    unsigned char* panel
) {
  constexpr int kSize = Vector<scalar_t>::kSize;
  constexpr int kHalves = 2;  // a warp's 4 * kSize entries are half a line
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int a = lane % kQuarter, b = lane / kQuarter;
  for (int unit = static_cast<int>(threadIdx.x) / kWarp; unit < kHalves * spans; unit += kWarps) {
    const int span = unit / kHalves;
    const int vector = unit % kHalves * (kQuarter / kHalves) + b;
    const int64_t feature = first_feature(span) + a * kSize;
    Vector<scalar_t> rows[kSize];
    FULLSPECTRUM_UNROLL
    for (int j = 0; j < kSize; ++j) {
      rows[j] = from.load(first_entry + vector * kSize + j, feature);
    }
    FULLSPECTRUM_UNROLL
    for (int i = 0; i < kSize; ++i) {
      Vector<scalar_t> turned;
      FULLSPECTRUM_UNROLL
      for (int j = 0; j < kSize; ++j) {
        turned.at[j] = rows[j].at[i];
      }
      const int start = line_start<scalar_t>(span * kSpan<scalar_t> + a * kSize + i);
      vector_at<scalar_t>(panel, start, vector) = turned;
    }
  }
}

// The sums of `part` over the lanes of a quarter: lane l of it receives that of part[l]. Seven
// shuffles for eight sums, in a fixed order.
template <typename acc_t>
__device__ acc_t transposed_sum(acc_t (&part)[kQuarter]) {
  const int lane = static_cast<int>(threadIdx.x) % kQuarter;
  FULLSPECTRUM_UNROLL
  for (int half = kQuarter / 2; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
    FULLSPECTRUM_UNROLL
    for (int j = 0; j < half; ++j) {
      const acc_t given = upper ? part[j] : part[j + half];
      const acc_t kept = upper ? part[j + half] : part[j];
      part[j] = kept + __shfl_xor_sync(~0u, given, half);
    }
  }
  return part[0];
}

// Adds the sums of a warp's four quarters, each for the whole line, and puts them into `line`, or
// adds them to it where they are not the first. The values are shared out as they are summed: half
// change hands at each step, where there are that many.
template <typename acc_t, int kSize>
__device__ void sum_quarters(acc_t (&sum)[kSize], acc_t* line, bool first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool lower = lane / kQuarter % 2 == 0, left = lane / (2 * kQuarter) == 0;
  acc_t* own = line + lane % kQuarter * kSize + (left ? 0 : kSize / 2);
  FULLSPECTRUM_UNROLL
  for (int j = 0; j < kSize / 2; ++j) {
    const acc_t given = left ? sum[j + kSize / 2] : sum[j];
    const acc_t kept = left ? sum[j] : sum[j + kSize / 2];
    sum[j] = kept + __shfl_xor_sync(~0u, given, 2 * kQuarter);
  }
  if constexpr (kSize == 2) {
    sum[0] += __shfl_xor_sync(~0u, sum[0], kQuarter);
    if (lower) {
      own[0] = first ? sum[0] : own[0] + sum[0];
    }
  } else {
    own += lower ? 0 : kSize / 4;
    FULLSPECTRUM_UNROLL
    for (int j = 0; j < kSize / 4; ++j) {
      const acc_t given = lower ? sum[j + kSize / 4] : sum[j];
      const acc_t kept = lower ? sum[j] : sum[j + kSize / 4];
      sum[j] = kept + __shfl_xor_sync(~0u, given, kQuarter);
      own[j] = first ? sum[j] : own[j] + sum[j];
    }
  }
}

}  // namespace
}  // namespace fullspectrum
