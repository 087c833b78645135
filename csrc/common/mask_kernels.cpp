#include "common/mask_kernels.h"

// Compiled once for each instruction set, so: no header with inline functions of external linkage.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

constexpr int kWordBits = 64;

// The lowest bits of 64 bytes.
uint64_t word_of(const uint8_t* cells) {
#if defined(__AVX512BW__)
  return _mm512_test_epi8_mask(_mm512_loadu_si512(cells), _mm512_set1_epi8(1));
#elif defined(__AVX2__)
  uint64_t word = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cells) + half);
    // the lowest bit of a byte becomes its highest
    const auto bits = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(bytes, 7)));
    word |= static_cast<uint64_t>(bits) << (32 * half);
  }
  return word;
#else
  uint64_t word = 0;
  for (int e = 0; e < 8; ++e) {
    uint64_t bytes;
    __builtin_memcpy(&bytes, cells + 8 * e, 8);
    // gathers the lowest bit of each byte in the highest byte (little-endian)
    word |= (((bytes & 0x0101010101010101u) * 0x0102040810204080u) >> 56) << (8 * e);
  }
  return word;
#endif
}

int64_t pack(const uint8_t* cells, int64_t count, uint64_t* bits, uint64_t* seen) {
  int64_t ones = 0;
  const auto take = [&](int64_t w, uint64_t word) {
    bits[w] = word;
    seen[w] |= word;
    ones += __builtin_popcountll(word);
  };
  const int64_t whole = count / kWordBits;
  for (int64_t w = 0; w < whole; ++w) {
    take(w, word_of(cells + w * kWordBits));
  }
  if (whole * kWordBits < count) {
    uint8_t last[kWordBits] = {};
    __builtin_memcpy(last, cells + whole * kWordBits, count - whole * kWordBits);
    take(whole, word_of(last));
  }
  return ones;
}

template <typename index_t>
index_t* list_word(uint64_t word, int64_t first, index_t* to) {
  for (; word != 0; word &= word - 1) {
    *to++ = static_cast<index_t>(first + __builtin_ctzll(word));
  }
  return to;
}

template <typename index_t>
index_t* list_ones(const uint64_t* bits, int64_t words, index_t* to, index_t*) {
  for (int64_t w = 0; w < words; ++w) {
    to = list_word(bits[w], w * kWordBits, to);
  }
  return to;
}

#if defined(__AVX512F__)
// Writes whole vectors, as long as one word's worth of them fits: no branch depends on the bits but
// the one for an empty word.
template <>
int32_t* list_ones(const uint64_t* bits, int64_t words, int32_t* to, int32_t* end) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t w = 0;
  for (; w < words && end - to >= kWordBits; ++w) {
    const uint64_t word = bits[w];
    if (word == 0) {
      continue;
    }
    for (int from = 0; from < kWordBits; from += 16) {
      const __m512i at =
          _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(w * kWordBits + from)));
      // counted from the word's beginning, so that the stores do not wait for each other
      int32_t* part = to + __builtin_popcountll(word & ((uint64_t{1} << from) - 1));
      _mm512_storeu_si512(
          part, _mm512_maskz_compress_epi32(static_cast<__mmask16>(word >> from), at)
      );
    }
    to += __builtin_popcountll(word);
  }
  for (; w < words; ++w) {
    to = list_word(bits[w], w * kWordBits, to);
  }
  return to;
}
#endif

}  // namespace

MaskKernels mask_kernels() { return {pack, list_ones<int32_t>, list_ones<int64_t>}; }

}  // namespace fullspectrum::FULLSPECTRUM_ISA
