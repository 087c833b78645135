#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/dispatch.h"
#include "masked_matmul/sparse_conv2d_cuda.h"
#include "masked_matmul/sparse_conv2d_lists_cuda.h"
#include "masked_matmul/sparse_conv2d_tiles_cuda.h"

// Images times a sparse matrix. The same two kernels compute y from x and W, and the gradient for x
// from grad and W^T: see Meeting. They walk lists of nonzeros, one for each target channel and
// phase: for y these are W's rows; for the gradient they are made from W's transposed index.

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

// An image tensor [batch, channels, height, width] to write to, in either order of memory.
template <typename scalar_t>
struct Target {
  scalar_t* data;
  int64_t batch_stride, channel_stride, pixel_stride;

  __device__ void set(int64_t n, int64_t channel, int64_t pixel, scalar_t value) const {
    data[n * batch_stride + channel * channel_stride + pixel * pixel_stride] = value;
  }
};

// ---- without a tile ---------------------------------------------------------------------------

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// The product, for geometry of which no tile fits into shared memory.
//
// A warp owns one target channel of 32 neighbouring target pixels of one phase (of one image after
// the other), so that its loads lie side by side where `step` is 1. It walks the list's nonzeros 32
// at a time: each lane takes one apart, then all of them use it, passed on by shuffles. Every sum
// is one thread's own: the order of additions is fixed.
//
// Launch: grid (channel tiles * pixel tiles * phases), block 256, no shared memory. Slow when few
// lists are much longer than the rest (their block finishes last).
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kThreads, 4) sparse_conv2d_kernel(
    const scalar_t* __restrict__ source,  // [batch, source channels, height, width]
    Lists<scalar_t, index_t> lists,
    const scalar_t* __restrict__ bias,  // [target channels] or null
    Target<scalar_t> target,
    Meeting g
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int channel_tiles = static_cast<int>(ceil_div(g.target_channels, kWarps));
  int block = static_cast<int>(blockIdx.x);
  const int channel = block % channel_tiles * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  block /= channel_tiles;
  if (channel >= g.target_channels) {
    return;
  }
  const int phase = block % g.all_phases();
  const int phase_row = phase / g.phases[1], phase_col = phase % g.phases[1];
  const int64_t position = int64_t{block / g.all_phases()} * kWarp + lane;
  const int col = static_cast<int>(position % g.phase_pixels(1));
  const int row = static_cast<int>(position / g.phase_pixels(1) % g.phase_pixels(0));
  const int64_t n = position / g.phase_pixels(1) / g.phase_pixels(0);
  const int target_row = row * g.every[0] + phase_row, target_col = col * g.every[1] + phase_col;
  const bool exists = n < g.batch && target_row < g.target[0] && target_col < g.target[1];
  const int top = row * g.step[0], left = col * g.step[1];
  const int first_channel = channel / g.group_target * g.group_source;
  const scalar_t* image =
      source + ((exists ? n : 0) * g.source_channels + first_channel) * g.source_pixels();

  acc_t sum = bias ? static_cast<acc_t>(bias[channel]) : acc_t{0};
  const int list = phase * g.target_channels + channel;
  const int64_t end = lists.end[list];
  for (int64_t first = lists.begin[list]; first < end; first += kWarp) {
    const int64_t p = first + lane < end ? first + lane : end - 1;
    const int column = static_cast<int>(lists.column[p]);
    const int tap = column % g.taps, own_plane = column / g.taps;
    const int own_down = g.first_met(0, phase_row, tap / g.kernel[1]);
    const int own_right = g.first_met(1, phase_col, tap % g.kernel[1]);
    const acc_t own_weight = static_cast<acc_t>(lists.value[p]);
    const int count = end - first < kWarp ? static_cast<int>(end - first) : kWarp;
    acc_t part = 0;  // summed apart: one long sum would lose more to rounding
    for (int q = 0; q < count; ++q) {
      const int plane = __shfl_sync(~0u, own_plane, q);
      const int y = top + __shfl_sync(~0u, own_down, q);
      const int x = left + __shfl_sync(~0u, own_right, q);
      const acc_t weight = __shfl_sync(~0u, own_weight, q);
      if (exists && g.inside(y, x)) {
        const int64_t at = plane * g.source_pixels() + static_cast<int64_t>(y) * g.source[1] + x;
        part += weight * static_cast<acc_t>(image[at]);
      }
    }
    sum += part;
  }
  if (exists) {
    const int64_t pixel = static_cast<int64_t>(target_row) * g.target[1] + target_col;
    target.set(n, channel, pixel, static_cast<scalar_t>(sum));
  }
}

