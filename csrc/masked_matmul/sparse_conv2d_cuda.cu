#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/first_not_below.h"
#include "common/library.h"
#include "masked_matmul/sparse_conv2d.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// The convolution's numbers, as the kernels take them; pairs are (height, width).
struct Geometry {
  int64_t batch, in_channels, out_channels, group_in, group_out, nnz;
  int in[2], out[2], kernel[2], stride[2], padding[2], dilation[2];
  int taps;

  __device__ int64_t in_pixels() const { return static_cast<int64_t>(in[0]) * in[1]; }
  __device__ int64_t out_pixels() const { return static_cast<int64_t>(out[0]) * out[1]; }
  // Where output row (or column) `at` meets a tap, in the input; may lie outside it.
  __device__ int met_by(int d, int at, int tap) const {
    return at * stride[d] - padding[d] + tap * dilation[d];
  }
  __device__ bool inside(int y, int x) const { return y >= 0 && y < in[0] && x >= 0 && x < in[1]; }
};

// An image tensor [batch, channels, height, width] to write to, in either order of memory.
template <typename scalar_t>
struct Target {
  scalar_t* data;
  int64_t batch_stride, channel_stride, pixel_stride;

  __device__ void set(int64_t n, int64_t channel, int64_t pixel, scalar_t value) const {
    data[n * batch_stride + channel * channel_stride + pixel * pixel_stride] = value;
  }
};

// y = the convolution of x with W, plus bias.
//
// A warp owns one output channel of 32 neighbouring output pixels (of one image after the other),
// so that its loads of x lie side by side. It walks the row's nonzeros 32 at a time: each lane
// takes one apart, then all of them use it, passed on by shuffles. Every sum is one thread's own:
// the order of additions is fixed.
//
// Launch: grid (channel tiles * pixel tiles), block 256, no shared memory. Slow when few rows are
// much longer than the rest (their block finishes last).
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kThreads, 4) sparse_conv2d_kernel(
    const scalar_t* __restrict__ x,      // [batch, in channels, height, width]
    const scalar_t* __restrict__ value,  // [nnz]
    const index_t* __restrict__ crow,    // [out channels + 1]
    const index_t* __restrict__ col,     // [nnz]
    const scalar_t* __restrict__ bias,   // [out channels] or null
    Target<scalar_t> y,
    Geometry g
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t channel_tiles = ceil_div(g.out_channels, kWarps);
  const int64_t channel = blockIdx.x % channel_tiles * kWarps + threadIdx.x / kWarp;
  const int64_t position = blockIdx.x / channel_tiles * kWarp + lane;
  if (channel >= g.out_channels) {
    return;
  }
  const int64_t n = position / g.out_pixels();
  const int64_t pixel = position % g.out_pixels();
  const bool exists = n < g.batch;
  const int top = g.met_by(0, static_cast<int>(pixel / g.out[1]), 0);
  const int left = g.met_by(1, static_cast<int>(pixel % g.out[1]), 0);
  const int64_t group = channel / g.group_out;
  const scalar_t* image =
      x + ((exists ? n : 0) * g.in_channels + group * g.group_in) * g.in_pixels();

  acc_t sum = bias ? static_cast<acc_t>(bias[channel]) : acc_t{0};
  const int64_t end = crow[channel + 1];
  for (int64_t first = crow[channel]; first < end; first += kWarp) {
    const int64_t p = first + lane < end ? first + lane : end - 1;
    const int64_t column = col[p];
    const int tap = static_cast<int>(column % g.taps);
    const int64_t own_plane = column / g.taps;
    const int own_down = tap / g.kernel[1] * g.dilation[0];
    const int own_right = tap % g.kernel[1] * g.dilation[1];
    const acc_t own_weight = static_cast<acc_t>(value[p]);
    const int count = end - first < kWarp ? static_cast<int>(end - first) : kWarp;
    for (int q = 0; q < count; ++q) {
      const int64_t plane = __shfl_sync(~0u, own_plane, q);
      const int row = top + __shfl_sync(~0u, own_down, q);
      const int column_at = left + __shfl_sync(~0u, own_right, q);
      const acc_t weight = __shfl_sync(~0u, own_weight, q);
      if (exists && g.inside(row, column_at)) {
        const int64_t at = plane * g.in_pixels() + static_cast<int64_t>(row) * g.in[1] + column_at;
        sum += weight * static_cast<acc_t>(image[at]);
      }
    }
  }
  if (exists) {
    y.set(n, channel, pixel, static_cast<scalar_t>(sum));
  }
}

