#include "masked_matmul/panel_kernels.h"

// Compiled once for each instruction set, so: no other header. The vectors are the compiler's own
// (GCC and Clang), as wide as the instruction set's registers.

#define FULLSPECTRUM_UNROLL _Pragma("GCC unroll 16")

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  // The same for any address.
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <typename T>
using vector_t = typename Vector<T>::type;

template <typename T>
vector_t<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(from);
}
template <typename T>
void store(T* to, vector_t<T> vector) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(to) = vector;
}

// Lanes<0, 1, ..., n - 1>, to write shuffles for every register width at once.
template <int... lane>
struct Lanes {};
template <int n, int... lane>
struct CountLanes : CountLanes<n - 1, n - 1, lane...> {};
template <int... lane>
struct CountLanes<0, lane...> {
  using type = Lanes<lane...>;
};
template <typename T>
using lanes_t = typename CountLanes<kLanes<T>>::type;

// No branches and one integer type, so that the compiler makes vectors of it.
template <typename index_t>
bool inside(const index_t* col, int64_t nnz, index_t last) {
  index_t outside = 0;
  for (int64_t p = 0; p < nnz; ++p) {
    outside |= static_cast<index_t>(col[p] < 0) | static_cast<index_t>(col[p] > last);
  }
  return outside == 0;
}

// ---- packing: square transposes ----------------------------------------------------------------

// a0 b0 a1 b1 ... of the lower (kUpper = 0) or upper (1) halves of a and b.
template <int kUpper, typename T, int... lane>
vector_t<T> interleave(vector_t<T> a, vector_t<T> b, Lanes<lane...>) {
  constexpr int n = kLanes<T>;
  return __builtin_shufflevector(a, b, (lane % 2 * n + kUpper * n / 2 + lane / 2)...);
}

// Transposes the square matrix whose rows are the vectors r: log2(n) perfect shuffles.
template <typename T>
void transpose(vector_t<T>* r) {
  constexpr int n = kLanes<T>;
  for (int stage = 1; stage < n; stage *= 2) {
    vector_t<T> t[n];
    FULLSPECTRUM_UNROLL
    for (int i = 0; i < n / 2; ++i) {
      t[2 * i] = interleave<0, T>(r[i], r[i + n / 2], lanes_t<T>{});
      t[2 * i + 1] = interleave<1, T>(r[i], r[i + n / 2], lanes_t<T>{});
    }
    FULLSPECTRUM_UNROLL
    for (int i = 0; i < n; ++i) {
      r[i] = t[i];
    }
  }
}

template <typename T>
void pack(const T* rows, int64_t stride, int64_t batch, int64_t features, int64_t width, T* panel) {
  constexpr int n = kLanes<T>;
  for (int64_t b = 0; b < width; b += n) {
    const int64_t present = batch - b < n ? batch - b : n;  // of these n rows; may be negative
    const T* from = rows + (present > 0 ? b : 0) * stride;
    int64_t f = 0;
    for (; present == n && f + n <= features; f += n) {
      vector_t<T> r[n];
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < n; ++i) {
        r[i] = load(from + i * stride + f);
      }
      transpose<T>(r);
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < n; ++i) {
        store(panel + (f + i) * width + b, r[i]);
      }
    }
    for (; f < features; ++f) {
      for (int64_t i = 0; i < n; ++i) {
        panel[f * width + b + i] = i < present ? from[i * stride + f] : T{0};
      }
    }
  }
}

template <typename T>
void unpack(
    const T* panel, int64_t width, int64_t batch, int64_t features, int64_t stride, T* rows
) {
  constexpr int n = kLanes<T>;
  for (int64_t b = 0; b < batch; b += n) {
    const int64_t present = batch - b < n ? batch - b : n;
    T* to = rows + b * stride;
    int64_t f = 0;
    for (; f + n <= features; f += n) {
      vector_t<T> r[n];
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < n; ++i) {
        r[i] = load(panel + (f + i) * width + b);
      }
      transpose<T>(r);
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < n; ++i) {
        if (i < present) {
          store(to + i * stride + f, r[i]);
        }
      }
    }
    for (; f < features; ++f) {
      for (int64_t i = 0; i < present; ++i) {
        to[i * stride + f] = panel[f * width + b + i];
      }
    }
  }
}

// ---- the sparse products -----------------------------------------------------------------------

// Strips of x come in the order of the column indices, which no hardware prefetcher foresees.
constexpr int kPrefetchAhead = 4;

