#include "selection/search_kernels.h"

// Compiled once for each instruction set, so: no header with inline functions but the intrinsics'.
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

constexpr int kBlock = 64;

// Calls body(i) for each set byte of a block, in order.
template <typename Body>
void for_hits(const unsigned char* hit, const Body& body) {
  for (int i = 0; i < kBlock; i += 8) {
    uint64_t eight;
    __builtin_memcpy(&eight, hit + i, 8);
    for (; eight != 0; eight &= eight - 1) {
      body(i + __builtin_ctzll(eight) / 8);
    }
  }
}

// Few entries are found, so whole blocks are tested without a branch, by the compiler's vectors,
// and the answers walked through eight at a time.
template <typename bits_t>
int64_t search(const bits_t* bits, int64_t size, bits_t least, int64_t base, int64_t* found) {
  constexpr bits_t kMagnitude = ~bits_t{0} >> 1;
  int64_t number = 0;
  int64_t at = 0;
  for (; at + kBlock <= size; at += kBlock) {
    alignas(kBlock) unsigned char hit[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      const bits_t entry = bits[at + i];
      hit[i] = ((entry & kMagnitude) >= least) & (entry != ~bits_t{0});
    }
    for_hits(hit, [&](int i) { found[number++] = base + at + i; });
  }
  for (; at < size; ++at) {
    found[number] = base + at;
    number += ((bits[at] & kMagnitude) >= least) & (bits[at] != ~bits_t{0});
  }
  return number;
}

#if defined(__AVX512F__)
// Vectors of one register, and the entries that pass a test pushed together.
struct Floats {
  using Mask = __mmask16;
  static constexpr int kLanes = 16;
  static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 all(float x) { return _mm512_set1_ps(x); }
  static Mask not_below(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
  static Mask above(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static void store(float* to, Mask which, __m512 x) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(which, x));
  }
};

struct Doubles {
  using Mask = __mmask8;
  static constexpr int kLanes = 8;
  static __m512d load(const double* from) { return _mm512_loadu_pd(from); }
  static __m512d all(double x) { return _mm512_set1_pd(x); }
  static Mask not_below(__m512d a, __m512d b) { return _mm512_cmp_pd_mask(a, b, _CMP_NLT_UQ); }
  static Mask above(__m512d a, __m512d b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  static void store(double* to, Mask which, __m512d x) {
    _mm512_storeu_pd(to, _mm512_maskz_compress_pd(which, x));
  }
};

template <typename scalar_t>
struct VectorOf {
  using type = Floats;
};
template <>
struct VectorOf<double> {
  using type = Doubles;
};

// The first part of collect(), as far as whole vectors go.
template <typename scalar_t>
int64_t collect_vectors(
    const scalar_t* scores,
    int64_t size,
    scalar_t least,
    scalar_t most,
    scalar_t* found,
    int64_t* above,
    int64_t* at
) {
  using Vector = typename VectorOf<scalar_t>::type;
  const auto low = Vector::all(least), high = Vector::all(most);
  int64_t number = 0;
  for (; *at + Vector::kLanes <= size; *at += Vector::kLanes) {
    const auto x = Vector::load(scores + *at);
    const typename Vector::Mask over = Vector::above(x, high);
    const typename Vector::Mask between = Vector::not_below(x, low) & ~over;
    *above += __builtin_popcount(over);
    if (between != 0) {
      Vector::store(found + number, between, x);
      number += __builtin_popcount(between);
    }
  }
  return number;
}

// The first part of search(), as far as whole vectors go.
template <typename scalar_t>
int64_t search_vectors(
    const scalar_t* scores, int64_t size, scalar_t least, uint32_t* place, int64_t* at
) {
  using Vector = typename VectorOf<scalar_t>::type;
  const auto low = Vector::all(least);
  const __m512i step = _mm512_set1_epi32(Vector::kLanes);
  __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t number = 0;
  for (; *at + 16 <= size; *at += Vector::kLanes) {  // 16 places are written, if fewer count
    const __mmask16 hit = Vector::not_below(Vector::load(scores + *at), low);
    _mm512_storeu_si512(place + number, _mm512_maskz_compress_epi32(hit, places));
    number += __builtin_popcount(hit);
    places = _mm512_add_epi32(places, step);
  }
  return number;
}
#else
template <typename scalar_t>
int64_t collect_vectors(
    const scalar_t* scores,
    int64_t size,
    scalar_t least,
    scalar_t most,
    scalar_t* found,
    int64_t* above,
    int64_t* at
) {
  int64_t number = 0;
  for (; *at + kBlock <= size; *at += kBlock) {
    const scalar_t* block = scores + *at;
    alignas(kBlock) unsigned char hit[kBlock];
    int over = 0;
    for (int i = 0; i < kBlock; ++i) {
      over += block[i] > most;
      hit[i] = !(block[i] < least) & !(block[i] > most);
    }
    *above += over;
    for_hits(hit, [&](int i) { found[number++] = block[i]; });
  }
  return number;
}

template <typename scalar_t>
int64_t search_vectors(
    const scalar_t* scores, int64_t size, scalar_t least, uint32_t* place, int64_t* at
) {
  int64_t number = 0;
  for (; *at + kBlock <= size; *at += kBlock) {
    alignas(kBlock) unsigned char hit[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      hit[i] = !(scores[*at + i] < least);
    }
    for_hits(hit, [&](int i) { place[number++] = static_cast<uint32_t>(*at + i); });
  }
  return number;
}
#endif

template <typename scalar_t>
int64_t collect(
    const scalar_t* scores,
    int64_t size,
    scalar_t least,
    scalar_t most,
    scalar_t* found,
    int64_t* above
) {
  int64_t at = 0;
  *above = 0;
  int64_t number = collect_vectors(scores, size, least, most, found, above, &at);
  for (; at < size; ++at) {
    *above += scores[at] > most;
    found[number] = scores[at];
    number += !(scores[at] < least) & !(scores[at] > most);
  }
  return number;
}

template <typename scalar_t>
int64_t search_scores(const scalar_t* scores, int64_t size, scalar_t least, uint32_t* place) {
  int64_t at = 0;
  int64_t number = search_vectors(scores, size, least, place, &at);
  for (; at < size; ++at) {
    place[number] = static_cast<uint32_t>(at);
    number += !(scores[at] < least);
  }
  return number;
}

template <typename scalar_t>
int64_t mark(const scalar_t* scores, int64_t size, scalar_t least, bool* mask) {
  int64_t number = 0;
  for (int64_t at = 0; at < size; ++at) {
    mask[at] = !(scores[at] < least);
    number += mask[at];
  }
  return number;
}

}  // namespace

template <typename bits_t>
SearchKernel<bits_t> search_kernel() {
  return search<bits_t>;
}

template SearchKernel<uint32_t> search_kernel();
template SearchKernel<uint64_t> search_kernel();

template <typename scalar_t>
ScoreKernels<scalar_t> score_kernels() {
  return {collect<scalar_t>, search_scores<scalar_t>, mark<scalar_t>};
}

template ScoreKernels<float> score_kernels();
template ScoreKernels<double> score_kernels();

}  // namespace fullspectrum::FULLSPECTRUM_ISA
