#include "selection/gradient_kernels.h"

#include "common/vectors.h"

// Compiled once for each instruction set, so: no header with inline functions but the intrinsics'.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

using Floats = vector_t<float>;
using Integers = vector_t<int32_t>;

constexpr int kWidth = kLanes<float>;
// A group of inputs is three vectors, which meet a broadcast gradient each; that many rows leave
// one register free.
constexpr int kVectors = 3;
#if defined(__AVX512F__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kColumns = kVectors * kWidth;

#if defined(__AVX512VNNI__)
using entry_t = int8_t;
constexpr int32_t kBias = 128;  // of the inputs: the instruction multiplies unsigned with signed
#else
using entry_t = int16_t;
constexpr int32_t kBias = 0;
#endif
constexpr int kEntries = 4 / static_cast<int>(sizeof(entry_t));
constexpr int64_t kMost = (int64_t{1} << (8 * sizeof(entry_t) - 1)) - 1;

// sum + the products of the integers of each word, added up.
Integers add_products(Integers sum, Integers x, int32_t grad) {
#if defined(__AVX512VNNI__)
  const __m512i g = _mm512_set1_epi32(grad);
  sum = reinterpret_cast<Integers>(_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, g));
  __asm__("" : "+v"(sum));  // the compiler else copies every sum, and runs out of registers
  return sum;
#elif defined(__AVX512BW__)
  return sum + reinterpret_cast<Integers>(_mm512_madd_epi16((__m512i)x, _mm512_set1_epi32(grad)));
#elif defined(__AVX2__)
  return sum + reinterpret_cast<Integers>(_mm256_madd_epi16((__m256i)x, _mm256_set1_epi32(grad)));
#elif defined(__SSE2__)
  return sum + reinterpret_cast<Integers>(_mm_madd_epi16((__m128i)x, _mm_set1_epi32(grad)));
#else
  return sum + (x << 16 >> 16) * static_cast<int16_t>(grad) + (x >> 16) * (grad >> 16);
#endif
}

// A bit for each lane that is not below `least`; a NaN is not.
uint64_t not_below(Floats lanes, float least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)lanes, _mm512_set1_ps(least), _CMP_NLT_UQ);
#elif defined(__AVX2__)
  const __m256 hits = _mm256_cmp_ps((__m256)lanes, _mm256_set1_ps(least), _CMP_NLT_UQ);
  return static_cast<uint64_t>(_mm256_movemask_ps(hits));
#elif defined(__SSE2__)
  return static_cast<uint64_t>(_mm_movemask_ps(_mm_cmpnlt_ps((__m128)lanes, _mm_set1_ps(least))));
#else
  uint64_t bits = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    bits |= uint64_t{!(lanes[lane] < least)} << lane;
  }
  return bits;
#endif
}

// The largest integer with which a sum of `width` products, of which one factor is biased, stays
// below 2^31.
int64_t levels_of(int64_t width) {
  const int64_t square = (int64_t{1} << 31) / width;
  const auto levels = kBias > 0
                          ? square / (2 * kBias)
                          : static_cast<int64_t>(__builtin_sqrt(static_cast<double>(square))) - 1;
  return levels < kMost ? levels : kMost;
}

float total(Floats lanes) {
  float sum = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    sum += lanes[lane];
  }
  return sum;
}

// ---- packing ------------------------------------------------------------------------------------

// value[i, n] = from[n, i] for `count` lines.
void transpose_lines(
    const float* from, int64_t stride, int64_t batch, int64_t count, int64_t width, float* value
) {
  int64_t first = 0;
  for (; first + kWidth <= count; first += kWidth) {
    for (int64_t n = 0; n < width; n += kWidth) {
      Floats square[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        square[i] = n + i < batch ? load(from + (n + i) * stride + first) : Floats{};
      }
      transpose<float>(square);
      for (int i = 0; i < kWidth; ++i) {
        store(value + (first + i) * width + n, square[i]);
      }
    }
  }
  for (; first < count; ++first) {
    for (int64_t n = 0; n < width; ++n) {
      value[first * width + n] = n < batch ? from[n * stride + first] : 0;
    }
  }
}