// ---- from tiles -------------------------------------------------------------------------------

// A nonzero as the inner loop reads it.
template <typename acc_t>
struct alignas(2 * sizeof(acc_t)) Weight {
  acc_t value;
  int offset;  // of its channel and tap in the tile
};

struct ProductPlan {
  Tile tile;
  bool sums;  // kept in shared memory from one part of the source channels to the next
};

// The product.
//
// A block stages the source pixels that its target pixels meet, of as many channels as fit; its
// warps take the target channels one by one as they get free. A warp brings 32 nonzeros at a time
// into shared memory (coalesced, the next while it works on these); for each, a lane reads one
// source pixel for each of its 8 targets. Lanes lie along a row of the image, and along images
// where that is short: images start cols apart in the banks, so that with a step of 1 the reads do
// not collide. The bound is shared memory: 9 reads for 8 multiply-adds of a warp. A target's sum is
// one lane's own, in the order of its nonzeros.
//
// Launch: grid (tiles * channel tiles * groups * phases), block 512, dynamic shared memory as
// planned. With a step of 2, two reads share a bank; with images whose sides are far from powers of
// two, lanes are idle.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kTileThreads, 1) sparse_conv2d_tile_kernel(
    const scalar_t* __restrict__ source,  // [batch, source channels, height, width]
    Lists<scalar_t, index_t> lists,
    const scalar_t* __restrict__ bias,  // [target channels] or null
    Target<scalar_t> target,
    Meeting g,
    ProductPlan plan
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const Tile& t = plan.tile;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  int block = static_cast<int>(blockIdx.x);
  const int channel_tile = block % t.channel_tiles;
  block /= t.channel_tiles;
  const int group = block % g.groups;
  block /= g.groups;
  const int phase = block / t.count;
  const int phase_row = phase / g.phases[1], phase_col = phase % g.phases[1];
  const Corner corner(t, block % t.count);
  const int first_channel = group * g.group_target + channel_tile * t.target_channels;
  const int channels = min(t.target_channels, (group + 1) * g.group_target - first_channel);

  FULLSPECTRUM_DYNAMIC_SHARED(Weight<acc_t>, staged);               // [kTileThreads]
  auto* begin = reinterpret_cast<index_t*>(staged + kTileThreads);  // [target_channels], what is
  index_t* end = begin + t.target_channels;                         // to come of each
  auto* sums = reinterpret_cast<acc_t*>(end + t.target_channels);   // [target_channels][pixels]
  auto* table =
      reinterpret_cast<int*>(sums + (plan.sums ? t.target_channels * kPixels * kWarp : 0));
  auto* tile = reinterpret_cast<scalar_t*>(table + tap_table_size(g));
  __shared__ int next_channel;
  staged += warp * kWarp;
  for (int i = thread; i < channels; i += kTileThreads) {
    begin[i] = lists.begin[phase * g.target_channels + first_channel + i];
    end[i] = lists.end[phase * g.target_channels + first_channel + i];
  }
  fill_tap_table(g, t, phase_row, phase_col, table);

  // where a lane's first pixel starts; from there to the others is as far for all lanes
  const int start = t.start_of(g, 0, lane);
  int further[kPixels];
  FULLSPECTRUM_UNROLL
  for (int j = 0; j < kPixels; ++j) {
    further[j] = t.start_of(g, j, 0);
  }

  for (int from = 0; from < g.group_source; from += t.channels) {
    const int here = min(t.channels, g.group_source - from);
    __syncthreads();  // the channels before are not needed any more
    stage_tile(
        source, g, t, corner, phase_row, phase_col, group * g.group_source + from, here, tile
    );
    if (thread == 0) {
      next_channel = kTileWarps;
    }
    __syncthreads();

    const bool last = from + t.channels >= g.group_source;
    const auto end_column = static_cast<index_t>((from + here) * g.taps);
    index_t own_column = 0;
    acc_t own_value = 0;
    const auto bring = [&](index_t p, index_t to) {
      if (lane < to - p) {
        own_column = lists.column[p + lane];
        own_value = static_cast<acc_t>(lists.value[p + lane]);
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
      const index_t list_end = end[i];
      acc_t sum[kPixels] = {};
      int count;
      do {
        const bool usable = lane < list_end - p && own_column < end_column;
        count = __popc(__ballot_sync(~0u, usable));
        if (usable) {
          const int column = static_cast<int>(own_column - from * g.taps);
          staged[lane] = {own_value, column / g.taps * t.channel() + table[column % g.taps]};
        }
        __syncwarp();
        p += count;
        if (count == kWarp) {
          bring(p, list_end);
        } else if (next < channels) {
          bring(begin[next], end[next]);
        }
        acc_t part[kPixels] = {};  // summed apart: one long sum would lose more to rounding
        for (int q = 0; q < count; ++q) {
          const Weight<acc_t> weight = staged[q];
          const scalar_t* met = tile + (start + weight.offset);
          FULLSPECTRUM_UNROLL
          for (int j = 0; j < kPixels; ++j) {
            part[j] += weight.value * static_cast<acc_t>(met[further[j]]);
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
      const int col = (corner.col + t.col_of(lane)) * g.every[1] + phase_col;
      FULLSPECTRUM_UNROLL
      for (int j = 0; j < kPixels; ++j) {
        const acc_t total = from == 0 ? sum[j] : kept[j * kWarp] + sum[j];
        const int row = (corner.row + t.row_of(j)) * g.every[0] + phase_row;
        const int64_t n = corner.image + t.image_of(j, lane);
        if (!last) {
          kept[j * kWarp] = total;
        } else if (n < g.batch && row < g.target[0] && col < g.target[1]) {
          const int64_t pixel = static_cast<int64_t>(row) * g.target[1] + col;
          target.set(n, first_channel + i, pixel, static_cast<scalar_t>(total + shift));
        }
      }
      i = next;
    }
  }
}

// The plan of least cost in clocks of shared memory, or none where not even one channel fits or
// there is none: 9 a nonzero (see the kernel), about 32 a target channel and part of the source
// channels, and the staging. More target channels to a block share the staging; fewer give every
// multiprocessor something to do.
template <typename scalar_t, typename index_t>
std::optional<ProductPlan> product_plan(const Meeting& g, int64_t nnz, const DeviceLimits& limits) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t room =
      limits.shared_bytes - kStaticShared -
      static_cast<int64_t>(kTileThreads * sizeof(Weight<acc_t>) + tap_table_size(g) * sizeof(int));
  const std::optional<Tile> tile = tile_over(g, room / static_cast<int64_t>(sizeof(scalar_t)));
  if (!tile || g.group_source == 0) {
    return std::nullopt;
  }
  const int64_t channel_bytes = tile->channel() * static_cast<int64_t>(sizeof(scalar_t));
  const double nonzeros =
      static_cast<double>(nnz) / static_cast<double>(int64_t{g.target_channels} * g.all_phases());
  std::optional<ProductPlan> best;
  double least = 0;
  for (int64_t tiles = 1; tiles <= ceil_div(g.group_target, kTileWarps); ++tiles) {
    const int64_t target_channels = ceil_div(g.group_target, tiles);
    int64_t lists_bytes = target_channels * 2 * static_cast<int64_t>(sizeof(index_t));
    const bool sums = g.group_source * channel_bytes > room - lists_bytes;
    if (sums) {
      lists_bytes += target_channels * kPixels * kWarp * static_cast<int64_t>(sizeof(acc_t));
    }
    const int64_t fitting = std::min<int64_t>((room - lists_bytes) / channel_bytes, g.group_source);
    if (target_channels > kMostChannels || fitting < 1) {
      continue;
    }
    const int64_t parts = ceil_div(g.group_source, fitting);
    const int64_t blocks = tiles * g.groups * g.all_phases() * tile->count;
    const double cost =
        static_cast<double>(ceil_div(blocks, limits.multiprocessors)) *
        (static_cast<double>(target_channels) *
             (9.0 * nonzeros + 32.0 * static_cast<double>(parts)) +
         kStagingClocks / kWarp * static_cast<double>(int64_t{g.group_source} * tile->channel()));
    if (!best || cost < least) {
      least = cost;
      best = ProductPlan{*tile, sums};
      Tile& t = best->tile;
      t.channels = static_cast<int>(ceil_div(g.group_source, parts));
      t.target_channels = static_cast<int>(target_channels);
      t.channel_tiles = static_cast<int>(tiles);
      t.shared_bytes = static_cast<size_t>(
          limits.shared_bytes - kStaticShared - room + lists_bytes + t.channels * channel_bytes
      );
    }
  }
  return best;
}

template <typename scalar_t>
Target<scalar_t> target_of(const Tensor& tensor) {
  const bool last = is_channels_last(tensor);
  const int64_t channels = tensor.size(1), pixels = tensor.size(2) * tensor.size(3);
  auto* data = tensor.mutable_data_ptr<scalar_t>();
  return {data, channels * pixels, last ? 1 : pixels, last ? channels : 1};
}

template <typename scalar_t, typename index_t>
void launch_product(
    const char* op,
    const DeviceScope& scope,
    const Meeting& g,
    const Tensor& source,
    const Lists<scalar_t, index_t>& lists,
    int64_t nnz,
    const scalar_t* bias,
    const Tensor& target
) {
  if (target.numel() == 0) {
    return;
  }
  const auto* pixels = source.const_data_ptr<scalar_t>();
  const auto plan = product_plan<scalar_t, index_t>(g, nnz, device_limits(source));
  const int64_t outer = int64_t{g.groups} * g.all_phases();
  if (plan) {
    launch(
        scope,
        {"sparse_conv2d_tile_kernel",
         grid_of(op, outer * plan->tile.channel_tiles * plan->tile.count),
         dim3(kTileThreads),
         plan->tile.shared_bytes},
        sparse_conv2d_tile_kernel<scalar_t, index_t>,
        pixels,
        lists,
        bias,
        target_of<scalar_t>(target),
        g,
        *plan
    );
  } else {
    const int64_t positions = g.batch * g.phase_pixels(0) * g.phase_pixels(1);
    const int64_t blocks =
        ceil_div(g.target_channels, kWarps) * ceil_div(positions, kWarp) * g.all_phases();
    launch(
        scope,
        {"sparse_conv2d_kernel", grid_of(op, blocks), dim3(kThreads)},
        sparse_conv2d_kernel<scalar_t, index_t>,
        pixels,
        lists,
        bias,
        target_of<scalar_t>(target),
        g
    );
  }
}

}  // namespace

void sparse_conv2d_product(
    const char* op,
    const DeviceScope& scope,
    const Meeting& meeting,
    const Tensor& x,
    const Tensor& values,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const std::optional<Tensor>& bias,
    const Tensor& y
) {
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      const auto* crow = crow_indices.const_data_ptr<index_t>();
      const Lists<scalar_t, index_t> rows{
          crow, crow + 1, col_indices.const_data_ptr<index_t>(), values.const_data_ptr<scalar_t>()
      };
      const scalar_t* shift = bias ? bias->const_data_ptr<scalar_t>() : nullptr;
      launch_product(op, scope, meeting, x, rows, values.numel(), shift, y);
    });
  });
}