// ---- forward, from tiles in shared memory ----------------------------------------------------

constexpr int kTileWarps = 16;
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kPixels = 8;  // of a lane

// What a block computes: `rows` x `cols` output pixels of `images` images, and how the input pixels
// that they meet lie in shared memory. cols, a power of two, times images side by side are the
// lanes of a warp; rows times sets of such images are a lane's pixels.
struct Tile {
  int cols, rows, images;
  int in_rows, in_cols;        // met by the tile, with halo
  int plane, channel;          // elements from image to image and from channel to channel
  int channels;                // in shared memory at a time
  int out_channels;            // of a block
  int64_t down, right, batch;  // tiles of an image's rows and columns, of the batch
  int64_t out_tiles;           // of the output channels of a group
  bool sums;                   // kept in shared memory from one part of the channels to the next
  size_t shared_bytes;

  int64_t blocks(int64_t groups) const { return down * right * batch * out_tiles * groups; }
};

template <typename acc_t>
struct alignas(2 * sizeof(acc_t)) Weight {
  acc_t value;
  int offset;  // of its channel and tap in the tile
};

// The same as sparse_conv2d_kernel where a tile of x fits into shared memory, whatever the stride,
// padding and dilation: the halo is filled with zeros, and a nonzero is one offset for all lanes.
//
// A block stages the input pixels that its output pixels meet, of as many channels as fit; its
// warps take the output channels one by one as they get free. A warp brings 32 nonzeros at a time
// into shared memory (coalesced, the next while it works on these); for each, a lane reads one
// input pixel for each of its 8 outputs. Lanes lie along a row of the image, and along images where
// that is short: images start cols apart in the banks, so that with stride 1 the reads do not
// collide. The bound is shared memory: 9 reads for 8 multiply-adds of a warp. A channel's sum is
// one lane's own, in the order of its nonzeros.
//
// Launch: grid (tiles), block 512, dynamic shared memory as planned. With a stride of 2, two reads
// share a bank; with images whose sides are far from powers of two, lanes are idle.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kTileThreads, 1) sparse_conv2d_tile_kernel(
    const scalar_t* __restrict__ x,      // [batch, in channels, height, width]
    const scalar_t* __restrict__ value,  // [nnz]
    const index_t* __restrict__ crow,    // [out channels + 1]
    const index_t* __restrict__ col,     // [nnz], rising within each row
    const scalar_t* __restrict__ bias,   // [out channels] or null
    Target<scalar_t> y,
    Geometry g,
    Tile t
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  int64_t block = blockIdx.x;
  const int64_t out_tile = block % t.out_tiles;
  block /= t.out_tiles;
  const int64_t group = block % (g.in_channels / g.group_in);
  block /= g.in_channels / g.group_in;
  const int first_col = static_cast<int>(block % t.right) * t.cols;
  block /= t.right;
  const int first_row = static_cast<int>(block % t.down) * t.rows;
  const int64_t first_image = block / t.down * t.images;
  const int64_t first_channel = group * g.group_out + out_tile * t.out_channels;
  const int channels = static_cast<int>(
      min(static_cast<int64_t>(t.out_channels), (group + 1) * g.group_out - first_channel)
  );

  FULLSPECTRUM_DYNAMIC_SHARED(Weight<acc_t>, staged);               // [kTileThreads]
  auto* begin = reinterpret_cast<index_t*>(staged + kTileThreads);  // [out_channels], what is to
  index_t* end = begin + t.out_channels;                            // come of each
  auto* sums = reinterpret_cast<acc_t*>(end + t.out_channels);      // [out_channels][pixels]
  auto* tile = reinterpret_cast<scalar_t*>(sums + (t.sums ? t.out_channels * kPixels * kWarp : 0));
  __shared__ int next_channel;
  staged += warp * kWarp;
  for (int i = thread; i < channels; i += kTileThreads) {
    begin[i] = crow[first_channel + i];
    end[i] = crow[first_channel + i + 1];
  }

  // where a lane's pixels start in the tile
  const int across = kWarp / t.cols;
  int at[kPixels];
  FULLSPECTRUM_UNROLL
  for (int j = 0; j < kPixels; ++j) {
    const int image = j / t.rows * across + lane / t.cols;
    at[j] = image * t.plane + j % t.rows * g.stride[0] * t.in_cols + lane % t.cols * g.stride[1];
  }

  const int top = g.met_by(0, first_row, 0), left = g.met_by(1, first_col, 0);
  for (int64_t from = 0; from == 0 || from < g.group_in; from += t.channels) {
    const int here = static_cast<int>(min(static_cast<int64_t>(t.channels), g.group_in - from));
    __syncthreads();  // the channels before are not needed any more
    const int lines = here * t.images * t.in_rows;
    for (int line = warp; line < lines; line += kTileWarps) {
      const int row = line % t.in_rows, image = line / t.in_rows % t.images;
      const int channel = line / t.in_rows / t.images;
      const int64_t n = first_image + image;
      const scalar_t* source =
          x + ((n * g.in_channels + group * g.group_in + from + channel) * g.in[0] + top + row) *
                  g.in[1];
      scalar_t* target = tile + channel * t.channel + image * t.plane + row * t.in_cols;
      for (int i = lane; i < t.in_cols; i += kWarp) {
        const bool inside = n < g.batch && g.inside(top + row, left + i);
        target[i] = inside ? source[left + i] : scalar_t(0);
      }
    }
    if (thread == 0) {
      next_channel = kTileWarps;
    }
    __syncthreads();

    const bool last = from + t.channels >= g.group_in;
    const auto end_column = static_cast<index_t>((from + here) * g.taps);
    index_t own_column = 0;
    acc_t own_value = 0;
    const auto bring = [&](index_t p, index_t to) {
      if (lane < to - p) {
        own_column = col[p + lane];
        own_value = static_cast<acc_t>(value[p + lane]);
      }
    };
    int i = warp;
    if (i < channels) {
      bring(begin[i], end[i]);
    }
    while (i < channels) {
      int next = lane == 0 ? atomicAdd(&next_channel, 1) : 0;
      next = __shfl_sync(~0u, next, 0);
      index_t p = begin[i];
      const index_t row_end = end[i];
      acc_t sum[kPixels] = {};
      int count;
      do {
        const bool usable = lane < row_end - p && own_column < end_column;
        count = __popc(__ballot_sync(~0u, usable));
        const int column = static_cast<int>(own_column - from * g.taps);
        const int tap = column % g.taps;
        staged[lane] = {
            own_value,
            column / g.taps * t.channel + tap / g.kernel[1] * g.dilation[0] * t.in_cols +
                tap % g.kernel[1] * g.dilation[1]
        };
        __syncwarp();
        p += count;
        if (count == kWarp) {
          bring(p, row_end);
        } else if (next < channels) {
          bring(begin[next], end[next]);
        }
        acc_t part[kPixels] = {};  // summed apart: one long sum would lose more to rounding
        for (int q = 0; q < count; ++q) {
          const Weight<acc_t> weight = staged[q];
          const scalar_t* met = tile + weight.offset;
          FULLSPECTRUM_UNROLL
          for (int j = 0; j < kPixels; ++j) {
            part[j] += weight.value * static_cast<acc_t>(met[at[j]]);
          }
        }
        FULLSPECTRUM_UNROLL
        for (int j = 0; j < kPixels; ++j) {
          sum[j] += part[j];
        }
        __syncwarp();
      } while (count == kWarp);

      if (lane == 0) {
        begin[i] = p;
      }
      acc_t* kept = sums + i * kPixels * kWarp + lane;
      const acc_t shift = bias ? static_cast<acc_t>(bias[first_channel + i]) : acc_t{0};
      const int out_col = first_col + lane % t.cols;
      FULLSPECTRUM_UNROLL
      for (int j = 0; j < kPixels; ++j) {
        const acc_t total = from == 0 ? sum[j] : kept[j * kWarp] + sum[j];
        const int out_row = first_row + j % t.rows;
        const int64_t n = first_image + j / t.rows * across + lane / t.cols;
        if (!last) {
          kept[j * kWarp] = total;
        } else if (n < g.batch && out_row < g.out[0] && out_col < g.out[1]) {
          const int64_t pixel = static_cast<int64_t>(out_row) * g.out[1] + out_col;
          y.set(n, first_channel + i, pixel, static_cast<scalar_t>(total + shift));
        }
      }
      i = next;
    }
  }
}

