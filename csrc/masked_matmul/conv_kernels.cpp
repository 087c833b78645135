#include "masked_matmul/conv_kernels.h"

// Compiled once for each instruction set, so: no header with inline functions of external linkage.
#include "common/vectors.h"

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- packing: square transposes ----------------------------------------------------------------

// The n elements at `from`, of which only [begin, end) exist; the others are 0.
template <typename T, typename S>
vector_t<T> load_some(const S* from, int64_t begin, int64_t end) {
  S some[kLanes<T>] = {};
  for (int64_t i = at_least(begin, 0); i < at_most(end, kLanes<T>); ++i) {
    some[i] = from[i];
  }
  return load_computed(some);
}

// The n elements at `from`, of which only [begin, end) exist, most often all or none.
template <typename T, typename S>
vector_t<T> load_valid(const S* from, int64_t begin, int64_t end) {
  if (begin <= 0 && end >= kLanes<T>) {
    return load_computed(from);
  }
  return begin >= kLanes<T> || end <= 0 ? vector_t<T>{} : load_some<T>(from, begin, end);
}

template <typename T, typename S>
void store_valid(S* to, vector_t<T> vector, int64_t begin, int64_t end) {
  if (begin <= 0 && end >= kLanes<T>) {
    store_computed(to, vector);
    return;
  }
  if (begin >= kLanes<T> || end <= 0) {
    return;
  }
  S some[kLanes<T>];
  store_computed(some, vector);
  for (int64_t i = at_least(begin, 0); i < at_most(end, kLanes<T>); ++i) {
    to[i] = some[i];
  }
}

// Stores past the caches where the instruction set can: a result larger than they are would only
// evict what is still needed, and each of its lines would first be read.
template <typename T, typename S>
void stream(S* to, vector_t<T> vector) {
#if defined(__AVX512F__) && !defined(__clang__)
  if constexpr (__is_same(S, float)) {
    if (reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0) {
      __builtin_ia32_movntps512(to, vector);
      return;
    }
  }
#endif
  store_computed(to, vector);
}

// Calls f(start, count) for groups of n numbers that cover [begin, end); the last one overlaps its
// neighbour where that makes it full.
template <typename F>
void in_groups(int64_t begin, int64_t end, int64_t n, F&& f) {
  for (int64_t at = begin; at < end; at += n) {
    const int64_t start = end - begin < n ? begin : at_most(at, end - n);
    f(start, at_most(n, end - start));
  }
}

template <typename S, typename T>
void pack(const Bands<const S>& bands, const PanelLayout& layout, int64_t channels, T* panel) {
  constexpr int n = kLanes<T>;
  vector_t<T> r[n];
  if (layout.pixel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t base = c * layout.channel_stride;
      T* to = panel + c * layout.channel_pitch * n;
      in_groups(layout.begin, layout.end, n, [&](int64_t pixel, int64_t count) {
        if (pixel >= bands.all_begin && pixel + n <= bands.all_end) {
          FULLSPECTRUM_UNROLL
          for (int l = 0; l < n; ++l) {
            const S* from = bands.image[l] + (base + bands.first[l] + pixel);
            __builtin_prefetch(from + layout.channel_stride);  // the lanes lie far apart
            r[l] = load_computed(from);
          }
        } else {
          for (int l = 0; l < n; ++l) {
            const int64_t begin = bands.valid_begin[l] - pixel, end = bands.valid_end[l] - pixel;
            r[l] = load_valid<T>(bands.image[l] + (base + bands.first[l] + pixel), begin, end);
          }
        }
        transpose<T>(r);
        for (int64_t i = 0; i < count; ++i) {
          store(to + layout.place[pixel + i] * n, r[i]);
        }
      });
    }
    return;
  }
  for (int64_t pixel = layout.begin; pixel < layout.end; ++pixel) {
    T* to = panel + layout.place[pixel] * n;
    in_groups(0, channels, n, [&](int64_t channel, int64_t count) {
      for (int l = 0; l < n; ++l) {
        const bool exists = pixel >= bands.valid_begin[l] && pixel < bands.valid_end[l];
        const S* from = bands.image[l] + ((bands.first[l] + pixel) * layout.pixel_stride + channel);
        r[l] =
            exists && count == n ? load_computed(from) : load_some<T>(from, 0, exists ? count : 0);
      }
      transpose<T>(r);
      for (int64_t i = 0; i < count; ++i) {
        store(to + (channel + i) * layout.channel_pitch * n, r[i]);
      }
    });
  }
}

