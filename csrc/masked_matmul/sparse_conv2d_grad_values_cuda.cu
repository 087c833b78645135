#include <algorithm>
#include <optional>

#include "common/dispatch.h"
#include "common/first_not_below.h"
#include "masked_matmul/cuda_slices.h"
#include "masked_matmul/cuda_spans.h"
#include "masked_matmul/sparse_conv2d_cuda.h"
#include "masked_matmul/sparse_conv2d_tiles_cuda.h"

// The gradient for the stored values: for nonzero p, which joins pixels of x with pixels of y, the
// sum over these pairs, of all images, of x's times grad's. No other entry of the dense gradient is
// computed.

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

// ---- without a tile ---------------------------------------------------------------------------

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// The gradient, for geometry of which no tile fits into shared memory.
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
    Meeting g,
    int64_t nnz
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (p >= nnz) {
    return;
  }
  // the first row that ends behind p
  const int channel = static_cast<int>(first_not_below(crow + 1, 0, g.target_channels - 1, p + 1));
  const int column = static_cast<int>(col[p]);
  const int plane = channel / g.group_target * g.group_source + column / g.taps;
  const int tap = column % g.taps;
  const int top = g.first_met(0, 0, tap / g.kernel[1]);
  const int left = g.first_met(1, 0, tap % g.kernel[1]);
  acc_t sum = 0;
  for (int64_t n = 0; n < g.batch; ++n) {
    const scalar_t* from = grad + (n * g.target_channels + channel) * g.target_pixels();
    const scalar_t* image = x + (n * g.source_channels + plane) * g.source_pixels();
    acc_t part = 0;  // summed apart: one long sum would lose more to rounding
    for (int64_t pixel = lane; pixel < g.target_pixels(); pixel += kWarp) {
      const int y = top + static_cast<int>(pixel / g.target[1]) * g.step[0];
      const int at = left + static_cast<int>(pixel % g.target[1]) * g.step[1];
      if (g.inside(y, at)) {
        const scalar_t met = image[static_cast<int64_t>(y) * g.source[1] + at];
        part += static_cast<acc_t>(from[pixel]) * static_cast<acc_t>(met);
      }
    }
    sum += part;
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(~0u, sum, distance);
  }
  if (lane == 0) {
    out[p] = static_cast<scalar_t>(sum);
  }
}

// ---- from tiles -------------------------------------------------------------------------------

struct SampledPlan {
  Tile tile;
  int parts;   // of a group's source channels
  int slices;  // of the tiles
};