// The least power of two that is not below n, at most `most`.
int power_of_two(int n, int most) {
  int power = 1;
  while (power < n && power < most) {
    power *= 2;
  }
  return power;
}

// A tile for the convolution, or none where not even one channel of it fits, or there is none.
template <typename scalar_t, typename index_t>
std::optional<Tile> tile_for(const Geometry& g, const DeviceLimits& limits) {
  using acc_t = typename Accumulator<scalar_t>::type;
  if (g.group_in == 0) {
    return std::nullopt;
  }
  Tile t{};
  t.cols = power_of_two(g.out[1], kWarp);
  t.rows = power_of_two(g.out[0], kPixels);
  const int across = kWarp / t.cols;
  t.images = across * (kPixels / t.rows);
  t.down = ceil_div(g.out[0], t.rows);
  t.right = ceil_div(g.out[1], t.cols);
  t.batch = ceil_div(g.batch, t.images);
  const auto met = [&](int d, int pixels) {
    const int64_t span =
        int64_t{pixels - 1} * g.stride[d] + int64_t{g.kernel[d] - 1} * g.dilation[d];
    return std::min<int64_t>(span + 1, limits.shared_bytes);
  };
  const int64_t in_rows = met(0, t.rows), in_cols = met(1, t.cols);
  int64_t plane = in_rows * in_cols;
  if (across > 1) {  // images t.cols apart in the banks
    plane += (t.cols - plane % kWarp + kWarp) % kWarp;
  }
  const int64_t channel_bytes = t.images * plane * static_cast<int64_t>(sizeof(scalar_t));

  // as many output channels to a block as leave every multiprocessor one
  const int64_t others = t.down * t.right * t.batch * (g.in_channels / g.group_in);
  const int64_t tiles = std::clamp<int64_t>(
      ceil_div(limits.multiprocessors, others), 1, ceil_div(g.group_out, kTileWarps)
  );
  const int64_t room = limits.shared_bytes - 128 - kTileThreads * sizeof(Weight<acc_t>);
  const int64_t sum_bytes = kPixels * kWarp * sizeof(acc_t), row_bytes = 2 * sizeof(index_t);
  int64_t out_channels = std::min<int64_t>(ceil_div(g.group_out, tiles), 512);
  t.sums = g.group_in * channel_bytes > room - out_channels * row_bytes;
  if (t.sums) {
    out_channels = std::min(out_channels, room / 3 / (sum_bytes + row_bytes));
  }
  const int64_t row_total = out_channels * (row_bytes + (t.sums ? sum_bytes : 0));
  const int64_t channels = std::min(g.group_in, (room - row_total) / channel_bytes);
  if (channels < 1) {
    return std::nullopt;
  }
  t.in_rows = static_cast<int>(in_rows);
  t.in_cols = static_cast<int>(in_cols);
  t.plane = static_cast<int>(plane);
  t.channel = static_cast<int>(t.images * plane);
  t.channels = static_cast<int>(ceil_div(g.group_in, ceil_div(g.group_in, channels)));
  t.out_channels = static_cast<int>(out_channels);
  t.out_tiles = ceil_div(g.group_out, out_channels);
  t.shared_bytes = static_cast<size_t>(
      kTileThreads * sizeof(Weight<acc_t>) + row_total + t.channels * channel_bytes
  );
  return t;
}

