#include "selection/projection_kernels.h"

// Compiled once for each instruction set, so: no header with inline functions.

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

// The compiler cuts them into the registers there are.
constexpr int kEight = 8;
typedef double Doubles __attribute__((vector_size(kEight * sizeof(double))));
typedef int64_t Flags __attribute__((vector_size(kEight * sizeof(int64_t))));  // 0 or -1
typedef int8_t Bytes __attribute__((vector_size(kEight)));

template <typename scalar_t>
struct Stored {
  typedef scalar_t type
      __attribute__((vector_size(kEight * sizeof(scalar_t)), aligned(alignof(scalar_t)), may_alias)
      );
};

// Of eight scores after the other.
template <typename scalar_t>
struct Bracketing {
  double low, high;
  scalar_t* open;
  Doubles at_low = {}, at_high = {};
  Flags linear = {};
  int64_t number = 0;

  // sum += clip(x, 0, 1). By reference: how such vectors go as values depends on the processor.
  static void add_clipped(const Doubles& x, Doubles& sum) {
    const Doubles zero = {}, one = zero + 1;
    sum += x > zero ? (x < one ? x : one) : zero;
  }

  void add(const scalar_t* eight) {
    const Doubles z = __builtin_convertvector(
        *reinterpret_cast<const typename Stored<scalar_t>::type*>(eight), Doubles
    );
    const Doubles less_one = z - 1;
    const Doubles finite = z - z;  // else NaN
    add_clipped(z - low, at_low);
    at_low += finite;
    add_clipped(z - high, at_high);
    linear += (less_one <= low) & (z >= high);
    const Flags kinked = ((z > low) & (z < high)) | ((less_one > low) & (less_one < high));
    const Bytes bytes = __builtin_convertvector(kinked, Bytes);
    uint64_t hits;
    __builtin_memcpy(&hits, &bytes, sizeof hits);
    for (hits &= 0x0101010101010101u; hits != 0; hits &= hits - 1) {
      open[number++] = eight[__builtin_ctzll(hits) / 8];
    }
  }
};

template <typename scalar_t>
BracketSums bracket(const scalar_t* scores, int64_t size, double low, double high, scalar_t* open) {
  Bracketing<scalar_t> found{low, high, open};
  int64_t at = 0;
  for (; at + kEight <= size; at += kEight) {
    found.add(scores + at);
  }
  scalar_t rest[kEight];
  for (int i = 0; i < kEight; ++i) {
    rest[i] = at + i < size ? scores[at + i] : scalar_t{0};  // 0 adds nothing anywhere
  }
  found.add(rest);
  BracketSums sums{0, 0, 0, found.number};
  for (int i = 0; i < kEight; ++i) {
    sums.at_low += found.at_low[i];
    sums.at_high += found.at_high[i];
    sums.linear -= found.linear[i];
  }
  return sums;
}

template <typename scalar_t>
void project(scalar_t* scores, int64_t size, double threshold) {
  for (int64_t i = 0; i < size; ++i) {
    const double x = static_cast<double>(scores[i]) - threshold;
    scores[i] = static_cast<scalar_t>(x <= 0 ? 0 : (x > 1 ? 1 : x));
  }
}

}  // namespace

template <typename scalar_t>
ProjectionKernels<scalar_t> projection_kernels() {
  return {bracket<scalar_t>, project<scalar_t>};
}

template ProjectionKernels<float> projection_kernels();
template ProjectionKernels<double> projection_kernels();

}  // namespace fullspectrum::FULLSPECTRUM_ISA