// The gradient. Each block sums over the tiles of its slice, for the nonzeros that join its target
// channels with its part of the source channels, and leaves what it has in its slice of `sampled`.
//
// A block stages the pixels of x that a tile meets; its warps take the target channels one by one
// as they get free. A lane holds grad at its 8 pixels in registers. A warp brings 32 nonzeros at a
// time into shared memory (coalesced, the next while it works on these); for each, a lane reads the
// 8 pixels of x and multiplies; then the lanes' sums of 8 nonzeros are added together, 9 shuffles
// for all. The bound is shared memory: about 10 reads and shuffles for 8 multiply-adds of a warp.
// The order of additions is fixed: a tile's 256 products, then tile after tile of the slice.
//
// Launch: grid (channel tiles * parts * groups * slices), block 512, dynamic shared memory as
// planned. As in the product, a step of 2 makes two reads share a bank. Each tile reads and writes
// all partial sums once: that tells where a tile has few pixels.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kTileThreads, 1) sparse_conv2d_grad_values_tile_kernel(
    const scalar_t* __restrict__ grad,  // [batch, out channels, out height, out width]
    const scalar_t* __restrict__ x,     // [batch, in channels, height, width]
    const index_t* __restrict__ crow,   // [out channels + 1]
    const index_t* __restrict__ col,    // [nnz], rising within each row
    typename Accumulator<scalar_t>::type* __restrict__ sampled,  // [slices, nnz]
    Meeting g,
    SampledPlan plan,
    int64_t nnz
) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const Tile& t = plan.tile;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  int block = static_cast<int>(blockIdx.x);
  const int channel_tile = block % t.channel_tiles;
  block /= t.channel_tiles;
  const int from = block % plan.parts * t.channels;
  block /= plan.parts;
  const int group = block % g.groups, slice = block / g.groups;
  const int here = min(t.channels, g.group_source - from);
  const int first_channel = group * g.group_target + channel_tile * t.target_channels;
  const int channels = min(t.target_channels, (group + 1) * g.group_target - first_channel);

  FULLSPECTRUM_DYNAMIC_SHARED(int, staged);                         // [kTileThreads]
  auto* begin = reinterpret_cast<index_t*>(staged + kTileThreads);  // [target_channels], of the
  index_t* end = begin + t.target_channels;                         // nonzeros of this part
  auto* table = reinterpret_cast<int*>(end + t.target_channels);
  auto* tile = reinterpret_cast<scalar_t*>(table + tap_table_size(g));
  __shared__ int64_t from_first[kPixels];  // of a lane to its j-th, in grad
  __shared__ int next_channel;
  staged += warp * kWarp;
  sampled += slice * nnz;
  for (int i = thread; i < channels; i += kTileThreads) {
    const index_t first = crow[first_channel + i], last = crow[first_channel + i + 1];
    const int64_t of_part = first_not_below(col, first, last, from * g.taps);
    begin[i] = static_cast<index_t>(of_part);
    end[i] = static_cast<index_t>(first_not_below(col, of_part, last, (from + here) * g.taps));
  }
  fill_tap_table(g, t, 0, 0, table);
  const int64_t image_pixels = g.target_channels * g.target_pixels();
  if (thread < kPixels) {
    from_first[thread] = t.image_of(thread, 0) * image_pixels + t.row_of(thread) * g.target[1];
  }

  for (int at = slice; at < t.count; at += plan.slices) {
    const Corner corner(t, at);
    __syncthreads();  // the tile before is not needed any more
    stage_tile(x, g, t, corner, 0, 0, group * g.group_source + from, here, tile);
    if (thread == 0) {
      next_channel = kTileWarps;
    }
    __syncthreads();

    // Where the lane's pixels start, in bytes: an address is then one addition. A pixel that does
    // not exist reads what the tile's first meets, times 0.
    int start[kPixels];
    unsigned exist = 0;
    FULLSPECTRUM_UNROLL
    for (int j = 0; j < kPixels; ++j) {
      const bool exists = corner.image + t.image_of(j, lane) < g.batch &&
                          corner.row + t.row_of(j) < g.target[0] &&
                          corner.col + t.col_of(lane) < g.target[1];
      start[j] = exists ? t.start_of(g, j, lane) * static_cast<int>(sizeof(scalar_t)) : 0;
      exist |= static_cast<unsigned>(exists) << j;
    }
    // where its first pixel lies in channel 0
    const int64_t pixel = (corner.image + t.image_of(0, lane)) * image_pixels +
                          int64_t{corner.row} * g.target[1] + corner.col + t.col_of(lane);
    int own_column = 0;
    const auto bring = [&](index_t p, int count) {
      if (lane < count) {
        own_column = static_cast<int>(col[p + lane] - from * g.taps);
      }
    };
    int i = warp;
    if (i < channels) {
      bring(begin[i], static_cast<int>(end[i] - begin[i]));
    }
    while (i < channels) {
      int next = lane == 0 ? atomicAdd(&next_channel, 1) : 0;
      next = __shfl_sync(~0u, next, 0);
      const index_t first = begin[i];
      const int count = static_cast<int>(end[i] - first);
      acc_t strip[kPixels] = {};
      if (count > 0) {
        const scalar_t* plane = grad + (first_channel + i) * g.target_pixels();
        FULLSPECTRUM_UNROLL
        for (int j = 0; j < kPixels; ++j) {
          if (exist >> j & 1) {
            strip[j] = static_cast<acc_t>(plane[pixel + from_first[j]]);
          }
        }
      }
      int done = 0;
      do {
        const bool usable = lane < count - done;
        staged[lane] = usable ? own_column / g.taps * t.channel() + table[own_column % g.taps] : 0;
        __syncwarp();
        acc_t* out = sampled + first + done + lane;
        const acc_t before = usable && at != slice ? *out : acc_t{0};
        const int left = count - done;
        done += kWarp;
        if (done < count) {
          bring(first + done, count - done);
        } else if (next < channels) {
          bring(begin[next], static_cast<int>(end[next] - begin[next]));
        }
        acc_t own = 0;
        const int steps = (min(left, kWarp) + kQuarter - 1) / kQuarter;
        for (int step = 0; step < steps; ++step) {
          acc_t part[kQuarter];
          FULLSPECTRUM_UNROLL
          for (int q = 0; q < kQuarter; ++q) {
            const auto* met =
                reinterpret_cast<const unsigned char*>(tile + staged[step * kQuarter + q]);
            part[q] = 0;
            FULLSPECTRUM_UNROLL
            for (int j = 0; j < kPixels; ++j) {
              const auto* at_pixel = reinterpret_cast<const scalar_t*>(met + start[j]);
              part[q] += strip[j] * static_cast<acc_t>(*at_pixel);
            }
          }
          acc_t sum = transposed_sum(part);
          sum += __shfl_xor_sync(~0u, sum, kQuarter);
          sum += __shfl_xor_sync(~0u, sum, 2 * kQuarter);
          own = lane / kQuarter == step ? sum : own;
        }
        if (usable) {
          *out = before + own;
        }
        __syncwarp();
      } while (done < count);
      i = next;
    }
  }
}

