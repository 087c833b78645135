#include "spectrum/gram_kernels.h"

#include "spectrum/vectors.h"

// Compiled once for each instruction set, so: no header with inline functions of external linkage.
// The intrinsics are only for counting bits; all other vectors are the compiler's own.
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

typedef double Pair __attribute__((vector_size(16)));
typedef double UnalignedPair __attribute__((vector_size(16), aligned(alignof(double)), may_alias));

Pair load_pair(const double* from) { return *reinterpret_cast<const UnalignedPair*>(from); }
void store_pair(double* to, Pair pair) { *reinterpret_cast<UnalignedPair*>(to) = pair; }

// The weights of entries: in double or single precision, or all one.
double weight_of(const double* value, int64_t p) { return value[p]; }
double weight_of(const float* value, int64_t p) { return static_cast<double>(value[p]); }
double weight_of(decltype(nullptr), int64_t) { return 1; }

// Where the padding of a row of L ends.
int64_t padded(int64_t count) { return (count + kGramPadding - 1) / kGramPadding * kGramPadding; }

// Makes a row of G a row of L.
template <typename T>
void finish_row(T* row, int64_t i) {
  row[i] /= 2;
  for (int64_t e = i + 1; e < padded(i + 1); ++e) {
    row[e] = 0;
  }
}

// ---- counting bits -----------------------------------------------------------------------------

// A tile of G: kTileRows nodes against kTileColumns * kLanes, a lane for each of the latter.
constexpr int kTileRows = 4;
constexpr int kTileColumns = 2;
typedef Words Tile[kTileRows][kTileColumns];
using CountTile = void (*)(
    const uint64_t* bits, int64_t words, int64_t row, const int64_t* i, int64_t j, Tile& shared
);

