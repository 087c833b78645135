#pragma once

// Runs CUDA kernels on the CPU, one block at a time: each thread of the block is a fiber of one OS
// thread, and __syncthreads, warp shuffles and votes are the points where a fiber waits for the
// others of its block or warp. What the hardware refuses or hangs on (too many threads, too much
// shared memory, a barrier that not every thread reaches) is an error here.
//
// Outside it: tensor cores, asynchronous copies, and everything about speed.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(int64_t x_ = 1, int64_t y_ = 1, int64_t z_ = 1)
      : x(static_cast<unsigned>(x_)), y(static_cast<unsigned>(y_)), z(static_cast<unsigned>(z_)) {}
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// Blocks run one after another in one OS thread, so a static is the block's own.
#define __shared__ static thread_local

namespace emulation {

// Of a block, on the least of the architectures we compile for (sm_80).
constexpr size_t kMaxSharedBytes = 163 * 1024;

// Runs `body` once for each thread of each block, and records that `kernel` was launched.
void run(
    const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> body
);

const dim3& thread_index();
const dim3& block_index();
const dim3& block_dim();
const dim3& grid_dim();
unsigned lane();
void* dynamic_shared();
void sync_block();
void sync_warp();
// The calling warp's scratch, kSlot bytes a lane. Two take turns: whoever writes one has passed a
// barrier that nobody reaches before having read what was there.
constexpr size_t kSlot = 16;
unsigned char* warp_slots();

// Every lane gives `value` and receives what `source_lane` gave.
template <typename T>
T exchange(T value, unsigned source_lane) {
  static_assert(sizeof(T) <= kSlot, "a shuffled value is at most 16 bytes");
  unsigned char* slots = warp_slots();
  std::memcpy(slots + lane() * kSlot, &value, sizeof(T));
  sync_warp();
  T result;
  std::memcpy(&result, slots + (source_lane % 32) * kSlot, sizeof(T));
  return result;
}

}  // namespace emulation

#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index())
#define blockDim (emulation::block_dim())
#define gridDim (emulation::grid_dim())

using std::max;
using std::min;

inline void __syncthreads() { emulation::sync_block(); }
inline void __syncwarp(unsigned = ~0u) { emulation::sync_warp(); }

template <typename T>
T __shfl_sync(unsigned, T value, unsigned source) {
  return emulation::exchange(value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  return emulation::exchange(value, emulation::lane() ^ mask);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = emulation::lane();
  return emulation::exchange(value, lane + delta < 32 ? lane + delta : lane);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = emulation::lane();
  return emulation::exchange(value, lane >= delta ? lane - delta : lane);
}

// Bit i: what lane i gave. All 32 lanes take part.
inline unsigned __ballot_sync(unsigned, bool vote) {
  unsigned char* slots = emulation::warp_slots();
  slots[emulation::lane() * emulation::kSlot] = vote;
  emulation::sync_warp();
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    bits |= static_cast<unsigned>(slots[lane * emulation::kSlot]) << lane;
  }
  return bits;
}

template <typename T>
T atomicAdd(T* target, T value) {
  const T old = *target;
  *target += value;
  return old;
}
template <typename T>
T atomicOr(T* target, T value) {
  const T old = *target;
  *target |= value;
  return old;
}
template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
