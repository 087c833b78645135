#pragma once

#include <cstdint>

#include "common/cuda_launch.h"

namespace fullspectrum::spectrum {

// A team that is one block of threads, its workers the warps. Sums go over lanes in a fixed order
// and end up the same in every lane.
class CudaTeam {
 public:
  // `flags` is shared memory, one a warp.
  __device__ explicit CudaTeam(int* flags) : flags_(flags) {}

  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return blockDim.x; }
  __device__ int64_t worker() const { return threadIdx.x / kWarp; }
  __device__ int64_t workers() const { return blockDim.x / kWarp; }
  __device__ int64_t lane() const { return threadIdx.x % kWarp; }
  __device__ int64_t lanes() const { return kWarp; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void sync_worker() const { __syncwarp(); }

  // Whether the flag of any worker is set; each is the same in all its lanes.
  __device__ bool any(bool flag) {
    if (lane() == 0) {
      flags_[worker()] = flag;
    }
    sync();
    bool result = false;
    for (int64_t w = 0; w < workers(); ++w) {
      result |= flags_[w] != 0;
    }
    sync();
    return result;
  }

  __device__ double dot(const double* x, const double* y, int64_t length) const {
    double sum = 0;
    for (int64_t i = lane(); i < length; i += kWarp) {
      sum += x[i] * y[i];
    }
    return warp_sum(sum);
  }

  // The sum, or the largest, of what the lanes of a warp give.
  __device__ double warp_sum(double value) const {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      value += __shfl_xor_sync(~0u, value, distance);
    }
    return value;
  }
  __device__ double warp_largest(double value) const {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const double other = __shfl_xor_sync(~0u, value, distance);
      value = other > value ? other : value;
    }
    return value;
  }

  // y += sum_i weight_i basis_i; a thread owns every size()-th element of y.
  __device__ void add_combination(
      const double* basis,  // [count, stride], of which length are used
      int64_t stride,
      int64_t count,
      int64_t length,
      const double* weight,  // [count]
      double* y              // [length]
  ) const {
    for (int64_t e = rank(); e < length; e += size()) {
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) {
        sum += weight[i] * basis[i * stride + e];
      }
      y[e] += sum;
    }
  }

 private:
  int* flags_;
};

}  // namespace fullspectrum::spectrum