// The plan of least cost in clocks of shared memory, or none where not even one channel fits or
// there is none: 10 a nonzero (see the kernel), about 48 a target channel with its strip, and the
// staging, for each tile. Slices of the tiles give work to multiprocessors that would have none.
template <typename scalar_t, typename index_t>
std::optional<SampledPlan> sampled_plan(const Meeting& g, int64_t nnz, const DeviceLimits& limits) {
  const int64_t room = limits.shared_bytes - kStaticShared -
                       static_cast<int64_t>((kTileThreads + tap_table_size(g)) * sizeof(int));
  const std::optional<Tile> tile = tile_over(g, room / static_cast<int64_t>(sizeof(scalar_t)));
  if (!tile || g.group_source == 0) {
    return std::nullopt;
  }
  const int64_t channel_bytes = tile->channel() * static_cast<int64_t>(sizeof(scalar_t));
  const double nonzeros = static_cast<double>(nnz) / static_cast<double>(g.target_channels);
  std::optional<SampledPlan> best;
  double least = 0;
  for (int64_t tiles = 1; tiles <= ceil_div(g.group_target, kTileWarps); ++tiles) {
    const int64_t target_channels = ceil_div(g.group_target, tiles);
    const int64_t rows_bytes = target_channels * 2 * static_cast<int64_t>(sizeof(index_t));
    const int64_t fitting = std::min<int64_t>((room - rows_bytes) / channel_bytes, g.group_source);
    if (target_channels > kMostChannels || fitting < 1) {
      continue;
    }
    const int64_t parts = ceil_div(g.group_source, fitting);
    const int64_t channels = ceil_div(g.group_source, parts);
    const int64_t blocks = tiles * parts * g.groups;
    const int64_t slices = std::clamp<int64_t>(limits.multiprocessors / blocks, 1, tile->count);
    const int64_t rounds =
        ceil_div(blocks * slices, limits.multiprocessors) * ceil_div(tile->count, slices);
    const double cost = static_cast<double>(rounds) *
                        (static_cast<double>(target_channels) *
                             (10.0 * nonzeros / static_cast<double>(parts) + 48.0) +
                         kStagingClocks / kWarp * static_cast<double>(channels * tile->channel()));
    if (!best || cost < least) {
      least = cost;
      best = SampledPlan{*tile, static_cast<int>(parts), static_cast<int>(slices)};
      Tile& t = best->tile;
      t.channels = static_cast<int>(channels);
      t.target_channels = static_cast<int>(target_channels);
      t.channel_tiles = static_cast<int>(tiles);
      t.shared_bytes = static_cast<size_t>(
          limits.shared_bytes - kStaticShared - room + rows_bytes + channels * channel_bytes
      );
    }
  }
  return best;
}

template <typename scalar_t, typename index_t>
void launch_grad_values(
    const char* op,
    const DeviceScope& scope,
    const Meeting& g,
    const Tensor& grad,
    const Tensor& x,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const Tensor& grad_values
) {
  const int64_t nnz = grad_values.numel();
  if (nnz == 0) {
    return;
  }
  const auto* grads = grad.const_data_ptr<scalar_t>();
  const auto* pixels = x.const_data_ptr<scalar_t>();
  const auto* crow = crow_indices.const_data_ptr<index_t>();
  const auto* col = col_indices.const_data_ptr<index_t>();
  std::optional<SampledPlan> plan;
  if (grad.numel() > 0) {
    plan = sampled_plan<scalar_t, index_t>(g, nnz, device_limits(x));
  }
  if (!plan) {
    launch(
        scope,
        {"sparse_conv2d_grad_values_kernel", grid_of(op, ceil_div(nnz, kWarps)), dim3(kThreads)},
        sparse_conv2d_grad_values_kernel<scalar_t, index_t>,
        grads,
        pixels,
        crow,
        col,
        grad_values.mutable_data_ptr<scalar_t>(),
        g,
        nnz
    );
    return;
  }
  const index_t* in_order = nullptr;
  const int64_t blocks = int64_t{plan->tile.channel_tiles} * plan->parts * g.groups * plan->slices;
  sum_in_slices<scalar_t>(op, scope, plan->slices, in_order, grad_values, [&](auto* sampled) {
    launch(
        scope,
        {"sparse_conv2d_grad_values_tile_kernel",
         grid_of(op, blocks),
         dim3(kTileThreads),
         plan->tile.shared_bytes},
        sparse_conv2d_grad_values_tile_kernel<scalar_t, index_t>,
        grads,
        pixels,
        crow,
        col,
        sampled,
        g,
        *plan,
        nnz
    );
  });
}

}  // namespace

void sparse_conv2d_grad_values(
    const char* op,
    const DeviceScope& scope,
    const Meeting& meeting,
    const Tensor& grad,
    const Tensor& x,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const Tensor& grad_values
) {
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
      launch_grad_values<typename decltype(tag)::type, typename decltype(index_tag)::type>(
          op, scope, meeting, grad, x, crow_indices, col_indices, grad_values
      );
    });
  });
}

}  // namespace fullspectrum
