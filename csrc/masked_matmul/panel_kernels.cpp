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

template <typename storage_t>
compute_t<storage_t> number(storage_t stored) {
  if constexpr (__is_same(storage_t, compute_t<storage_t>)) {
    return stored;
  } else {
    storage_t several[kLanes<float>] = {stored};
    return load_floats(several)[0];
  }
}

template <typename storage_t>
storage_t stored(compute_t<storage_t> number) {
  if constexpr (__is_same(storage_t, compute_t<storage_t>)) {
    return number;
  } else {
    storage_t several[kLanes<float>];
    store_floats(several, vector_t<float>{} + number);
    return several[0];
  }
}

// ---- packing: square transposes ----------------------------------------------------------------

// The features are taken a vector at a time, the last vector overlapping the one before.
template <typename storage_t>
void pack(
    const storage_t* rows,
    int64_t stride,
    int64_t batch,
    int64_t features,
    int64_t width,
    compute_t<storage_t>* panel
) {
  using T = compute_t<storage_t>;
  constexpr int n = kLanes<T>;
  for (int64_t b = 0; b < width; b += n) {
    const int64_t present = batch - b < n ? batch - b : n;  // of these n rows; may be negative
    const storage_t* from = rows + (present > 0 ? b : 0) * stride;
    for (int64_t at = 0; features >= n && at < features; at += n) {
      const int64_t f = at + n <= features ? at : features - n;
      vector_t<T> r[n];
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < n; ++i) {
        r[i] = i < present ? load_computed(from + i * stride + f) : vector_t<T>{};
      }
      transpose<T>(r);
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < n; ++i) {
        store(panel + (f + i) * width + b, r[i]);
      }
    }
    for (int64_t f = 0; features < n && f < features; ++f) {
      for (int64_t i = 0; i < n; ++i) {
        panel[f * width + b + i] = i < present ? number(from[i * stride + f]) : T{0};
      }
    }
  }
}

template <typename storage_t>
void unpack(
    const compute_t<storage_t>* panel,
    int64_t width,
    int64_t batch,
    int64_t features,
    int64_t stride,
    storage_t* rows
) {
  using T = compute_t<storage_t>;
  constexpr int n = kLanes<T>;
  for (int64_t b = 0; b < batch; b += n) {
    const int64_t present = batch - b < n ? batch - b : n;
    storage_t* to = rows + b * stride;
    for (int64_t at = 0; features >= n && at < features; at += n) {
      const int64_t f = at + n <= features ? at : features - n;
      vector_t<T> r[n];
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < n; ++i) {
        r[i] = load(panel + (f + i) * width + b);
      }
      transpose<T>(r);
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < n; ++i) {
        if (i < present) {
          store_computed(to + i * stride + f, r[i]);
        }
      }
    }
    for (int64_t f = 0; features < n && f < features; ++f) {
      for (int64_t i = 0; i < present; ++i) {
        to[i * stride + f] = stored<storage_t>(panel[f * width + b + i]);
      }
    }
  }
}

// ---- the sparse products -----------------------------------------------------------------------
//
// The columns are taken in blocks whose strips of x stay in the first-level cache. next[r] is the
// first nonzero of row r that is still to come. A row whose columns do not rise is computed too,
// with its nonzeros in later blocks than need be.

// Strips of x come in the order of the column indices, which no hardware prefetcher foresees.
constexpr int kPrefetchAhead = 8;

template <int kVectors, typename T, typename index_t>
void prefetch_strip(const T* x, int64_t width, const index_t* col, int64_t p, int64_t end) {
  if (p + kPrefetchAhead < end) {
    prefetch<kVectors * kVectorBytes>(x + static_cast<int64_t>(col[p + kPrefetchAhead]) * width);
  }
}

template <int n>
struct Count {
  static constexpr int value = n;
};
template <bool on>
struct Flag {
  static constexpr bool value = on;
};

// How the rows of one block of columns are walked.
template <typename index_t>
struct ColumnBlock {
  index_t last;  // its last column
  bool first;    // nothing has been added to y yet
};

// Calls walk(ColumnBlock) for one block of columns after the other; once if there are no columns.
template <typename index_t, typename F>
void for_column_blocks(const SparseRows<index_t>& w, F&& walk) {
  int64_t begin = 0;
  do {
    const int64_t end = begin + w.block < w.cols ? begin + w.block : w.cols;
    walk(ColumnBlock<index_t>{static_cast<index_t>(end - 1), begin == 0});
    begin = end;
  } while (begin < w.cols);
}

// Between blocks of columns the walk along a row's nonzeros is broken off, and no hardware
// prefetcher foresees where it goes on.
constexpr int kRowsAhead = 2;
constexpr int kSegmentBytes = 128;

template <typename V>
void prefetch_segment(const V* nonzeros, int64_t at) {
  prefetch<kSegmentBytes>(nonzeros + at);
}

// A row's products are added up in parts of at most so many nonzeros, and the parts to each other:
// the error of a long sum grows with the length of what is added up one by one.
constexpr int64_t kLongestPart = 64;