template <int kVectors, typename T, typename index_t>
void prefetch_strip(const T* x, int64_t width, const index_t* col, int64_t p, int64_t end) {
  if (p + kPrefetchAhead < end) {
    const T* strip = x + static_cast<int64_t>(col[p + kPrefetchAhead]) * width;
    for (int byte = 0; byte < kVectors * kVectorBytes; byte += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(strip) + byte);
    }
  }
}

// One strip of kVectors registers. Two nonzeros at a time go to two sets of sums, since one set of
// few registers would wait for the latency of its additions.
template <int kVectors, typename T, typename index_t>
void multiply_strip(
    const index_t* crow,
    const index_t* col,
    const T* value,
    const T* bias,
    const T* x,
    int64_t rows,
    int64_t width,
    T* y
) {
  constexpr int n = kLanes<T>;
  constexpr int kSets = kVectors <= 4 ? 2 : 1;
  const int64_t end = crow[rows];
  for (int64_t r = 0; r < rows; ++r) {
    vector_t<T> sum[kSets][kVectors];
    FULLSPECTRUM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      sum[0][v] = vector_t<T>{} + (bias != nullptr ? bias[r] : T{0});
      sum[kSets - 1][v] = kSets > 1 ? vector_t<T>{} : sum[0][v];
    }
    int64_t p = crow[r];
    const int64_t last = crow[r + 1];
    for (; p + kSets <= last; p += kSets) {
      FULLSPECTRUM_UNROLL
      for (int s = 0; s < kSets; ++s) {
        prefetch_strip<kVectors>(x, width, col, p + s, end);
        const T* strip = x + static_cast<int64_t>(col[p + s]) * width;
        const T weight = value[p + s];
        FULLSPECTRUM_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          sum[s][v] += weight * load(strip + v * n);
        }
      }
    }
    if (kSets > 1 && p < last) {
      const T* strip = x + static_cast<int64_t>(col[p]) * width;
      FULLSPECTRUM_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sum[0][v] += value[p] * load(strip + v * n);
      }
    }
    FULLSPECTRUM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      store(y + r * width + v * n, kSets > 1 ? sum[0][v] + sum[kSets - 1][v] : sum[0][v]);
    }
  }
}

// Adds neighbours: a and b, each kBlocks blocks of partial sums, become one vector of 2 kBlocks
// blocks half as long, a's before b's.
template <int kBlocks, typename T, int... lane>
vector_t<T> fold(vector_t<T> a, vector_t<T> b, Lanes<lane...>) {
  constexpr int n = kLanes<T>;
  constexpr int size = n / kBlocks;
  constexpr int half = size / 2;
  // lane / half is the new block: (vector, block) = (new / kBlocks, new % kBlocks)
  return __builtin_shufflevector(
             a, b, (lane / half / kBlocks * n + lane / half % kBlocks * size + lane % half)...
         ) +
         __builtin_shufflevector(
             a,
             b,
             (lane / half / kBlocks * n + lane / half % kBlocks * size + half + lane % half)...
         );
}

template <int kDistance, typename T, int... lane>
vector_t<T> add_across(vector_t<T> a, Lanes<lane...>) {
  return a + __builtin_shufflevector(a, a, (lane ^ kDistance)...);
}

// out[q] (= or +=) the sum of the lanes of t[q], q < 4.
template <typename T>
void add_up_four(const vector_t<T>* t, bool accumulate, T* out) {
  constexpr int n = kLanes<T>;
  vector_t<T> first = fold<1, T>(t[0], t[1], lanes_t<T>{});
  vector_t<T> second = fold<1, T>(t[2], t[3], lanes_t<T>{});
  T sums[4];
  if constexpr (n == 2) {
    store(sums, first);
    store(sums + 2, second);
  } else {
    constexpr int block = n / 4;
    vector_t<T> all = fold<2, T>(first, second, lanes_t<T>{});
    if constexpr (block >= 4) {
      all = add_across<2, T>(all, lanes_t<T>{});
    }
    if constexpr (block >= 2) {
      all = add_across<1, T>(all, lanes_t<T>{});
    }
    auto four = __builtin_shufflevector(all, all, 0, block, 2 * block, 3 * block);
    __builtin_memcpy(sums, &four, sizeof(sums));
  }
  FULLSPECTRUM_UNROLL
  for (int q = 0; q < 4; ++q) {
    out[q] = accumulate ? out[q] + sums[q] : sums[q];
  }
}

