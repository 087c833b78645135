#include "spectrum/gram_kernels.h"

// Compiled once for each instruction set, so: no header with inline functions. The intrinsics are
// only used for counting bits; all other vectors are the compiler's own.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif
constexpr double kEpsilon = 2.220446049250313e-16;

typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef double UnalignedDoubles
    __attribute__((vector_size(8 * kLanes), aligned(alignof(double)), may_alias));
typedef float UnalignedFloats
    __attribute__((vector_size(4 * kLanes), aligned(alignof(float)), may_alias));
typedef double Pair __attribute__((vector_size(16)));
typedef double UnalignedPair __attribute__((vector_size(16), aligned(alignof(double)), may_alias));

Doubles load(const double* from) { return *reinterpret_cast<const UnalignedDoubles*>(from); }
Doubles load(const float* from) {
  return __builtin_convertvector(*reinterpret_cast<const UnalignedFloats*>(from), Doubles);
}
void store(double* to, Doubles vector) { *reinterpret_cast<UnalignedDoubles*>(to) = vector; }
Pair load_pair(const double* from) { return *reinterpret_cast<const UnalignedPair*>(from); }
void store_pair(double* to, Pair pair) { *reinterpret_cast<UnalignedPair*>(to) = pair; }

double sum(Doubles vector) {
  double result = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    result += vector[lane];
  }
  return result;
}

double absolute(double x) { return __builtin_fabs(x); }
double larger(double a, double b) { return a > b ? a : b; }

// ---- counting bits -----------------------------------------------------------------------------

// Rows i, ..., i + 3 against j and j + 1; rows beyond the last are computed twice and not stored.
constexpr int64_t kTileRows = 4;
constexpr int64_t kTileColumns = 2;

struct Tile {
  const uint64_t* rows[kTileRows];
  const uint64_t* columns[kTileColumns];
};

using CountTile = void (*)(const Tile& tile, int64_t words, int64_t* count);

#if !defined(__AVX2__)
void count_tile(const Tile& tile, int64_t words, int64_t* count) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t c = 0; c < kTileColumns; ++c) {
      int64_t total = 0;
      for (int64_t w = 0; w < words; ++w) {
        uint64_t x = tile.rows[r][w] & tile.columns[c][w];
        x -= (x >> 1) & 0x5555555555555555u;  // Warren, Hacker's Delight, 5-1
        x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
        x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
        total += static_cast<int64_t>((x * 0x0101010101010101u) >> 56);
      }
      count[r * kTileColumns + c] = total;
    }
  }
}
CountTile best_count_tile() { return count_tile; }
#else
// Four bits at a time by table (Mula, Kurz, Lemire: Faster Population Counts Using AVX2
// Instructions, The Computer Journal 61, 2018).
void count_tile(const Tile& tile, int64_t words, int64_t* count) {
  const __m256i table = _mm256_setr_epi8(
      0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4
  );
  const __m256i low = _mm256_set1_epi8(15);
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t c = 0; c < kTileColumns; ++c) {
      __m256i total = _mm256_setzero_si256();
      for (int64_t w = 0; w < words; w += 4) {
        const __m256i x = _mm256_and_si256(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.rows[r] + w)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.columns[c] + w))
        );
        const __m256i bytes = _mm256_add_epi8(
            _mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
            _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low))
        );
        total = _mm256_add_epi64(total, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
      }
      alignas(32) int64_t lane[4];
      _mm256_store_si256(reinterpret_cast<__m256i*>(lane), total);
      count[r * kTileColumns + c] = lane[0] + lane[1] + lane[2] + lane[3];
    }
  }
}
#if defined(__AVX512F__)
__attribute__((target("avx512vpopcntdq"))) void count_tile_popcnt(
    const Tile& tile, int64_t words, int64_t* count
) {
  __m512i total[kTileRows][kTileColumns];
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t c = 0; c < kTileColumns; ++c) {
      total[r][c] = _mm512_setzero_si512();
    }
  }
  for (int64_t w = 0; w < words; w += 8) {
    const __m512i x0 = _mm512_loadu_si512(tile.columns[0] + w);
    const __m512i x1 = _mm512_loadu_si512(tile.columns[1] + w);
    _Pragma("GCC unroll 4") for (int64_t r = 0; r < kTileRows; ++r) {
      const __m512i y = _mm512_loadu_si512(tile.rows[r] + w);
      total[r][0] = _mm512_add_epi64(total[r][0], _mm512_popcnt_epi64(_mm512_and_si512(x0, y)));
      total[r][1] = _mm512_add_epi64(total[r][1], _mm512_popcnt_epi64(_mm512_and_si512(x1, y)));
    }
  }
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t c = 0; c < kTileColumns; ++c) {
      int64_t shared = 0;
      for (int lane = 0; lane < 8; ++lane) {
        shared += total[r][c][lane];
      }
      count[r * kTileColumns + c] = shared;
    }
  }
}
CountTile best_count_tile() {
  return __builtin_cpu_supports("avx512vpopcntdq") ? count_tile_popcnt : count_tile;
}
#else
CountTile best_count_tile() { return count_tile; }
#endif
#endif