// Ones are counted in every byte, and the bytes summed before they can overflow.
void count_tile(
    const uint64_t* bits, int64_t words, int64_t row, const int64_t* i, int64_t j, Tile& shared
) {
  constexpr int64_t kBeforeOverflow = 31;
  for (int r = 0; r < kTileRows; ++r) {
    for (int c = 0; c < kTileColumns; ++c) {
      Words total = {};
      for (int64_t begin = 0; begin < words; begin += kBeforeOverflow) {
        const int64_t end = begin + kBeforeOverflow < words ? begin + kBeforeOverflow : words;
        Words bytes = {};
        for (int64_t w = begin; w < end; ++w) {
          Words x = load(bits + w * row + j + c * kLanes) & bits[w * row + i[r]];
          x -= (x >> 1) & 0x5555555555555555u;  // Warren, Hacker's Delight, 5-1
          x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
          bytes += (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
        }
        const Words pairs = (bytes & 0x00ff00ff00ff00ffu) + ((bytes >> 8) & 0x00ff00ff00ff00ffu);
        total += (pairs * 0x0001000100010001u) >> 48;
      }
      shared[r][c] = total;
    }
  }
}

#if defined(__AVX512F__)
__attribute__((target("avx512vpopcntdq"))) void count_tile_popcnt(
    const uint64_t* bits, int64_t words, int64_t row, const int64_t* i, int64_t j, Tile& shared
) {
  __m512i total[kTileRows][kTileColumns] = {};
  for (int64_t w = 0; w < words; ++w) {
    const uint64_t* word = bits + w * row;
    const __m512i x0 = _mm512_loadu_si512(word + j);
    const __m512i x1 = _mm512_loadu_si512(word + j + kLanes);
    _Pragma("GCC unroll 4") for (int r = 0; r < kTileRows; ++r) {
      const __m512i y = _mm512_set1_epi64(static_cast<int64_t>(word[i[r]]));
      total[r][0] = _mm512_add_epi64(total[r][0], _mm512_popcnt_epi64(_mm512_and_si512(x0, y)));
      total[r][1] = _mm512_add_epi64(total[r][1], _mm512_popcnt_epi64(_mm512_and_si512(x1, y)));
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    for (int c = 0; c < kTileColumns; ++c) {
      shared[r][c] = reinterpret_cast<Words>(total[r][c]);
    }
  }
}
CountTile best_count_tile() {
  return __builtin_cpu_supports("avx512vpopcntdq") ? count_tile_popcnt : count_tile;
}
#else
CountTile best_count_tile() { return count_tile; }
#endif

void bit_gram(
    const uint64_t* bits, int64_t words, int64_t row, int64_t size, int64_t stride, float* gram
) {
  const CountTile count_tile = best_count_tile();
  for (int64_t first = 0; first < size; first += kTileRows) {
    int64_t i[kTileRows];  // rows beyond the last are counted twice and not stored
    for (int r = 0; r < kTileRows; ++r) {
      i[r] = first + r < size ? first + r : size - 1;
    }
    const int64_t end = padded(i[kTileRows - 1] + 1);
    for (int64_t j = 0; j < end; j += kTileColumns * kLanes) {
      Tile shared;
      count_tile(bits, words, row, i, j, shared);
      for (int r = 0; r < kTileRows && first + r < size; ++r) {
        for (int c = 0; c < kTileColumns && j + c * kLanes < end; ++c) {
          *reinterpret_cast<UnalignedFloats*>(gram + i[r] * stride + j + c * kLanes) =
              __builtin_convertvector(shared[r][c], UnalignedFloats);
        }
      }
    }
    for (int r = 0; r < kTileRows && first + r < size; ++r) {
      finish_row(gram + i[r] * stride, i[r]);
    }
  }
}

// ---- sums of products --------------------------------------------------------------------------

// A strip of G: so many vectors of columns that their sums fit into the registers.
constexpr int kStripVectors = 8;
constexpr int64_t kStrip = kStripVectors * kLanes;

// row[:] = sum_p value[p] panel[index[p] - first, :] for kVectors vectors of columns, added to what
// is there unless first is 0.
template <int kVectors, typename Values>
void add_entries(
    const int32_t* index,
    Values value,
    int64_t begin,
    int64_t end,
    const double* panel,
    int64_t first,
    double* row
) {
  Doubles sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = first > 0 ? load(row + v * kLanes) : Doubles{};
  }
  for (int64_t p = begin; p < end; ++p) {
    const double* from = panel + (index[p] - first) * kStrip;
    const Doubles factor = Doubles{} + weight_of(value, p);
    for (int v = 0; v < kVectors; ++v) {
      sum[v] += factor * load(from + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store(row + v * kLanes, sum[v]);
  }
}

template <typename Values>
void add_to_row(
    int64_t vectors,
    const int32_t* index,
    Values value,
    int64_t begin,
    int64_t end,
    const double* panel,
    int64_t first,
    double* row
) {
  static_assert(kStripVectors == 8);
  using Add = void (*)(const int32_t*, Values, int64_t, int64_t, const double*, int64_t, double*);
  constexpr Add kAdd[] =
      {add_entries<1, Values>,
       add_entries<2, Values>,
       add_entries<3, Values>,
       add_entries<4, Values>,
       add_entries<5, Values>,
       add_entries<6, Values>,
       add_entries<7, Values>,
       add_entries<8, Values>};
  kAdd[vectors - 1](index, value, begin, end, panel, first, row);
}

// Some of A's columns at a time, and some of its rows: these as a dense, transposed panel, whose
// rows the entries of A then add up.
template <typename Values>
void sparse_gram_of(
    const int64_t* offset,
    const int32_t* index,
    Values value,
    int64_t size,
    int64_t length,
    int64_t stride,
    int64_t* part,
    double* panel,
    double* gram
) {
  constexpr int64_t kHeight = kGramPanel / kStrip;
  int64_t* begin = part;  // of each row's entries in the present columns
  int64_t* end = part + size;
  for (int64_t i = 0; i < size; ++i) {
    end[i] = offset[i];
  }
  for (int64_t first = 0; first < length; first += kHeight) {
    const int64_t height = smaller(length - first, kHeight);
    for (int64_t i = 0; i < size; ++i) {
      begin[i] = end[i];
      while (end[i] < offset[i + 1] && index[end[i]] < first + kHeight) {
        ++end[i];
      }
    }
    for (int64_t strip = 0; strip < size; strip += kStrip) {
      for (int64_t e = 0; e < height * kStrip; ++e) {
        panel[e] = 0;
      }
      for (int64_t i = strip; i < smaller(strip + kStrip, size); ++i) {
        for (int64_t p = begin[i]; p < end[i]; ++p) {
          panel[(index[p] - first) * kStrip + i - strip] = weight_of(value, p);
        }
      }
      for (int64_t i = strip; i < size; ++i) {
        const int64_t used = smaller(padded(i + 1) - strip, kStrip);
        double* row = gram + i * stride + strip;
        add_to_row(used / kLanes, index, value, begin[i], end[i], panel, first, row);
      }
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    finish_row(gram + i * stride, i);
  }
}

void sparse_gram(
    const int64_t* offset,
    const int32_t* index,
    const double* value,
    const float* single,
    int64_t size,
    int64_t length,
    int64_t stride,
    int64_t* part,
    double* panel,
    double* gram
) {
  if (value) {
    sparse_gram_of(offset, index, value, size, length, stride, part, panel, gram);
  } else if (single) {
    sparse_gram_of(offset, index, single, size, length, stride, part, panel, gram);
  } else {
    sparse_gram_of(offset, index, nullptr, size, length, stride, part, panel, gram);
  }
}

// ---- products with G ---------------------------------------------------------------------------

// The part of rows i, ..., i + kRows - 1 of L, and of the same columns of L^T.
template <int kRows, int kWidth, typename T>
void multiply_rows(const T* gram, int64_t stride, int64_t i, const double* x, double* y) {
  Doubles along[kRows][kWidth];
  Doubles total[kRows][kWidth] = {};
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kWidth; ++t) {
      along[r][t] = Doubles{} + x[t * stride + i + r];
    }
  }
  const T* row = gram + i * stride;
  const int64_t end = padded(i + kRows);
  for (int64_t e = 0; e < end; e += kLanes) {
    Doubles from[kWidth];
    Doubles to[kWidth];
    for (int t = 0; t < kWidth; ++t) {
      from[t] = load(x + t * stride + e);
      to[t] = load(y + t * stride + e);
    }
    for (int r = 0; r < kRows; ++r) {
      const Doubles entries = load(row + r * stride + e);
      for (int t = 0; t < kWidth; ++t) {
        to[t] += entries * along[r][t];
        total[r][t] += entries * from[t];
      }
    }
    for (int t = 0; t < kWidth; ++t) {
      store(y + t * stride + e, to[t]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kWidth; ++t) {
      y[t * stride + i + r] += sum(total[r][t]);
    }
  }
}

template <int kWidth, typename T>
void multiply_width(const T* gram, int64_t size, int64_t stride, const double* x, double* y) {
  constexpr int kRows = kLanes == 8 ? 4 : 2;  // as many as the registers hold
  int64_t i = 0;
  for (; i + kRows <= size; i += kRows) {
    multiply_rows<kRows, kWidth>(gram, stride, i, x, y);
  }
  for (; i < size; ++i) {
    multiply_rows<1, kWidth>(gram, stride, i, x, y);
  }
}

template <typename T>
void multiply(
    const T* gram, int64_t size, int64_t stride, const double* x, int64_t width, double* y
) {
  if (width == 2) {
    multiply_width<2>(gram, size, stride, x, y);
  } else {
    multiply_width<1>(gram, size, stride, x, y);
  }
}

template <typename Values>
void multiply_lists_of(
    const int64_t* offset,
    const int32_t* index,
    Values value,
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
      even += weight_of(value, p) * load_pair(x + 2 * index[p]);
      odd += weight_of(value, p + 1) * load_pair(x + 2 * index[p + 1]);
    }
    if (p < end) {
      even += weight_of(value, p) * load_pair(x + 2 * index[p]);
    }
    const Pair image = even + odd;
    for (p = offset[list]; p < end; ++p) {
      double* to = y + 2 * index[p];
      store_pair(to, load_pair(to) + weight_of(value, p) * image);
    }
  }
}

void multiply_lists(
    const int64_t* offset,
    const int32_t* index,
    const double* value,
    const float* single,
    int64_t lists,
    const double* x,
    double* y
) {
  if (value) {
    multiply_lists_of(offset, index, value, lists, x, y);
  } else if (single) {
    multiply_lists_of(offset, index, single, lists, x, y);
  } else {
    multiply_lists_of(offset, index, nullptr, lists, x, y);
  }
}

// ---- a basis of vectors ------------------------------------------------------------------------

template <int kRows, int kWidth>
void inner_product_rows(
    const double* matrix, int64_t stride, const double* x, double* y, int64_t y_stride
) {
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

template <int kWidth>
void inner_products_width(
    const double* matrix, int64_t rows, int64_t stride, const double* x, double* y, int64_t y_stride
) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    inner_product_rows<4, kWidth>(matrix + i * stride, stride, x, y + i, y_stride);
  }
  for (; i < rows; ++i) {
    inner_product_rows<1, kWidth>(matrix + i * stride, stride, x, y + i, y_stride);
  }
}

void inner_products(
    const double* matrix,
    int64_t rows,
    int64_t stride,
    const double* x,
    int64_t width,
    double* y,
    int64_t y_stride
) {
  if (width == 2) {
    inner_products_width<2>(matrix, rows, stride, x, y, y_stride);
  } else {
    inner_products_width<1>(matrix, rows, stride, x, y, y_stride);
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

}  // namespace

GramKernels gram_kernels() {
  return {
      bit_gram,
      sparse_gram,
      multiply<float>,
      multiply<double>,
      multiply_lists,
      inner_products,
      combine
  };
}

}  // namespace fullspectrum::FULLSPECTRUM_ISA