// Numbers so large that products of two lines may overflow count as no numbers; so small that the
// reciprocal may, as errors.
constexpr float kHuge = 1e18f, kTiny = 1e-30f;
// More than sums of up to 2^17 squares are off by in float32.
constexpr float kAbove = 1 + 0x1p-9f;

// Makes integers of line `at`.
void quantise(int64_t at, int64_t group, bool biased, int64_t width, const Lines& to) {
  const float* value = to.value + at * width;
  Floats lane_most{};
  for (int64_t n = 0; n < width; n += kWidth) {
    const Floats x = load(value + n);
    const Floats magnitude = x < 0.0f ? -x : x;
    lane_most = magnitude > lane_most ? magnitude : lane_most;
  }
  float most = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    most = lane_most[lane] > most ? lane_most[lane] : most;
  }
  const auto steps = static_cast<float>(levels_of(width));
  const bool usable = most > kTiny && most < kHuge && steps > 0;
  const float inverse = usable ? 1 / most : 0;
  const int32_t bias = biased ? kBias : 0;
  int32_t* word = to.word + at / group * (width / kEntries) * group + at % group;
  Floats squares{}, error_squares{};
  Integers sums{};
  for (int64_t n = 0; n < width; n += kWidth) {
    const Floats x = load(value + n) * inverse;
    const Floats scaled = x * steps;
    const Floats away = scaled < 0.0f ? Floats{} - 0.5f : Floats{} + 0.5f;
    // a NaN becomes some integer, which is not used
    const Floats shifted = scaled + away;
    const Floats inside = shifted > -40000.0f && shifted < 40000.0f ? shifted : Floats{};
    const Integers integer = __builtin_convertvector(inside, Integers);
    const Floats left = scaled - __builtin_convertvector(integer, Floats);
    squares += x * x;
    error_squares += left * left;
    sums += integer;
    alignas(kVectorBytes) int32_t each[kWidth];
    store(each, integer + bias);
    FULLSPECTRUM_UNROLL
    for (int i = 0; i < kWidth; i += kEntries) {
      uint32_t packed = 0;
      FULLSPECTRUM_UNROLL
      for (int e = 0; e < kEntries; ++e) {
        packed |= (static_cast<uint32_t>(each[i + e]) & (0xffffffffu >> (32 - 8 * sizeof(entry_t))))
                  << (8 * sizeof(entry_t) * e);
      }
      word[(n + i) / kEntries * group] = static_cast<int32_t>(packed);
    }
  }
  int32_t sum = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    sum += sums[lane];
  }
  const float infinity = __builtin_inff();
  const float root_width = __builtin_sqrtf(static_cast<float>(width));
  const float square = total(squares);
  to.sum[at] = sum;
  to.scale[at] = usable ? most / steps : 0;
  if (usable && square < infinity) {
    to.norm[at] = most * __builtin_sqrtf(square) * kAbove;
    to.error[at] = to.scale[at] * __builtin_sqrtf(total(error_squares)) * kAbove +
                   to.norm[at] * 0x1p-20f + kTiny;
  } else {
    const bool tiny = most <= kTiny && square == 0;
    to.norm[at] = to.error[at] = tiny ? kTiny * root_width : infinity;
  }
}

void pack(
    const float* from,
    int64_t batch,
    int64_t count,
    int64_t first,
    int64_t end,
    int64_t group,
    bool biased,
    int64_t width,
    const Lines& to
) {
  transpose_lines(
      from + first,
      count,
      batch,
      (end < count ? end : count) - first,
      width,
      to.value + first * width
  );
  for (int64_t at = count; at < end; ++at) {
    __builtin_memset(to.value + at * width, 0, width * sizeof(float));
  }
  for (int64_t at = first; at < end; ++at) {
    quantise(at, group, biased, width, to);
  }
}

// ---- filter -------------------------------------------------------------------------------------

