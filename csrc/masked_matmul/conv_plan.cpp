#include "masked_matmul/conv_plan.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>

#include "common/ceil_div.h"

namespace fullspectrum {
namespace {

// About what a thread's panels may take of the caches behind the first level.
constexpr int64_t kPanelBytes = int64_t{2} << 20;
// The operands of a tile should stay in the first-level cache, together with its results.
constexpr int64_t kBlockBytes = int64_t{24} << 10;
// Below so many nonzeros in a row of a block, its results cost more than the cache saves.
constexpr int64_t kBlockNonzeros = 12;

// One dimension of an image in a panel: its pixel `origin` + k * stride + phase is cell k of that
// phase's plane (of the first band).
struct Grid {
  int64_t stride;
  int64_t origin;
  int64_t cells;
  std::vector<int64_t> plane_of_phase;
  int64_t planes;
};

Grid plain_grid(int64_t origin, int64_t cells) { return {1, origin, cells, {0}, 1}; }

BandedImage banded_image(
    int64_t height,
    int64_t width,
    const Grid& rows,
    const Grid& cols,
    int64_t band_cells,
    int64_t bands
) {
  BandedImage image{};
  image.height = height;
  image.width = width;
  image.first_row = rows.origin;
  image.row_step = rows.stride * band_cells;
  image.rows = rows.stride * rows.cells;
  const bool whole = bands == 1;
  image.begin_row = whole ? std::clamp<int64_t>(-rows.origin, 0, image.rows) : 0;
  image.end_row =
      whole ? std::clamp<int64_t>(height - rows.origin, image.begin_row, image.rows) : image.rows;
  image.grid_width = cols.cells;
  image.plane_pixels = rows.cells * cols.cells + 1;
  image.channel_pixels = rows.planes * cols.planes * image.plane_pixels;
  const int64_t nowhere = image.channel_pixels - 1;  // for pixels that no tap meets
  image.place.resize(image.rows * width);
  std::vector<bool> taken(image.channel_pixels, false);
  for (int64_t r = 0; r < image.rows; ++r) {
    const int64_t row_plane = rows.plane_of_phase[r % rows.stride];
    for (int64_t w = 0; w < width; ++w) {
      const int64_t at = w - cols.origin;
      int64_t place = nowhere;
      if (row_plane >= 0 && at >= 0 && at < cols.stride * cols.cells) {
        const int64_t col_plane = cols.plane_of_phase[at % cols.stride];
        if (col_plane >= 0) {
          place = (row_plane * cols.planes + col_plane) * image.plane_pixels +
                  r / rows.stride * cols.cells + at / cols.stride;
        }
      }
      image.place[r * width + w] = static_cast<int32_t>(place);
      if (r >= image.begin_row && r < image.end_row && place != nowhere) {
        taken[place] = true;
      }
    }
  }
  for (int64_t pixel = 0; pixel < image.channel_pixels; ++pixel) {
    if (!taken[pixel]) {
      image.padding.push_back(static_cast<int32_t>(pixel));
    }
  }
  return image;
}

// Into how many bands to cut the `cells` rows of each image: so many that the images fill the
// lanes and the threads, and that a panel fits the cache, unless the rows that neighbouring bands
// share (`reach`) become too many.
int64_t count_bands(
    int64_t cells, int64_t reach, int64_t row_bytes, int64_t batch, int64_t lanes, int64_t threads
) {
  int64_t bands = 1;
  const auto height = [&] { return ceil_div(cells, bands); };
  while (height() > 1 && batch * bands < lanes) {
    ++bands;
  }
  while (height() > std::max<int64_t>(1, 2 * reach) &&
         ((height() + reach) * row_bytes > kPanelBytes || batch * bands < lanes * threads)) {
    ++bands;
  }
  // where a few more make all of one height, no rows are computed in vain
  const int64_t least = bands;
  while (bands < 2 * least && height() > std::max<int64_t>(1, reach) && cells % bands != 0) {
    ++bands;
  }
  return cells % bands == 0 ? bands : ceil_div(cells, ceil_div(cells, least));
}

// Offsets are 32-bit.
void check_panel(int64_t pixels, int64_t lanes) {
  STD_TORCH_CHECK(
      pixels <= std::numeric_limits<int32_t>::max() / lanes,
      "sparse_conv2d: images of so many channels and columns are too large for the CPU kernel"
  );
}

ConvPanels finished(ConvPanels panels, const SparseConv2dSizes& size, int64_t rows, int64_t cols) {
  panels.panels = ceil_div(size.batch * panels.bands, panels.lanes);
  // Without padding between them the rows are one long row.
  const bool joined = panels.in.grid_width == cols && panels.out.grid_width == cols;
  panels.tile_rows = joined ? 1 : rows;
  panels.tile_cols = joined ? rows * cols : cols;
  check_panel(panels.in.channel_pixels * size.in_channels, panels.lanes);
  check_panel(panels.out.channel_pixels * size.out_channels, panels.lanes);
  return panels;
}

// How many blocks `channels` operand channels make, `pixel_bytes` of each under a tile, where a row
// has so many nonzeros on average.
int64_t count_blocks(int64_t channels, int64_t pixel_bytes, int64_t nonzeros, int64_t rows) {
  const int64_t wanted = ceil_div(channels * pixel_bytes, kBlockBytes);
  const int64_t worth = nonzeros / std::max<int64_t>(1, rows * kBlockNonzeros);
  return std::max<int64_t>(1, std::min({wanted, worth, channels}));
}

// The bytes of one channel under a tile of one row and the taps around it.
int64_t tile_bytes(const ConvAxes& axes, const ConvPanels& panels, int64_t tile_pixels) {
  const int64_t cols = std::min(tile_pixels, panels.tile_cols);
  return (ceil_div(tile_pixels, cols) + axes.rows.reach) * (cols + axes.cols.reach) * 64;
}

}  // namespace

ConvAxis::ConvAxis(const SparseConv2dSizes& size, int d)
    : stride(size.stride[d]),
      padding(size.padding[d]),
      dilation(size.dilation[d]),
      plane_of_phase(size.stride[d], -1),
      reach(shift(size.kernel[d] - 1)),
      out(size.out[d]),
      first_cell(size.padding[d] / size.stride[d]),
      cells((size.padding[d] + size.in[d] - 1) / size.stride[d] + 1 - first_cell) {
  for (int64_t tap = 0; tap < size.kernel[d]; ++tap) {
    int64_t& at = plane_of_phase[tap * dilation % stride];
    at = at < 0 ? planes++ : at;
  }
}

ConvPanels forward_panels(
    const SparseConv2dSizes& size,
    const ConvAxes& axes,
    int64_t lanes,
    int64_t vector_bytes,
    int64_t threads
) {
  const auto& [rows, cols] = axes;
  const int64_t width = cols.out + cols.reach;
  const int64_t row_bytes =
      vector_bytes * (size.in_channels * axes.planes() * width + size.out_channels * cols.out);
  ConvPanels panels{};
  panels.lanes = lanes;
  panels.bands = count_bands(rows.out, rows.reach, row_bytes, size.batch, lanes, threads);
  const int64_t height = ceil_div(rows.out, panels.bands);
  panels.in = banded_image(
      size.in[0],
      size.in[1],
      {rows.stride, -rows.padding, height + rows.reach, rows.plane_of_phase, rows.planes},
      {cols.stride, -cols.padding, width, cols.plane_of_phase, cols.planes},
      height,
      panels.bands
  );
  panels.out = banded_image(
      rows.out, cols.out, plain_grid(0, height), plain_grid(0, cols.out), height, panels.bands
  );
  return finished(std::move(panels), size, height, cols.out);
}

ConvPanels backward_panels(
    const SparseConv2dSizes& size,
    const ConvAxes& axes,
    int64_t lanes,
    int64_t vector_bytes,
    int64_t threads
) {
  const auto& [rows, cols] = axes;
  const int64_t width = cols.cells + cols.reach;
  const int64_t row_bytes = vector_bytes * (2 * size.in_channels * axes.planes() * cols.cells +
                                            size.out_channels * width);
  ConvPanels panels{};
  panels.lanes = lanes;
  panels.bands = count_bands(rows.cells, rows.reach, row_bytes, size.batch, lanes, threads);
  const int64_t height = ceil_div(rows.cells, panels.bands);
  const int64_t first_row = rows.first_cell * rows.stride - rows.padding;
  const int64_t first_col = cols.first_cell * cols.stride - cols.padding;
  panels.in = banded_image(
      size.in[0],
      size.in[1],
      {rows.stride, first_row, height, rows.plane_of_phase, rows.planes},
      {cols.stride, first_col, cols.cells, cols.plane_of_phase, cols.planes},
      height,
      panels.bands
  );
  panels.out = banded_image(
      rows.out,
      cols.out,
      plain_grid(rows.first_cell - rows.reach, height + rows.reach),
      plain_grid(cols.first_cell - cols.reach, width),
      height,
      panels.bands
  );
  return finished(std::move(panels), size, height, cols.cells);
}

template <typename index_t>
ConvOrder forward_order(
    const SparseConv2dSizes& size,
    const ConvAxes& axes,
    const ConvPanels& panels,
    const index_t* crow,
    const index_t* col,
    int64_t tile_pixels
) {
  const int64_t cols = size.cols(), taps = size.taps();
  std::vector<int32_t> offset_of(cols);  // of a column, in the first group
  for (int64_t c = 0; c < cols; ++c) {
    const int64_t y = c % taps / size.kernel[1], x = c % size.kernel[1];
    const int64_t plane = axes.rows.plane(y) * axes.cols.planes + axes.cols.plane(x);
    const int64_t pixel = c / taps * panels.in.channel_pixels + plane * panels.in.plane_pixels +
                          axes.rows.shift(y) * panels.in.grid_width + axes.cols.shift(x);
    offset_of[c] = static_cast<int32_t>(pixel * panels.lanes);
  }
  ConvOrder order{};
  order.rows = size.out_channels;
  const int64_t bytes = axes.planes() * tile_bytes(axes, panels, tile_pixels);
  order.blocks = count_blocks(size.group_in(), bytes, size.nnz, order.rows);
  order.bound.resize((order.blocks + 1) * order.rows);
  order.offset.reset(new int32_t[size.nnz]);
  const int64_t group_pixels = size.group_in() * panels.in.channel_pixels;
  for (int64_t r = 0; r < order.rows; ++r) {
    const auto group = static_cast<int32_t>(r / size.group_out() * group_pixels * panels.lanes);
    int64_t p = crow[r];
    const int64_t end = crow[r + 1];
    for (int64_t i = p; i < end; ++i) {
      order.offset[i] = offset_of[col[i]] + group;
    }
    for (int64_t block = 0; block < order.blocks; ++block) {
      order.bound[block * order.rows + r] = p;
      const int64_t next = size.group_in() * (block + 1) / order.blocks * taps;
      // columns out of order only make blocks of unequal size
      p = std::partition_point(col + p, col + end, [&](index_t c) { return c < next; }) - col;
    }
    order.bound[order.blocks * order.rows + r] = end;
  }
  return order;
}

template <typename index_t>
ConvOrder backward_order(
    const SparseConv2dSizes& size,
    const ConvAxes& axes,
    const ConvPanels& panels,
    const index_t* crow,
    const index_t* col,
    int64_t tile_pixels,
    index_t* source
) {
  const int64_t cols = size.cols(), taps = size.taps(), planes = axes.planes();
  // of a column: its row (in the first group) and its offset (in the first output channel)
  std::vector<int32_t> row_of(cols), offset_of(cols);
  for (int64_t c = 0; c < cols; ++c) {
    const int64_t y = c % taps / size.kernel[1], x = c % size.kernel[1];
    const int64_t plane = axes.rows.plane(y) * axes.cols.planes + axes.cols.plane(x);
    row_of[c] = static_cast<int32_t>(c / taps * planes + plane);
    const int64_t pixel = (axes.rows.reach - axes.rows.shift(y)) * panels.out.grid_width +
                          axes.cols.reach - axes.cols.shift(x);
    offset_of[c] = static_cast<int32_t>(pixel * panels.lanes);
  }
  ConvOrder order{};
  order.rows = size.in_channels * planes;
  const int64_t bytes = tile_bytes(axes, panels, tile_pixels);
  order.blocks = count_blocks(size.group_out(), bytes, size.nnz, order.rows);
  order.offset.reset(new int32_t[size.nnz]);
  // counting sort by (block, row); output channels stay in order
  const auto first_key = [&](int64_t r) {
    const int64_t group = r / size.group_out();
    const int64_t block = r % size.group_out() * order.blocks / size.group_out();
    return block * order.rows + group * size.group_in() * planes;
  };
  std::vector<int64_t>& bound = order.bound;
  bound.assign(order.blocks * order.rows + 1, 0);
  for (int64_t r = 0; r < size.out_channels; ++r) {
    const int64_t first = first_key(r) + 1;
    for (int64_t p = crow[r]; p < crow[r + 1]; ++p) {
      ++bound[first + row_of[col[p]]];
    }
  }
  for (size_t i = 1; i < bound.size(); ++i) {
    bound[i] += bound[i - 1];
  }
  std::vector<int64_t> next(bound.begin(), bound.end() - 1);
  for (int64_t r = 0; r < size.out_channels; ++r) {
    const int64_t first = first_key(r);
    const auto channel = static_cast<int32_t>(r * panels.out.channel_pixels * panels.lanes);
    for (int64_t p = crow[r]; p < crow[r + 1]; ++p) {
      const int64_t i = next[first + row_of[col[p]]]++;
      order.offset[i] = channel + offset_of[col[p]];
      source[i] = static_cast<index_t>(p);
    }
  }
  return order;
}

#define FULLSPECTRUM_ORDERS(index_t) \
  template ConvOrder forward_order(  \
      const SparseConv2dSizes&,      \
      const ConvAxes&,               \
      const ConvPanels&,             \
      const index_t*,                \
      const index_t*,                \
      int64_t                        \
  );                                 \
  template ConvOrder                 \
  backward_order(const SparseConv2dSizes&, const ConvAxes&, const ConvPanels&, const index_t*, const index_t*, int64_t, index_t*);
FULLSPECTRUM_ORDERS(int32_t)
FULLSPECTRUM_ORDERS(int64_t)
#undef FULLSPECTRUM_ORDERS

}  // namespace fullspectrum