// ---- gradients -------------------------------------------------------------------------------

// The gradient for x: every input pixel gathers from the output pixels that it reached.
//
// A warp owns one input channel of 32 neighbouring input pixels and walks the channel's taps; the
// nonzeros of one tap lie side by side in W's transposed index, their output channels rising, so
// that those of its group are found by bisection. They are the same address for all lanes. No
// atomics; the order of additions is fixed.
//
// Launch: grid (channel tiles * pixel tiles), block 256, no shared memory. With a stride, a tap
// reaches only every stride-th pixel of a row: that share of the lanes works.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kThreads, 4) sparse_conv2d_grad_x_kernel(
    const scalar_t* __restrict__ grad,        // [batch, out channels, out height, out width]
    const scalar_t* __restrict__ value,       // [nnz]
    const index_t* __restrict__ ccol,         // [columns + 1]
    const index_t* __restrict__ row_of,       // [nnz]
    const index_t* __restrict__ permutation,  // [nnz]
    Target<scalar_t> grad_x,
    Geometry g
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t channel_tiles = ceil_div(g.in_channels, kWarps);
  const int64_t channel = blockIdx.x % channel_tiles * kWarps + threadIdx.x / kWarp;
  const int64_t position = blockIdx.x / channel_tiles * kWarp + lane;
  const int64_t n = position / g.in_pixels();
  if (channel >= g.in_channels || n >= g.batch) {
    return;
  }
  const int64_t pixel = position % g.in_pixels();
  const int64_t group = channel / g.group_in;
  const scalar_t* image = grad + n * g.out_channels * g.out_pixels();
  acc_t sum = 0;
  for (int tap = 0; tap < g.taps; ++tap) {
    // the output row and column that met this pixel with this tap, times the strides
    const int down = static_cast<int>(pixel / g.in[1]) - g.met_by(0, 0, tap / g.kernel[1]);
    const int right = static_cast<int>(pixel % g.in[1]) - g.met_by(1, 0, tap % g.kernel[1]);
    const int row = down / g.stride[0], column = right / g.stride[1];
    if (down < 0 || right < 0 || down % g.stride[0] != 0 || right % g.stride[1] != 0 ||
        row >= g.out[0] || column >= g.out[1]) {
      continue;
    }
    const scalar_t* at = image + static_cast<int64_t>(row) * g.out[1] + column;
    const int64_t entry = channel % g.group_in * g.taps + tap;
    const int64_t last = ccol[entry + 1];
    const int64_t end = first_not_below(row_of, ccol[entry], last, (group + 1) * g.group_out);
    acc_t of_tap = 0;  // summed apart: one long sum would lose more to rounding
    for (int64_t q = first_not_below(row_of, ccol[entry], end, group * g.group_out); q < end; ++q) {
      const acc_t weight = static_cast<acc_t>(value[permutation[q]]);
      of_tap += weight * static_cast<acc_t>(at[row_of[q] * g.out_pixels()]);
    }
    sum += of_tap;
  }
  grad_x.set(n, channel, pixel, static_cast<scalar_t>(sum));
}