void bit_gram(const uint64_t* bits, int64_t words, int64_t size, int64_t stride, float* gram) {
  const CountTile count_tile = best_count_tile();
  for (int64_t i = 0; i < size; i += kTileRows) {
    Tile tile;
    for (int64_t r = 0; r < kTileRows; ++r) {
      tile.rows[r] = bits + (i + r < size ? i + r : size - 1) * words;
    }
    for (int64_t j = i; j < size; j += kTileColumns) {
      for (int64_t c = 0; c < kTileColumns; ++c) {
        tile.columns[c] = bits + (j + c < size ? j + c : size - 1) * words;
      }
      int64_t count[kTileRows * kTileColumns];
      count_tile(tile, words, count);
      for (int64_t r = 0; r < kTileRows && i + r < size; ++r) {
        for (int64_t c = 0; c < kTileColumns && j + c < size; ++c) {
          const float shared = static_cast<float>(count[r * kTileColumns + c]);
          gram[(i + r) * stride + j + c] = shared;
          gram[(j + c) * stride + i + r] = shared;
        }
      }
    }
  }
}

// ---- sums of products --------------------------------------------------------------------------

void sparse_gram(
    const int64_t* offset,
    const int32_t* index,
    const double* value,
    int64_t lists,
    int64_t size,
    int64_t stride,
    double* gram
) {
  for (int64_t list = 0; list < lists; ++list) {
    for (int64_t p = offset[list]; p < offset[list + 1]; ++p) {
      double* row = gram + index[p] * stride;
      if (value) {
        const double factor = value[p];
        for (int64_t q = offset[list]; q <= p; ++q) {
          row[index[q]] += factor * value[q];
        }
      } else {
        for (int64_t q = offset[list]; q <= p; ++q) {
          row[index[q]] += 1;
        }
      }
    }
  }
  constexpr int64_t kTile = 16;  // transposes stay within the L1 cache
  for (int64_t i = 0; i < size; i += kTile) {
    for (int64_t j = 0; j <= i; j += kTile) {
      for (int64_t r = i; r < i + kTile && r < size; ++r) {
        for (int64_t c = j; c < j + kTile && c < r; ++c) {
          gram[c * stride + r] = gram[r * stride + c];
        }
      }
    }
  }
}

template <int kRows, int kWidth, typename T>
void multiply_rows(const T* matrix, int64_t stride, const double* x, double* y, int64_t y_stride) {
  Doubles total[kRows][kWidth] = {};
  for (int64_t e = 0; e < stride; e += kLanes) {
    Doubles from[kWidth];
    for (int t = 0; t < kWidth; ++t) {
      from[t] = load(x + t * stride + e);
    }
    for (int r = 0; r < kRows; ++r) {
      const Doubles entries = load(matrix + r * stride + e);
      for (int t = 0; t < kWidth; ++t) {
        total[r][t] += entries * from[t];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kWidth; ++t) {
      y[t * y_stride + r] = sum(total[r][t]);
    }
  }
}

template <int kWidth, typename T>
void multiply_width(
    const T* matrix, int64_t rows, int64_t stride, const double* x, double* y, int64_t y_stride
) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    multiply_rows<4, kWidth>(matrix + i * stride, stride, x, y + i, y_stride);
  }
  for (; i < rows; ++i) {
    multiply_rows<1, kWidth>(matrix + i * stride, stride, x, y + i, y_stride);
  }
}

template <typename T>
void multiply(
    const T* matrix,
    int64_t rows,
    int64_t stride,
    const double* x,
    int64_t width,
    double* y,
    int64_t y_stride
) {
  if (width == 2) {
    multiply_width<2>(matrix, rows, stride, x, y, y_stride);
  } else {
    multiply_width<1>(matrix, rows, stride, x, y, y_stride);
  }
}

