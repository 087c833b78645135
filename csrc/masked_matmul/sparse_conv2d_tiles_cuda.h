#pragma once

// Tiles of images in shared memory, which the CUDA kernels of the sparse convolution read from.
//
// A tile holds the source pixels that a block of target pixels meets, with a halo of zeros: however
// stride, padding and dilation lie, a nonzero is then one offset for all lanes of a warp.

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "masked_matmul/sparse_conv2d_cuda.h"

namespace fullspectrum {
namespace {

constexpr int kTileWarps = 16;
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kLaneBits = 5;
static_assert(kWarp == 1 << kLaneBits);
constexpr int kPixelBits = 3;
constexpr int kPixels = 1 << kPixelBits;  // of a lane
constexpr int kMostChannels = 512;        // target channels of a block
constexpr int kStaticShared = 128;        // bytes that the kernels' own variables may take
constexpr double kStagingClocks = 4;      // of 32 elements; an estimate, like all in the plans

// A tile is `rows` x `cols` target pixels of one phase, of `images` images, with the source pixels
// that they meet in shared memory, halo and all. cols times images side by side are the lanes of a
// warp; rows times sets of such images are a lane's pixels. All of these are powers of two.
struct Tile {
  int row_bits, col_bits;
  int source_rows, source_cols;
  int plane;               // elements from image to image
  int channels;            // source channels in shared memory at a time
  int target_channels;     // of a block
  int down, right, count;  // tiles of a phase's rows and columns, and in all
  int channel_tiles;       // of the target channels of a group
  size_t shared_bytes;

  __host__ __device__ int rows() const { return 1 << row_bits; }
  __host__ __device__ int cols() const { return 1 << col_bits; }
  __host__ __device__ int image_bits() const {
    return kLaneBits + kPixelBits - row_bits - col_bits;
  }
  __host__ __device__ int images() const { return 1 << image_bits(); }
  __host__ __device__ int channel() const { return images() * plane; }

  // A lane's j-th pixel within the tile.
  __device__ int image_of(int j, int lane) const {
    return ((j >> row_bits) << (kLaneBits - col_bits)) + (lane >> col_bits);
  }
  __device__ int row_of(int j) const { return j & (rows() - 1); }
  __device__ int col_of(int lane) const { return lane & (cols() - 1); }
  // Where it starts among the staged pixels.
  __device__ int start_of(const Meeting& g, int j, int lane) const {
    return image_of(j, lane) * plane + row_of(j) * g.step[0] * source_cols +
           col_of(lane) * g.step[1];
  }
};

// The first of a tile's target pixels, counted within their phase.
struct Corner {
  int64_t image;
  int row, col;

  __device__ Corner(const Tile& t, int tile)
      : image(int64_t{tile / t.right / t.down} * t.images()),
        row(tile / t.right % t.down * t.rows()),
        col(tile % t.right * t.cols()) {}
};

// table[k] = where tap k of this phase reads, from a pixel's start; of other taps, anything.
inline __device__ void fill_tap_table(
    const Meeting& g, const Tile& t, int phase_row, int phase_col, int* table
) {
  const int top = g.least_met(0, phase_row), left = g.least_met(1, phase_col);
  for (int k = static_cast<int>(threadIdx.x); k < g.taps; k += kTileThreads) {
    const int down = g.first_met(0, phase_row, k / g.kernel[1]) - top;
    const int right = g.first_met(1, phase_col, k % g.kernel[1]) - left;
    table[k] = down * t.source_cols + right;
  }
}
// Elements of it, with those that keep what follows aligned.
inline __host__ __device__ int tap_table_size(const Meeting& g) { return (g.taps + 1) / 2 * 2; }

// Brings the source pixels that a tile meets, of `channels` channels from first_channel on, into
// shared memory; zeros where there is none. The caller synchronizes the block.
//
// A lane takes the same place in the planes of kTileWarps-th channels and images: what is inside is
// decided once, and several loads are on their way at a time.
template <typename scalar_t>
__device__ void stage_tile(
    const scalar_t* __restrict__ source,  // [batch, source channels, height, width]
    const Meeting& g,
    const Tile& t,
    const Corner& corner,
    int phase_row,
    int phase_col,
    int first_channel,
    int channels,
    scalar_t* tile
) {
  constexpr int kAhead = 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int top = corner.row * g.step[0] + g.least_met(0, phase_row);
  const int left = corner.col * g.step[1] + g.least_met(1, phase_col);
  const int planes = channels << t.image_bits();
  for (int i = lane; i < t.source_rows * t.source_cols; i += kWarp) {
    const int y = top + i / t.source_cols, x = left + i % t.source_cols;
    const bool inside = g.inside(y, x);
    const int64_t pixel = static_cast<int64_t>(y) * g.source[1] + x;
    for (int first = static_cast<int>(threadIdx.x) / kWarp; first < planes;
         first += kAhead * kTileWarps) {
      scalar_t loaded[kAhead];
      FULLSPECTRUM_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        const int plane = first + j * kTileWarps;
        const int64_t n = corner.image + (plane & (t.images() - 1));
        const int channel = first_channel + (plane >> t.image_bits());
        const bool exists = inside && plane < planes && n < g.batch;
        loaded[j] = exists ? source[(n * g.source_channels + channel) * g.source_pixels() + pixel]
                           : scalar_t(0);
      }
      FULLSPECTRUM_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        const int plane = first + j * kTileWarps;
        if (plane < planes) {
          tile[plane * t.plane + i] = loaded[j];
        }
      }
    }
  }
}

// The exponent of the least power of two that is not below n, at most `most`.
inline int bits_over(int n, int most) {
  int bits = 0;
  while (bits < most && 1 << bits < n) {
    ++bits;
  }
  return bits;
}

// How tiles lie over the pixels, or none where a single channel of one takes more elements than
// there may be. How many channels a block takes is left to the caller.
inline std::optional<Tile> tile_over(const Meeting& g, int64_t most_elements) {
  Tile t{};
  t.col_bits = bits_over(g.phase_pixels(1), kLaneBits);
  t.row_bits = bits_over(g.phase_pixels(0), kPixelBits);
  const int64_t down = ceil_div(g.phase_pixels(0), t.rows());
  const int64_t right = ceil_div(g.phase_pixels(1), t.cols());
  const int64_t count = down * right * ceil_div(g.batch, t.images());
  const auto met = [&](int d, int pixels) {
    const int64_t between_taps = std::abs(int64_t{g.kernel[d] - 1} * g.tap[d]);
    const int64_t span = int64_t{pixels - 1} * g.step[d] + ceil_div(between_taps, g.every[d]) + 1;
    return std::min(span, most_elements + 1);
  };
  const int64_t rows = met(0, t.rows()), cols = met(1, t.cols());
  int64_t plane = rows * cols;
  if (t.cols() < kWarp) {  // images t.cols() apart in the banks
    plane += (t.cols() - plane % kWarp + kWarp) % kWarp;
  }
  if (t.images() * plane > most_elements || count > INT32_MAX / 2) {
    return std::nullopt;
  }
  t.down = static_cast<int>(down);
  t.right = static_cast<int>(right);
  t.count = static_cast<int>(count);
  t.source_rows = static_cast<int>(rows);
  t.source_cols = static_cast<int>(cols);
  t.plane = static_cast<int>(plane);
  return t;
}

}  // namespace
}  // namespace fullspectrum