// The gradient for the stored values only: out[p] = the sum over all output pixels of grad times
// the input pixel that tap p meets there.
//
// A warp owns one nonzero; its lanes run along the pixels of an image, and their sums are added by
// shuffles in a fixed order. No shared memory, no atomics. The row is found by bisection.
//
// Launch: grid (nonzeros / 8), block 256. Slow when an image has far fewer pixels than 32.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kThreads, 4) sparse_conv2d_grad_values_kernel(
    const scalar_t* __restrict__ grad,  // [batch, out channels, out height, out width]
    const scalar_t* __restrict__ x,     // [batch, in channels, height, width]
    const index_t* __restrict__ crow,   // [out channels + 1]
    const index_t* __restrict__ col,    // [nnz]
    scalar_t* __restrict__ out,         // [nnz]
    Geometry g
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (p >= g.nnz) {
    return;
  }
  // the first row that ends behind p
  const int64_t channel = first_not_below(crow + 1, 0, g.out_channels - 1, p + 1);
  const int64_t column = col[p];
  const int64_t plane = channel / g.group_out * g.group_in + column / g.taps;
  const int tap = static_cast<int>(column % g.taps);
  acc_t sum = 0;
  for (int64_t n = 0; n < g.batch; ++n) {
    const scalar_t* from = grad + (n * g.out_channels + channel) * g.out_pixels();
    const scalar_t* image = x + (n * g.in_channels + plane) * g.in_pixels();
    for (int64_t pixel = lane; pixel < g.out_pixels(); pixel += kWarp) {
      const int row = g.met_by(0, static_cast<int>(pixel / g.out[1]), tap / g.kernel[1]);
      const int at = g.met_by(1, static_cast<int>(pixel % g.out[1]), tap % g.kernel[1]);
      if (g.inside(row, at)) {
        const scalar_t operand = image[static_cast<int64_t>(row) * g.in[1] + at];
        sum += static_cast<acc_t>(from[pixel]) * static_cast<acc_t>(operand);
      }
    }
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(~0u, sum, distance);
  }
  if (lane == 0) {
    out[p] = static_cast<scalar_t>(sum);
  }
}