template <int kRows, int kWidth>
void combine_rows(
    const double* matrix, int64_t stride, const double* weight, int64_t weight_stride, double* y
) {
  Doubles factor[kRows][kWidth];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kWidth; ++t) {
      factor[r][t] = Doubles{} + weight[t * weight_stride + r];
    }
  }
  for (int64_t e = 0; e < stride; e += kLanes) {
    Doubles total[kWidth];
    for (int t = 0; t < kWidth; ++t) {
      total[t] = load(y + t * stride + e);
    }
    for (int r = 0; r < kRows; ++r) {
      const Doubles entries = load(matrix + r * stride + e);
      for (int t = 0; t < kWidth; ++t) {
        total[t] += factor[r][t] * entries;
      }
    }
    for (int t = 0; t < kWidth; ++t) {
      store(y + t * stride + e, total[t]);
    }
  }
}

template <int kWidth>
void combine_width(
    const double* matrix,
    int64_t rows,
    int64_t stride,
    const double* weight,
    int64_t weight_stride,
    double* y
) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    combine_rows<4, kWidth>(matrix + i * stride, stride, weight + i, weight_stride, y);
  }
  for (; i < rows; ++i) {
    combine_rows<1, kWidth>(matrix + i * stride, stride, weight + i, weight_stride, y);
  }
}

void combine(
    const double* matrix,
    int64_t rows,
    int64_t stride,
    const double* weight,
    int64_t weight_stride,
    int64_t width,
    double* y
) {
  if (width == 2) {
    combine_width<2>(matrix, rows, stride, weight, weight_stride, y);
  } else {
    combine_width<1>(matrix, rows, stride, weight, weight_stride, y);
  }
}

template <bool kWeighted>
void multiply_some_lists(
    const int64_t* offset,
    const int32_t* index,
    const double* value,
    int64_t lists,
    const double* x,
    double* y
) {
  for (int64_t list = 0; list < lists; ++list) {
    const int64_t end = offset[list + 1];
    Pair even = {};
    Pair odd = {};
    int64_t p = offset[list];
    for (; p + 2 <= end; p += 2) {
      if (kWeighted) {
        even += value[p] * load_pair(x + 2 * index[p]);
        odd += value[p + 1] * load_pair(x + 2 * index[p + 1]);
      } else {
        even += load_pair(x + 2 * index[p]);
        odd += load_pair(x + 2 * index[p + 1]);
      }
    }
    if (p < end) {
      even += (kWeighted ? value[p] : 1.0) * load_pair(x + 2 * index[p]);
    }
    const Pair image = even + odd;
    for (p = offset[list]; p < end; ++p) {
      double* to = y + 2 * index[p];
      store_pair(to, load_pair(to) + (kWeighted ? value[p] * image : image));
    }
  }
}

void multiply_lists(
    const int64_t* offset,
    const int32_t* index,
    const double* value,
    int64_t lists,
    const double* x,
    double* y
) {
  if (value) {
    multiply_some_lists<true>(offset, index, value, lists, x, y);
  } else {
    multiply_some_lists<false>(offset, index, value, lists, x, y);
  }
}

// ---- small dense problems ----------------------------------------------------------------------

double dot(const double* x, const double* y, int64_t from, int64_t to) {
  Doubles total = {};
  for (int64_t e = from; e < to; e += kLanes) {
    total += load(x + e) * load(y + e);
  }
  return sum(total);
}

// The previous reflection, not yet applied, and the next one. All [stride].
struct Reflections {
  const double* v;  // H -= v w^T + w v^T
  const double* w;
  const double* next;
  double* image;  // += H next
};

// Rows row, ..., row + kRows - 1 of h: applies the previous reflection and multiplies with the next
// vector in one pass. H is symmetric, so its rows serve as columns and no sum runs along a vector.
template <int kRows>
void reflect_rows(double* h, int64_t row, int64_t stride, int64_t from, const Reflections& by) {
  Doubles v[kRows];
  Doubles w[kRows];
  Doubles next[kRows];
  for (int r = 0; r < kRows; ++r) {
    v[r] = Doubles{} + by.v[row + r];
    w[r] = Doubles{} + by.w[row + r];
    next[r] = Doubles{} + by.next[row + r];
  }
  for (int64_t e = from; e < stride; e += kLanes) {
    const Doubles ve = load(by.v + e);
    const Doubles we = load(by.w + e);
    Doubles image = load(by.image + e);
    for (int r = 0; r < kRows; ++r) {
      double* at = h + (row + r) * stride + e;
      const Doubles entries = load(at) - (v[r] * we + w[r] * ve);
      store(at, entries);
      image += next[r] * entries;
    }
    store(by.image + e, image);
  }
}