// One strip of kVectors registers. Several nonzeros at a time go to as many sets of sums, eight
// registers in all, since fewer would wait for the latency of their additions.
template <int kVectors, bool kPrefetch, typename T, typename index_t>
void multiply_strip(
    const SparseRows<index_t>& w, const T* value, const T* bias, const T* x, int64_t width, T* y
) {
  constexpr int n = kLanes<T>;
  constexpr int kSets = 8 / kVectors;
  const index_t* col = w.col;
  const int64_t end = w.crow[w.rows];
  index_t next[kRowBlock];
  for (int64_t r = 0; r < w.rows; ++r) {
    next[r] = w.crow[r];
  }
  for_column_blocks(w, [&](ColumnBlock<index_t> block) {
    for (int64_t r = 0; r < w.rows; ++r) {
      if (!kPrefetch && r + kRowsAhead < w.rows) {
        prefetch_segment(col, next[r + kRowsAhead]);
        prefetch_segment(value, next[r + kRowsAhead]);
      }
      int64_t p = next[r];
      const int64_t last = w.crow[r + 1];
      bool first = block.first;
      do {
        const int64_t stop = last - p < kLongestPart ? last : p + kLongestPart;
        vector_t<T> sum[kSets][kVectors] = {};
        for (; p + kSets <= stop && col[p + kSets - 1] <= block.last; p += kSets) {
          FULLSPECTRUM_UNROLL
          for (int s = 0; s < kSets; ++s) {
            if constexpr (kPrefetch) {
              prefetch_strip<kVectors>(x, width, col, p + s, end);
            }
            const T* strip = x + static_cast<int64_t>(col[p + s]) * width;
            const T weight = value[p + s];
            FULLSPECTRUM_UNROLL
            for (int v = 0; v < kVectors; ++v) {
              sum[s][v] += weight * load(strip + v * n);
            }
          }
        }
        for (; kSets > 1 && p < stop && col[p] <= block.last; ++p) {
          const T* strip = x + static_cast<int64_t>(col[p]) * width;
          FULLSPECTRUM_UNROLL
          for (int v = 0; v < kVectors; ++v) {
            sum[0][v] += value[p] * load(strip + v * n);
          }
        }
        FULLSPECTRUM_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          for (int s = kSets / 2; s > 0; s /= 2) {
            for (int t = 0; t < s; ++t) {
              sum[t][v] += sum[t + s][v];
            }
          }
          T* to = y + r * width + v * n;
          store(
              to,
              sum[0][v] + (first ? vector_t<T>{} + (bias != nullptr ? bias[r] : T{0}) : load(to))
          );
        }
        first = false;
      } while (p < last && col[p] <= block.last);
      next[r] = static_cast<index_t>(p);
    }
  });
}

// The strips of x at kCount <= 4 nonzeros: y += value x, out (= or +=) <g, x>.
template <bool kMultiply, int kVectors, int kCount, typename T, typename index_t>
__attribute__((always_inline)) inline void sample_some(
    const index_t* col,
    const T* value,
    const T* x,
    int64_t width,
    const vector_t<T>* g,
    bool accumulate,
    vector_t<T>* y,
    T* out
) {
  constexpr int n = kLanes<T>;
  vector_t<T> t[4] = {};
  FULLSPECTRUM_UNROLL
  for (int q = 0; q < kCount; ++q) {
    const T* strip = x + static_cast<int64_t>(col[q]) * width;
    FULLSPECTRUM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const vector_t<T> loaded = kMultiply ? load_once(strip + v * n) : load(strip + v * n);
      if constexpr (kMultiply) {
        y[v] += value[q] * loaded;
      }
      t[q] = v == 0 ? g[v] * loaded : t[q] + g[v] * loaded;
    }
  }
  if constexpr (kCount == 4) {
    add_up_four<T>(t, accumulate, out);
  } else {
    T sums[4];
    add_up_four<T>(t, false, sums);
    FULLSPECTRUM_UNROLL
    for (int q = 0; q < kCount; ++q) {
      out[q] = accumulate ? out[q] + sums[q] : sums[q];
    }
  }
}