template <typename S, typename T>
void unpack(const T* panel, const Bands<S>& bands, const PanelLayout& layout, int64_t channels) {
  constexpr int n = kLanes<T>;
  vector_t<T> r[n];
  if (layout.pixel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t base = c * layout.channel_stride;
      const T* from = panel + c * layout.channel_pitch * n;
      in_groups(layout.begin, layout.end, n, [&](int64_t pixel, int64_t count) {
        for (int64_t i = 0; i < n; ++i) {
          r[i] = load(from + layout.place[pixel + (i < count ? i : 0)] * n);
        }
        transpose<T>(r);
        if (pixel >= bands.all_begin && pixel + n <= bands.all_end) {
          FULLSPECTRUM_UNROLL
          for (int l = 0; l < n; ++l) {
            S* to = bands.image[l] + (base + bands.first[l] + pixel);
            if (layout.streams) {
              stream<T>(to, r[l]);
            } else {
              __builtin_prefetch(to + layout.channel_stride, 1);
              store_computed(to, r[l]);
            }
          }
        } else {
          for (int l = 0; l < n; ++l) {
            const int64_t begin = bands.valid_begin[l] - pixel, end = bands.valid_end[l] - pixel;
            store_valid<T>(bands.image[l] + (base + bands.first[l] + pixel), r[l], begin, end);
          }
        }
      });
    }
    return;
  }
  for (int64_t pixel = layout.begin; pixel < layout.end; ++pixel) {
    const T* from = panel + layout.place[pixel] * n;
    in_groups(0, channels, n, [&](int64_t channel, int64_t count) {
      for (int64_t i = 0; i < n; ++i) {
        r[i] = load(from + (channel + (i < count ? i : 0)) * layout.channel_pitch * n);
      }
      transpose<T>(r);
      for (int l = 0; l < n; ++l) {
        if (pixel >= bands.valid_begin[l] && pixel < bands.valid_end[l]) {
          S* to = bands.image[l] + ((bands.first[l] + pixel) * layout.pixel_stride + channel);
          store_valid<T>(to, r[l], 0, count);
        }
      }
    });
  }
}

// ---- the sparse products -----------------------------------------------------------------------

// Calls f(i, pointer) for the kRows x kCols pixels of a tile whose first is `at`.
#define FULLSPECTRUM_FOR_TILE(i, pointer, at, pitch) \
  FULLSPECTRUM_UNROLL                                \
  for (int i = 0; i < kRows * kCols; ++i)            \
    if (auto* pointer = (at) + (i / kCols) * (pitch) + (i % kCols) * kLanes<T>; true)

template <int kRows, int kCols, typename T>
struct Tile {
  using Vectors = vector_t<T>[kRows * kCols];

  // A block of nonzeros is summed up by itself before it is added to those before: the sum of a
  // long row errs less so.
  static void multiply(
      const Nonzeros<T>& nonzeros, const T* bias, TileOf<const T> x, TileOf<T> y, bool accumulate
  ) {
    T* out = y.at;
    for (int64_t r = 0; r < nonzeros.rows; ++r, out += y.channel_pitch) {
      const vector_t<T> start = vector_t<T>{} + (bias != nullptr ? bias[r] : T{0});
      Vectors sum;
      FULLSPECTRUM_UNROLL
      for (int i = 0; i < kRows * kCols; ++i) {
        sum[i] = vector_t<T>{};
      }
      for (int64_t p = nonzeros.begin[r]; p < nonzeros.end[r]; ++p) {
        const T weight = nonzeros.value[p];
        FULLSPECTRUM_FOR_TILE(i, pixel, x.at + nonzeros.offset[p], x.row_pitch) {
          sum[i] += weight * load(pixel);
        }
      }
      FULLSPECTRUM_FOR_TILE(i, pixel, out, y.row_pitch) {
        store(pixel, sum[i] + (accumulate ? load(pixel) : start));
      }
    }
  }

  // The sum over the tile of x grad; and, if kMultiply, sum += weight grad.
  template <bool kMultiply>
  static vector_t<T> product(
      const Vectors& x, const T* grad, int64_t row_pitch, T weight, Vectors& sum
  ) {
    vector_t<T> dot = {};
    FULLSPECTRUM_FOR_TILE(i, pixel, grad, row_pitch) {
      const vector_t<T> g = load_once(pixel);
      if constexpr (kMultiply) {
        sum[i] += weight * g;
      }
      dot += x[i] * g;
    }
    return dot;
  }