// The kernels count rows, columns and taps in 32 bits.
int narrow(const char* op, int64_t value) {
  STD_TORCH_CHECK(value <= INT32_MAX / 4, op, ": too large for the CUDA kernel, got ", value);
  return static_cast<int>(value);
}

Geometry geometry_of(const char* op, const SparseConv2dSizes& size) {
  Geometry g{};
  g.batch = size.batch;
  g.in_channels = size.in_channels;
  g.out_channels = size.out_channels;
  g.group_in = size.group_in();
  g.group_out = size.group_out();
  g.nnz = size.nnz;
  g.taps = narrow(op, size.taps());
  for (int d = 0; d < 2; ++d) {
    narrow(op, size.in[d] + 2 * size.padding[d]);
    g.in[d] = narrow(op, size.in[d]);
    g.out[d] = narrow(op, size.out[d]);
    g.kernel[d] = narrow(op, size.kernel[d]);
    g.stride[d] = narrow(op, size.stride[d]);
    g.padding[d] = narrow(op, size.padding[d]);
    g.dilation[d] = narrow(op, size.dilation[d]);
  }
  return g;
}

template <typename scalar_t>
Target<scalar_t> target_of(const Tensor& tensor) {
  const bool last = is_channels_last(tensor);
  const int64_t channels = tensor.size(1), pixels = tensor.size(2) * tensor.size(3);
  auto* data = tensor.mutable_data_ptr<scalar_t>();
  return {data, channels * pixels, last ? 1 : pixels, last ? channels : 1};
}

// The extent of a one-dimensional grid, which ends at 2^31 - 1 blocks.
dim3 grid_of(const char* op, int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, op, ": too large for one CUDA grid, ", blocks, " blocks");
  return dim3(static_cast<unsigned>(blocks));
}

// For all channels of all pixels of a tensor of images.
dim3 grid_over(const char* op, const Tensor& images) {
  const int64_t positions = images.size(0) * images.size(2) * images.size(3);
  return grid_of(op, ceil_div(images.size(1), kWarps) * ceil_div(positions, kWarp));
}

