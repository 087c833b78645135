#pragma once

#include <cstdint>

#include "common/narrow_floats.h"

namespace fullspectrum {

// The inner loops of the sparse convolutions on the CPU.
//
// They work on panels. A panel holds one band of rows of several images, with the images innermost:
// [channel][pixel][lane], so that a pixel is one vector register and a nonzero weight meets it at
// an offset that is the same for every output pixel. Where a pixel of an image stands in its
// channel says a table, which puts in the padding (whose vectors are zeros) and takes apart the
// phases of a stride; so the loops below know neither of them.

// The most lanes a panel has: 64 bytes of float.
constexpr int kMaxConvLanes = 16;

// The bands of images that make up a panel. Pixels count from the band's first, row by row; those
// outside [valid_begin, valid_end) do not exist in that lane's image (the band's rows begin above
// it or end below it).
template <typename S>
struct Bands {
  S* image[kMaxConvLanes];
  int64_t first[kMaxConvLanes];  // pixel of the image that is the band's first; may be negative
  int64_t valid_begin[kMaxConvLanes];
  int64_t valid_end[kMaxConvLanes];
  int64_t all_begin, all_end;  // what is valid in every lane
};

// How the images lie in memory, and where their pixels go in a panel.
struct PanelLayout {
  int64_t channel_stride, pixel_stride;  // in the image; one of them is 1
  int64_t begin, end;                    // the pixels of the band to move
  const int32_t* place;                  // [end] of each pixel within its channel
  int64_t channel_pitch;                 // pixels from one channel of the panel to the next
  bool streams;                          // unpack's stores go past the caches
};

template <typename S, typename T>
struct ConvPacking {
  // panel[c][place[p]][lane] = image[lane][c][first[lane] + p], 0 where that does not exist.
  void (*pack)(const Bands<const S>& bands, const PanelLayout& layout, int64_t channels, T* panel);
  // The way back, where it exists.
  void (*unpack)(
      const T* panel, const Bands<S>& bands, const PanelLayout& layout, int64_t channels
  );
};

// The nonzeros of some rows of a sparse matrix: [begin[r], end[r]) of the arrays `offset`, where in
// a panel their operand stands (relative to a tile's), and `value`.
template <typename T>
struct Nonzeros {
  int64_t rows;
  const int64_t* begin;
  const int64_t* end;
  const int32_t* offset;
  const T* value;
};

// The place of a tile of pixels in a panel.
template <typename T>
struct TileOf {
  T* at;              // its first pixel in the first channel
  int64_t row_pitch;  // elements from one of its rows to the next
  int64_t channel_pitch;
};

template <typename T>
struct ConvKernels {
  int lanes;            // images in a panel
  int multiply_pixels;  // the most pixels of a tile, in one row or in two
  int sample_pixels;    // likewise for sample and multiply_and_sample
  // For every row r and every pixel of the tile:
  // y[r] = bias[r] (nothing where null; y[r] where `accumulate`) + the sum of value[p]
  // x[offset[p]].
  void (*multiply)(
      int rows,
      int cols,
      const Nonzeros<T>& nonzeros,
      const T* bias,
      TileOf<const T> x,  // its channel_pitch is in the offsets
      TileOf<T> y,
      bool accumulate
  );
  // out[p] += the sum over the tile of x[r] grad[offset[p]].
  void (*sample)(
      int rows,
      int cols,
      const Nonzeros<T>& nonzeros,
      TileOf<const T> grad,
      TileOf<const T> x,
      T* out
  );
  // Both at once, each vector of grad loaded once: y[r] = (or +=) the sum of value[p]
  // grad[offset[p]], and out as above.
  void (*multiply_and_sample)(
      int rows,
      int cols,
      const Nonzeros<T>& nonzeros,
      TileOf<const T> grad,
      TileOf<const T> x,
      TileOf<T> y,  // laid out as x
      bool accumulate,
      T* out
  );
};

#define FULLSPECTRUM_DECLARE_CONV_KERNELS(isa) \
  namespace isa {                              \
  template <typename S, typename T>            \
  ConvPacking<S, T> conv_packing();            \
  template <typename T>                        \
  ConvKernels<T> conv_kernels();               \
  }
FULLSPECTRUM_DECLARE_CONV_KERNELS(baseline)
FULLSPECTRUM_DECLARE_CONV_KERNELS(avx2)
FULLSPECTRUM_DECLARE_CONV_KERNELS(avx512)
#undef FULLSPECTRUM_DECLARE_CONV_KERNELS

}  // namespace fullspectrum