void tridiagonalise(
    double* h,
    int64_t size,
    int64_t stride,
    double* diagonal,
    double* off,
    double* factor,
    double* scratch
) {
  double* v = scratch;
  double* w = v + stride;
  double* next = w + stride;
  double* image = next + stride;
  for (int64_t e = 0; e < 4 * stride; ++e) {
    scratch[e] = 0;
  }
  for (int64_t j = 0; j < size; ++j) {
    double* row = h + j * stride;
    for (int64_t e = j / kGramPadding * kGramPadding; e < stride; ++e) {
      row[e] -= v[j] * w[e] + w[j] * v[e];
      next[e] = e > j && e < size ? row[e] : 0;
      image[e] = 0;
    }
    const int64_t first = j + 1;
    const int64_t from = first / kGramPadding * kGramPadding;
    diagonal[j] = row[j];
    off[j] = first < size ? row[first] : 0;
    factor[j] = 0;
    double tail = 0;
    if (first < size) {
      next[first] = 0;
      tail = dot(next, next, from, stride);
    }
    if (tail > 0) {
      const double head = row[first];
      const double square = head * head + tail;
      const double norm = __builtin_sqrt(square);
      off[j] = head > 0 ? -norm : norm;
      next[first] = head - off[j];
      factor[j] = 1 / (square - head * off[j]);
      row[first] = next[first];
    }
    const Reflections by{v, w, next, image};
    int64_t r = first;
    for (; r + 4 <= size; r += 4) {
      reflect_rows<4>(h, r, stride, from, by);
    }
    for (; r < size; ++r) {
      reflect_rows<1>(h, r, stride, from, by);
    }
    // w = f H v - f / 2 <f H v, v> v
    const double shift = factor[j] * factor[j] / 2 * dot(image, next, from, stride);
    for (int64_t e = from; e < stride; ++e) {
      v[e] = next[e];
      w[e] = e < first ? 0 : factor[j] * image[e] - shift * next[e];
    }
  }
}

// How many eigenvalues lie above each of kPoints points.
constexpr int kPoints = 16;
constexpr int kVectors = kPoints / kLanes;

void count_above(
    const double* diagonal,
    const double* off,
    int64_t size,
    double least,
    const double* point,
    double* count
) {
  Doubles x[kVectors];
  Doubles pivot[kVectors];
  Doubles above[kVectors] = {};
  const Doubles zero = {};
  const Doubles one = zero + 1.0;
  const Doubles tiny = zero - least;
  for (int v = 0; v < kVectors; ++v) {
    x[v] = load(point + v * kLanes);
    pivot[v] = one;
  }
  double square = 0;  // of the entry beside the diagonal
  for (int64_t i = 0; i < size; square = off[i] * off[i], ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const Doubles next = diagonal[i] - x[v] - square / pivot[v];
      const Doubles size_of = next < zero ? -next : next;
      pivot[v] = size_of < least ? tiny : next;  // a pivot of zero counts as negative
      above[v] += pivot[v] > zero ? one : zero;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store(count + v * kLanes, above[v]);
  }
}

void leading_eigenvalues(
    const double* diagonal, const double* off, int64_t size, int64_t wanted, double* value
) {
  // Gershgorin's discs
  double top = diagonal[0] + absolute(off[0]);
  double bottom = diagonal[0] - absolute(off[0]);
  for (int64_t i = 1; i < size; ++i) {
    const double radius = absolute(off[i - 1]) + (i + 1 < size ? absolute(off[i]) : 0);
    top = larger(top, diagonal[i] + radius);
    bottom = -larger(-bottom, radius - diagonal[i]);
  }
  const double norm = larger(absolute(top), absolute(bottom));
  const double resolution = kEpsilon * norm;
  const double least = kEpsilon * resolution + 1e-300;
  for (int64_t i = 0; i < wanted; ++i) {
    double low = bottom - resolution;
    double high = i > 0 ? value[i - 1] + resolution : top + resolution;
    constexpr int kMaxPasses = 40;
    for (int pass = 0; pass < kMaxPasses && high - low > resolution; ++pass) {
      double point[kPoints];
      double count[kPoints];
      for (int v = 0; v < kPoints; ++v) {
        point[v] = low + (high - low) * ((v + 1) / (kPoints + 1.0));
      }
      count_above(diagonal, off, size, least, point, count);
      int inside = 0;  // points below the eigenvalue
      while (inside < kPoints && count[inside] > i) {
        ++inside;
      }
      const double next_low = inside > 0 ? point[inside - 1] : low;
      high = inside < kPoints ? point[inside] : high;
      low = next_low;
    }
    value[i] = low + (high - low) / 2;
  }
}

}  // namespace

GramKernels gram_kernels() {
  return {
      bit_gram,
      sparse_gram,
      multiply<float>,
      multiply<double>,
      combine,
      multiply_lists,
      tridiagonalise,
      leading_eigenvalues
  };
}

}  // namespace fullspectrum::FULLSPECTRUM_ISA