Tensor sparse_conv2d_cuda(
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    std::vector<int64_t> kernel_size,
    std::optional<Tensor> bias,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    std::vector<int64_t> dilation,
    int64_t groups,
    std::optional<Tensor>,  // the transposed index is for the derivative
    std::optional<Tensor>,
    std::optional<Tensor>
) {
  const char* op = "sparse_conv2d";
  const SparseConv2dSizes size = check_sparse_conv2d(
      x, values, crow_indices, col_indices, {kernel_size, stride, padding, dilation, groups}, bias
  );
  const DeviceScope scope(x);
  const Tensor y = new_image(x, size.out_shape(), is_channels_last(x));
  const Tensor images = torch::stable::contiguous(x), weights = torch::stable::contiguous(values);
  const std::optional<Tensor> b =
      bias ? std::make_optional(torch::stable::contiguous(*bias)) : std::nullopt;
  const Geometry geometry = geometry_of(op, size);
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      const auto* pixels = images.const_data_ptr<scalar_t>();
      const auto* value = weights.const_data_ptr<scalar_t>();
      const auto* crow = crow_indices.const_data_ptr<index_t>();
      const auto* col = col_indices.const_data_ptr<index_t>();
      const scalar_t* shift = b ? b->const_data_ptr<scalar_t>() : nullptr;
      const Target<scalar_t> target = target_of<scalar_t>(y);
      std::optional<Tile> tile;
      if (y.numel() > 0) {
        tile = tile_for<scalar_t, index_t>(geometry, device_limits(x));
      }
      if (tile) {
        launch(
            scope,
            {"sparse_conv2d_tile_kernel",
             grid_of(op, tile->blocks(size.groups)),
             dim3(kTileThreads),
             tile->shared_bytes},
            sparse_conv2d_tile_kernel<scalar_t, index_t>,
            pixels,
            value,
            crow,
            col,
            shift,
            target,
            geometry,
            *tile
        );
      } else {
        launch(
            scope,
            {"sparse_conv2d_kernel", grid_over(op, y), dim3(kThreads)},
            sparse_conv2d_kernel<scalar_t, index_t>,
            pixels,
            value,
            crow,
            col,
            shift,
            target,
            geometry
        );
      }
    });
  });
  return y;
}

std::tuple<Tensor, Tensor> sparse_conv2d_backward_cuda(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    std::vector<int64_t> kernel_size,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    std::vector<int64_t> dilation,
    int64_t groups,
    bool need_x,
    bool need_values,
    std::optional<Tensor> ccol_indices,
    std::optional<Tensor> row_indices,
    std::optional<Tensor> permutation
) {
  const char* op = "sparse_conv2d_backward";
  const SparseConv2dSizes size = check_sparse_conv2d_backward(
      grad, x, values, crow_indices, col_indices, {kernel_size, stride, padding, dilation, groups}
  );
  STD_TORCH_CHECK(
      !need_x || (ccol_indices && row_indices && permutation),
      op,
      ": the gradient for x needs the transposed index on CUDA"
  );
  const DeviceScope scope(x);
  const std::vector<int64_t> none{0}, nnz{size.nnz};
  const Tensor grad_x = need_x ? new_image(x, size.in_shape(), is_channels_last(x))
                               : torch::stable::new_empty(x, none);
  const Tensor grad_values = torch::stable::new_empty(x, need_values ? nnz : none);
  const Tensor grads = torch::stable::contiguous(grad);
  const Geometry geometry = geometry_of(op, size);
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      if (need_x) {
        const Tensor weights = torch::stable::contiguous(values);
        launch(
            scope,
            {"sparse_conv2d_grad_x_kernel", grid_over(op, grad_x), dim3(kThreads)},
            sparse_conv2d_grad_x_kernel<scalar_t, index_t>,
            grads.const_data_ptr<scalar_t>(),
            weights.const_data_ptr<scalar_t>(),
            ccol_indices->const_data_ptr<index_t>(),
            row_indices->const_data_ptr<index_t>(),
            permutation->const_data_ptr<index_t>(),
            target_of<scalar_t>(grad_x),
            geometry
        );
      }
      if (need_values) {
        const Tensor images = torch::stable::contiguous(x);
        launch(
            scope,
            {"sparse_conv2d_grad_values_kernel",
             grid_of(op, ceil_div(size.nnz, kWarps)),
             dim3(kThreads)},
            sparse_conv2d_grad_values_kernel<scalar_t, index_t>,
            grads.const_data_ptr<scalar_t>(),
            images.const_data_ptr<scalar_t>(),
            crow_indices.const_data_ptr<index_t>(),
            col_indices.const_data_ptr<index_t>(),
            grad_values.mutable_data_ptr<scalar_t>(),
            geometry
        );
      }
    });
  });
  return {grad_x, grad_values};
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) {
  m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d_cuda));
  m.impl("sparse_conv2d_backward", TORCH_BOX(&sparse_conv2d_backward_cuda));
}

}  // namespace fullspectrum