  template <bool kMultiply>
  static void backward(
      const Nonzeros<T>& nonzeros,
      TileOf<const T> grad,
      TileOf<const T> x,
      TileOf<T> y,
      bool accumulate,
      T* out
  ) {
    for (int64_t r = 0; r < nonzeros.rows; ++r) {
      Vectors in, sum;
      FULLSPECTRUM_FOR_TILE(i, pixel, x.at + r * x.channel_pitch, x.row_pitch) {
        in[i] = load(pixel);
      }
      if constexpr (kMultiply) {
        FULLSPECTRUM_UNROLL
        for (int i = 0; i < kRows * kCols; ++i) {
          sum[i] = vector_t<T>{};
        }
      }
      const auto at = [&](int64_t p) {
        const T weight = kMultiply ? nonzeros.value[p] : T{0};
        return product<kMultiply>(in, grad.at + nonzeros.offset[p], grad.row_pitch, weight, sum);
      };
      int64_t p = nonzeros.begin[r];
      const int64_t end = nonzeros.end[r];
      for (; p + 4 <= end; p += 4) {
        vector_t<T> dots[4];
        FULLSPECTRUM_UNROLL
        for (int q = 0; q < 4; ++q) {
          dots[q] = at(p + q);
        }
        add_up_four<T>(dots, true, out + p);
      }
      if (p < end) {
        vector_t<T> dots[4] = {};
        for (int64_t q = 0; q < end - p; ++q) {
          dots[q] = at(p + q);
        }
        T sums[4];
        add_up_four<T>(dots, false, sums);
        for (int64_t q = 0; q < end - p; ++q) {
          out[p + q] += sums[q];
        }
      }
      if constexpr (kMultiply) {
        FULLSPECTRUM_FOR_TILE(i, pixel, y.at + r * y.channel_pitch, y.row_pitch) {
          store(pixel, accumulate ? sum[i] + load(pixel) : sum[i]);
        }
      }
    }
  }
};

// Calls f(Tile<rows, cols, T>{}): one row of up to eight pixels, or two of up to four.
template <typename T, typename F>
void with_tile(int rows, int cols, F&& f) {
  switch (rows * 16 + cols) {
      // clang-format off
    case 17: return f(Tile<1, 1, T>{});
    case 18: return f(Tile<1, 2, T>{});
    case 19: return f(Tile<1, 3, T>{});
    case 20: return f(Tile<1, 4, T>{});
    case 21: return f(Tile<1, 5, T>{});
    case 22: return f(Tile<1, 6, T>{});
    case 23: return f(Tile<1, 7, T>{});
    case 24: return f(Tile<1, 8, T>{});
    case 33: return f(Tile<2, 1, T>{});
    case 34: return f(Tile<2, 2, T>{});
    case 35: return f(Tile<2, 3, T>{});
    case 36: return f(Tile<2, 4, T>{});
      // clang-format on
  }
}

template <typename T>
void multiply(
    int rows,
    int cols,
    const Nonzeros<T>& nonzeros,
    const T* bias,
    TileOf<const T> x,
    TileOf<T> y,
    bool accumulate
) {
  with_tile<T>(rows, cols, [&](auto tile) { tile.multiply(nonzeros, bias, x, y, accumulate); });
}

template <typename T>
void sample(
    int rows, int cols, const Nonzeros<T>& nonzeros, TileOf<const T> grad, TileOf<const T> x, T* out
) {
  with_tile<T>(rows, cols, [&](auto tile) {
    tile.template backward<false>(nonzeros, grad, x, {}, false, out);
  });
}

template <typename T>
void multiply_and_sample(
    int rows,
    int cols,
    const Nonzeros<T>& nonzeros,
    TileOf<const T> grad,
    TileOf<const T> x,
    TileOf<T> y,
    bool accumulate,
    T* out
) {
  with_tile<T>(rows, cols, [&](auto tile) {
    tile.template backward<true>(nonzeros, grad, x, y, accumulate, out);
  });
}

// A tile's vectors of x and y must both fit the registers: 32 with AVX-512, else 16.
constexpr int kSamplePixels = kVectorBytes == 64 ? 8 : 4;

}  // namespace

template <typename S, typename T>
ConvPacking<S, T> conv_packing() {
  return {pack<S, T>, unpack<S, T>};
}
template ConvPacking<float, float> conv_packing();
template ConvPacking<double, double> conv_packing();
template ConvPacking<Float16Bits, float> conv_packing();
template ConvPacking<BFloat16Bits, float> conv_packing();

template <typename T>
ConvKernels<T> conv_kernels() {
  return {kLanes<T>, 8, kSamplePixels, multiply<T>, sample<T>, multiply_and_sample<T>};
}
template ConvKernels<float> conv_kernels();
template ConvKernels<double> conv_kernels();

}  // namespace fullspectrum::FULLSPECTRUM_ISA