template <int kVectors, typename T, typename index_t>
vector_t<T> products(const vector_t<T>* grad, const T* x, int64_t width, index_t col) {
  constexpr int n = kLanes<T>;
  const T* strip = x + static_cast<int64_t>(col) * width;
  vector_t<T> sum = grad[0] * load(strip);
  FULLSPECTRUM_UNROLL
  for (int v = 1; v < kVectors; ++v) {
    sum += grad[v] * load(strip + v * n);
  }
  return sum;
}

// One strip of kVectors registers, four nonzeros at a time.
template <int kVectors, typename T, typename index_t>
void sample_strip(
    const index_t* crow,
    const index_t* col,
    const T* grad,
    const T* x,
    int64_t rows,
    int64_t width,
    bool accumulate,
    T* out
) {
  constexpr int n = kLanes<T>;
  const int64_t end = crow[rows];
  for (int64_t r = 0; r < rows; ++r) {
    vector_t<T> g[kVectors];
    FULLSPECTRUM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      g[v] = load(grad + r * width + v * n);
    }
    int64_t p = crow[r];
    const int64_t last = crow[r + 1];
    for (; p + 4 <= last; p += 4) {
      vector_t<T> t[4];
      FULLSPECTRUM_UNROLL
      for (int q = 0; q < 4; ++q) {
        prefetch_strip<kVectors>(x, width, col, p + q, end);
        t[q] = products<kVectors>(g, x, width, col[p + q]);
      }
      add_up_four<T>(t, accumulate, out + p);
    }
    if (p < last) {
      vector_t<T> t[4] = {};
      T sums[4];
      for (int q = 0; q < last - p; ++q) {
        t[q] = products<kVectors>(g, x, width, col[p + q]);
      }
      add_up_four<T>(t, false, sums);
      for (int q = 0; q < last - p; ++q) {
        out[p + q] = accumulate ? out[p + q] + sums[q] : sums[q];
      }
    }
  }
}

// Strips of more than eight registers would not leave room for anything else in sixteen.
constexpr int kMaxVectors = 8;

template <typename T, typename index_t>
void multiply(
    const index_t* crow,
    const index_t* col,
    const T* value,
    const T* bias,
    const T* x,
    int64_t rows,
    int64_t width,
    T* y
) {
  const int64_t vectors = width / kLanes<T>;
  for (int64_t v = 0; v < vectors; v += kMaxVectors) {
    const int64_t at = v * kLanes<T>;
    switch (vectors) {
      case 1:
        multiply_strip<1>(crow, col, value, bias, x + at, rows, width, y + at);
        break;
      case 2:
        multiply_strip<2>(crow, col, value, bias, x + at, rows, width, y + at);
        break;
      case 4:
        multiply_strip<4>(crow, col, value, bias, x + at, rows, width, y + at);
        break;
      default:
        multiply_strip<8>(crow, col, value, bias, x + at, rows, width, y + at);
    }
  }
}

template <typename T, typename index_t>
void sample(
    const index_t* crow,
    const index_t* col,
    const T* grad,
    const T* x,
    int64_t rows,
    int64_t width,
    bool accumulate,
    T* out
) {
  const int64_t vectors = width / kLanes<T>;
  for (int64_t v = 0; v < vectors; v += kMaxVectors) {
    const int64_t at = v * kLanes<T>;
    const bool add = accumulate || v > 0;
    switch (vectors) {
      case 1:
        sample_strip<1>(crow, col, grad + at, x + at, rows, width, add, out);
        break;
      case 2:
        sample_strip<2>(crow, col, grad + at, x + at, rows, width, add, out);
        break;
      case 4:
        sample_strip<4>(crow, col, grad + at, x + at, rows, width, add, out);
        break;
      default:
        sample_strip<8>(crow, col, grad + at, x + at, rows, width, add, out);
    }
  }
}

}  // namespace

template <typename scalar_t, typename index_t>
PanelKernels<scalar_t, index_t> panel_kernels() {
  return {inside<index_t>, pack<scalar_t>, unpack<scalar_t>, multiply<scalar_t, index_t>, sample<scalar_t, index_t>};
}

template PanelKernels<float, int32_t> panel_kernels();
template PanelKernels<float, int64_t> panel_kernels();
template PanelKernels<double, int32_t> panel_kernels();
template PanelKernels<double, int64_t> panel_kernels();

}  // namespace fullspectrum::FULLSPECTRUM_ISA
