#include "masked_matmul/panel_kernels.h"

// Compiled once for each instruction set, so: no header with inline functions of external linkage.
#include "common/vectors.h"

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

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
    prefetch<kVectors * kVectorBytes>(strip);
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