// One strip of kVectors registers, four nonzeros at a time: each load of x serves both products.
template <bool kMultiply, int kVectors, bool kPrefetch, typename T, typename index_t>
void sample_strip(
    const SparseRows<index_t>& w,
    const T* value,
    const T* x,
    const T* g,
    int64_t width,
    bool accumulate,
    T* y,
    T* out
) {
  constexpr int n = kLanes<T>;
  const index_t* col = w.col;
  const int64_t end = w.crow[w.rows];
  index_t next[kRowBlock];
  for (int64_t r = 0; r < w.rows; ++r) {
    next[r] = w.crow[r];
  }
  for_column_blocks(w, [&](ColumnBlock<index_t> block) {
    for (int64_t r = 0; r < w.rows; ++r) {
      if (!kPrefetch && r + kRowsAhead < w.rows) {
        prefetch_segment(col, next[r + kRowsAhead]);
        prefetch_segment(out, next[r + kRowsAhead]);
        if constexpr (kMultiply) {
          prefetch_segment(value, next[r + kRowsAhead]);
        }
      }
      vector_t<T> factor[kVectors];
      FULLSPECTRUM_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        factor[v] = load(g + r * width + v * n);
      }
      int64_t p = next[r];
      const int64_t last = w.crow[r + 1];
      bool first = block.first;
      do {
        const int64_t stop = last - p < kLongestPart ? last : p + kLongestPart;
        vector_t<T> sum[kVectors] = {};
        for (; p + 4 <= stop && col[p + 3] <= block.last; p += 4) {
          if constexpr (kPrefetch) {
            FULLSPECTRUM_UNROLL
            for (int q = 0; q < 4; ++q) {
              prefetch_strip<kVectors>(x, width, col, p + q, end);
            }
          }
          sample_some<kMultiply, kVectors, 4>(
              col + p, value + p, x, width, factor, accumulate, sum, out + p
          );
        }
        int rest = 0;
        while (rest < 3 && p + rest < stop && col[p + rest] <= block.last) {
          ++rest;
        }
        const auto some = [&](auto count) {
          sample_some<kMultiply, kVectors, decltype(count)::value>(
              col + p, value + p, x, width, factor, accumulate, sum, out + p
          );
        };
        switch (rest) {
          case 1:
            some(Count<1>{});
            break;
          case 2:
            some(Count<2>{});
            break;
          case 3:
            some(Count<3>{});
            break;
          default:
            break;
        }
        p += rest;
        if constexpr (kMultiply) {
          FULLSPECTRUM_UNROLL
          for (int v = 0; v < kVectors; ++v) {
            T* to = y + r * width + v * n;
            store(to, first ? sum[v] : sum[v] + load(to));
          }
        }
        first = false;
      } while (p < last && col[p] <= block.last);
      next[r] = static_cast<index_t>(p);
    }
  });
}

// Calls strip(Count<vectors>, Flag<prefetch>, offset) for each strip of at most kMost registers.
template <int kMost, typename T, typename index_t, typename F>
void for_strips(const SparseRows<index_t>& w, int64_t width, F&& strip) {
  const int64_t vectors = width / kLanes<T>;
  const bool ahead = w.block >= w.cols;
  for (int64_t v = 0; v < vectors; v += kMost) {
    const auto call = [&](auto count) {
      ahead ? strip(count, Flag<true>{}, v * kLanes<T>)
            : strip(count, Flag<false>{}, v * kLanes<T>);
    };
    if (vectors == 1) {
      call(Count<1>{});
    } else if (vectors == 2) {
      call(Count<2>{});
    } else if (vectors == 4 || kMost == 4) {
      call(Count<4>{});
    } else {
      call(Count<kMost>{});
    }
  }
}

// More registers of one strip would not leave room for anything else in sixteen.
constexpr int kMostVectors = 8;
constexpr int kMostVectorsOfBoth = 4;

template <typename T, typename index_t>
void multiply(
    const SparseRows<index_t>& w, const T* value, const T* bias, const T* x, int64_t width, T* y
) {
  for_strips<kMostVectors, T>(w, width, [&](auto count, auto ahead, int64_t at) {
    multiply_strip<count.value, ahead.value>(w, value, bias, x + at, width, y + at);
  });
}

template <typename T, typename index_t>
void sample(
    const SparseRows<index_t>& w, const T* x, const T* g, int64_t width, bool accumulate, T* out
) {
  for_strips<kMostVectors, T>(w, width, [&](auto count, auto ahead, int64_t at) {
    sample_strip<false, count.value, ahead.value, T>(
        w, nullptr, x + at, g + at, width, accumulate || at > 0, nullptr, out
    );
  });
}

template <typename T, typename index_t>
void multiply_and_sample(
    const SparseRows<index_t>& w,
    const T* value,
    const T* x,
    const T* g,
    int64_t width,
    bool accumulate,
    T* y,
    T* out
) {
  for_strips<kMostVectorsOfBoth, T>(w, width, [&](auto count, auto ahead, int64_t at) {
    sample_strip<true, count.value, ahead.value>(
        w, value, x + at, g + at, width, accumulate || at > 0, y + at, out
    );
  });
}

}  // namespace

template <typename storage_t, typename index_t>
PanelKernels<storage_t, index_t> panel_kernels() {
  using T = compute_t<storage_t>;
  return {
      inside<index_t>,
      pack<storage_t>,
      unpack<storage_t>,
      multiply<T, index_t>,
      sample<T, index_t>,
      multiply_and_sample<T, index_t>,
  };
}

template PanelKernels<float, int32_t> panel_kernels();
template PanelKernels<float, int64_t> panel_kernels();
template PanelKernels<double, int32_t> panel_kernels();
template PanelKernels<double, int64_t> panel_kernels();
template PanelKernels<Float16Bits, int32_t> panel_kernels();
template PanelKernels<Float16Bits, int64_t> panel_kernels();
template PanelKernels<BFloat16Bits, int32_t> panel_kernels();
template PanelKernels<BFloat16Bits, int64_t> panel_kernels();

}  // namespace fullspectrum::FULLSPECTRUM_ISA
