#include "selection/projection_kernels.h"

// Compiled once for each instruction set, so: no header with inline functions but the intrinsics'.
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

// Scores of one vector of doubles, which the compiler cuts into the registers there are.
constexpr int kEight = 8;

#if defined(__AVX512F__)
constexpr __mmask8 kAll = 0xff;  // without a mask GCC 12 warns of its own header

__m512d load(const float* eight) { return _mm512_maskz_cvtps_pd(kAll, _mm256_loadu_ps(eight)); }
__m512d load(const double* eight) { return _mm512_loadu_pd(eight); }
void store(float* to, __mmask8 which, const float* eight) {
  _mm256_storeu_ps(to, _mm256_maskz_compress_ps(which, _mm256_loadu_ps(eight)));
}
void store(double* to, __mmask8 which, const double* eight) {
  _mm512_storeu_pd(to, _mm512_maskz_compress_pd(which, _mm512_loadu_pd(eight)));
}

// Of eight scores after the other.
template <typename scalar_t>
struct Bracketing {
  double low, high;
  scalar_t* open;
  __m512d at_low = _mm512_setzero_pd(), at_high = _mm512_setzero_pd();
  int64_t linear = 0, number = 0;

  static __m512d clip(__m512d x) {  // of NaN, 0
    const __m512d positive = _mm512_maskz_max_pd(kAll, x, _mm512_setzero_pd());
    return _mm512_maskz_min_pd(kAll, positive, _mm512_set1_pd(1));
  }

  void add(const scalar_t* eight) {
    const __m512d z = load(eight);
    const __m512d less_one = _mm512_sub_pd(z, _mm512_set1_pd(1));
    const __m512d bottom = _mm512_set1_pd(low), top = _mm512_set1_pd(high);
    at_low = _mm512_add_pd(at_low, clip(_mm512_sub_pd(z, bottom)));
    at_low = _mm512_add_pd(at_low, _mm512_sub_pd(z, z));  // NaN where z is not finite
    at_high = _mm512_add_pd(at_high, clip(_mm512_sub_pd(z, top)));
    const __mmask8 above = _mm512_cmp_pd_mask(z, top, _CMP_GE_OQ);
    const __mmask8 falling = _mm512_cmp_pd_mask(less_one, bottom, _CMP_LE_OQ);
    linear += __builtin_popcount(above & falling);
    const __mmask8 kinked =
        (_mm512_cmp_pd_mask(z, bottom, _CMP_GT_OQ) & _mm512_cmp_pd_mask(z, top, _CMP_LT_OQ)) |
        (_mm512_cmp_pd_mask(less_one, bottom, _CMP_GT_OQ) &
         _mm512_cmp_pd_mask(less_one, top, _CMP_LT_OQ));
    if (kinked != 0) {
      store(open + number, kinked, eight);
      number += __builtin_popcount(kinked);
    }
  }

  int64_t linear_ones() const { return linear; }
};
#else
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

  int64_t linear_ones() const {
    int64_t sum = 0;
    for (int i = 0; i < kEight; ++i) {
      sum -= linear[i];
    }
    return sum;
  }
};
#endif

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
  BracketSums sums{0, 0, found.linear_ones(), found.number};
  for (int i = 0; i < kEight; ++i) {
    sums.at_low += found.at_low[i];
    sums.at_high += found.at_high[i];
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