void sparse_conv2d_transposed_product(
    const char* op,
    const DeviceScope& scope,
    const Meeting& meeting,
    const Tensor& grad,
    const Tensor& values,
    const Tensor& ccol_indices,
    const Tensor& row_indices,
    const Tensor& permutation,
    const Tensor& grad_x
) {
  const int64_t lists = int64_t{meeting.all_phases()} * meeting.target_channels;
  const int64_t nnz = values.numel();
  const std::vector<int64_t> bounds_shape{2 * lists}, listed_shape{nnz};
  const Tensor bounds = torch::stable::new_empty(ccol_indices, bounds_shape);
  const Tensor columns = torch::stable::new_empty(ccol_indices, listed_shape);
  const Tensor listed = torch::stable::new_empty(values, listed_shape);
  dispatch_floating(grad.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    dispatch_index(ccol_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      auto* begin = bounds.mutable_data_ptr<index_t>();
      auto* column = columns.mutable_data_ptr<index_t>();
      auto* value = listed.mutable_data_ptr<scalar_t>();
      launch(
          scope,
          {"sparse_conv2d_lists_kernel",
           grid_of(op, ceil_div(std::max(nnz, lists), kListThreads)),
           dim3(kListThreads)},
          sparse_conv2d_lists_kernel<scalar_t, index_t>,
          values.const_data_ptr<scalar_t>(),
          ccol_indices.const_data_ptr<index_t>(),
          row_indices.const_data_ptr<index_t>(),
          permutation.const_data_ptr<index_t>(),
          begin,
          begin + lists,
          column,
          value,
          meeting,
          nnz
      );
      const Lists<scalar_t, index_t> by_channel{begin, begin + lists, column, value};
      launch_product<scalar_t, index_t>(op, scope, meeting, grad, by_channel, nnz, nullptr, grad_x);
    });
  });
}

}  // namespace fullspectrum
