#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "masked_matmul/sparse_conv2d.h"

namespace fullspectrum {

// A convolution with strides, dilation and padding as one without: how its images are laid out in
// panels, and at which offset in a panel each nonzero weight finds its operand.
//
// The padded input's rows (and likewise columns) fall into `stride` phases, by their remainder.
// Row k * stride + r of phase r is cell k of that phase's plane. An output row o meets tap t at row
// o * stride + t * dilation: in plane (t * dilation) % stride at cell o + shift, shift =
// t * dilation / stride. So on planes every tap is a constant shift, in both directions.

// One dimension of the convolution.
struct ConvAxis {
  ConvAxis(const SparseConv2dSizes& size, int dimension);

  int64_t stride;
  int64_t padding;
  int64_t dilation;
  std::vector<int64_t> plane_of_phase;  // [stride], -1 for phases in which no tap falls
  int64_t planes = 0;                   // the others
  int64_t reach;                        // the largest shift
  int64_t out;
  int64_t first_cell, cells;  // the cells of a plane that hold the input without its padding

  int64_t plane(int64_t tap) const { return plane_of_phase[tap * dilation % stride]; }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }
};

// The part of an image that lies in a panel. Its rows are cut into bands of equal height: band b
// holds the `rows` rows from first_row + b * row_step on, some of which may not exist.
struct BandedImage {
  int64_t height, width;
  int64_t first_row, row_step, rows;
  int64_t begin_row, end_row;    // the rows of a band that exist in any band
  int64_t grid_width;            // cells of a row of a plane
  int64_t plane_pixels;          // of a plane: rows * grid_width, and one where nothing is computed
  int64_t channel_pixels;        // the planes of a channel
  std::vector<int32_t> place;    // [rows * width] of each pixel within its channel
  std::vector<int32_t> padding;  // the pixels of a channel that no pixel of the image goes to
};

// How the batch is cut into panels, for the forward or the backward direction.
struct ConvPanels {
  int64_t lanes;
  int64_t bands;      // of an image
  int64_t tile_rows;  // the pixels of a plane that are computed, as a grid
  int64_t tile_cols;
  BandedImage in;   // of x (and of its gradient)
  BandedImage out;  // of y, or of its gradient
  int64_t panels;   // band b of image n is lane (n * bands + b) % lanes of its panel
};

struct ConvAxes {
  explicit ConvAxes(const SparseConv2dSizes& size) : rows(size, 0), cols(size, 1) {}
  ConvAxis rows, cols;
  int64_t planes() const { return rows.planes * cols.planes; }
};

// For y = ...: bands of output rows. `vector_bytes` is the memory of one pixel of a panel.
ConvPanels forward_panels(
    const SparseConv2dSizes& size,
    const ConvAxes& axes,
    int64_t lanes,
    int64_t vector_bytes,
    int64_t threads
);
// For the gradients: bands of rows of the input's planes.
ConvPanels backward_panels(
    const SparseConv2dSizes& size,
    const ConvAxes& axes,
    int64_t lanes,
    int64_t vector_bytes,
    int64_t threads
);

// The nonzeros in the order in which the kernels meet them: by blocks of operand channels, whose
// pixels under a tile stay in the first-level cache, and within them by rows.
struct ConvOrder {
  int64_t blocks;
  int64_t rows;
  std::vector<int64_t> bound;  // begin and end of (block, row), see below
  std::unique_ptr<int32_t[]> offset;
  const int64_t* begin(int64_t block) const { return bound.data() + block * rows; }
};

// Rows are output channels, the order is the matrix's own. The nonzeros of (block, row) end where
// those of (block + 1, row) begin: end(block) is begin(block + 1).
template <typename index_t>
ConvOrder forward_order(
    const SparseConv2dSizes& size,
    const ConvAxes& axes,
    const ConvPanels& panels,
    const index_t* crow,
    const index_t* col,
    int64_t tile_pixels
);

// Rows are planes of input channels. The nonzeros of (block, row) end where those of (block, row +
// 1) begin: end(block) is begin(block) + 1. `source[i]` is the place of the i-th in the matrix.
template <typename index_t>
ConvOrder backward_order(
    const SparseConv2dSizes& size,
    const ConvAxes& axes,
    const ConvPanels& panels,
    const index_t* crow,
    const index_t* col,
    int64_t tile_pixels,
    index_t* source  // [nnz]
);

}  // namespace fullspectrum