// A group of rows with a group of columns.
//
// With g = s a + d and x = t b + e, a and b the integers, the product of g and x is s t (a b) plus
// d x + (g - d) e, of magnitude at most |d| |x| + (|g| + |d|) |e|.
void filter_group(
    const Lines& grad,
    int64_t row,
    const Lines& x,
    int64_t column,
    int64_t words,
    float margin,
    float least,
    uint64_t* hits,
    int64_t pitch
) {
  const int32_t* g = grad.word + row * words;
  const int32_t* from = x.word + column * words;
  Integers sum[kRows][kVectors] = {};
#pragma GCC unroll 1
  for (int64_t w = 0; w < words; ++w, g += kRows, from += kColumns) {
    Integers word[kVectors];
    FULLSPECTRUM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      word[v] = load(from + v * kWidth);
    }
    FULLSPECTRUM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FULLSPECTRUM_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = add_products(sum[r][v], word[v], g[r]);
      }
    }
  }
  FULLSPECTRUM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const float error = grad.error[row + r], norm = grad.norm[row + r];
    const float beside = error + margin * norm, all = error + norm;
    uint64_t bits = 0;
    FULLSPECTRUM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = column + v * kWidth;
      const Integers product = sum[r][v] - kBias * grad.sum[row + r];
      const Floats magnitude = __builtin_convertvector(product < 0 ? -product : product, Floats);
      const Floats bound = magnitude * load(x.scale + at) * grad.scale[row + r] +
                           (load(x.norm + at) * beside + load(x.error + at) * all);
      bits |= not_below(bound, least) << (v * kWidth);
    }
    hits[r * pitch] = bits;
  }
}

void filter(
    const Lines& grad,
    int64_t first,
    int64_t end,
    const Lines& x,
    int64_t groups,
    int64_t width,
    float margin,
    float least,
    uint64_t* hits
) {
  // what is left out of the bounds: roundings, and numbers too small for float32
  const float below = least * (1 - 0x1p-16f) - kTiny;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t row = first; row < end; row += kRows) {
      filter_group(
          grad,
          row,
          x,
          group * kColumns,
          width / kEntries,
          margin,
          below,
          hits + (row - first) * groups + group,
          groups
      );
    }
  }
}

int64_t list(const uint64_t* hits, int64_t groups, const unsigned char* skip, int32_t* column) {
  constexpr int kAtOnce = 4;  // written even if they are fewer: how many is not to be foretold
  int64_t count = 0;
  for (int64_t group = 0; group < groups; ++group) {
    uint64_t left = hits[group];
    const int64_t after = count + __builtin_popcountll(left);
    for (; count < after; count += kAtOnce) {
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        column[count + i] = static_cast<int32_t>(group * kColumns) + __builtin_ffsll(left) - 1;
        left &= left - 1;
      }
    }
    count = after;
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    column[kept] = column[i];
    kept += skip[column[i]] == 0;
  }
  return kept;
}

// ---- products in float32 ------------------------------------------------------------------------

constexpr int kAtOnce = 8;  // sums that do not wait for each other

void multiply_some(
    const float* grad, const float* x, int64_t width, const int32_t* column, float* out
) {
  const float* from[kAtOnce];
  Floats sum[kAtOnce] = {};
  FULLSPECTRUM_UNROLL
  for (int i = 0; i < kAtOnce; ++i) {
    from[i] = x + column[i] * width;
  }
  for (int64_t n = 0; n < width; n += kWidth) {
    const Floats g = load_once(grad + n);
    FULLSPECTRUM_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      sum[i] += g * load(from[i] + n);
    }
  }
  add_up_four<float>(sum, false, out);
  add_up_four<float>(sum + 4, false, out + 4);
}

void multiply(
    const float* grad,
    const float* x,
    int64_t width,
    const int32_t* column,
    int64_t count,
    float* out
) {
  for (; count >= kAtOnce; count -= kAtOnce, column += kAtOnce, out += kAtOnce) {
    multiply_some(grad, x, width, column, out);
  }
  if (count > 0) {
    int32_t padded[kAtOnce] = {};
    float products[kAtOnce];
    __builtin_memcpy(padded, column, count * sizeof *column);
    multiply_some(grad, x, width, padded, products);
    __builtin_memcpy(out, products, count * sizeof *out);
  }
}

}  // namespace

GradientKernels gradient_kernels() {
  return {{kRows, kColumns, kEntries}, pack, filter, list, multiply};
}

}  // namespace fullspectrum::FULLSPECTRUM_ISA
