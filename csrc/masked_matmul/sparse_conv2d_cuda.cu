#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "common/cuda_launch.h"
#include "common/dispatch.h"
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
__global__ void __launch_bounds__(kThreads) sparse_conv2d_kernel(
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

// The first entry of [begin, end) that is not below `row`.
template <typename index_t>
__device__ int64_t first_not_below(const index_t* rows, int64_t begin, int64_t end, int64_t row) {
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (rows[middle] < row) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

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
__global__ void __launch_bounds__(kThreads) sparse_conv2d_grad_x_kernel(
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
    for (int64_t q = first_not_below(row_of, ccol[entry], end, group * g.group_out); q < end; ++q) {
      const acc_t weight = static_cast<acc_t>(value[permutation[q]]);
      sum += weight * static_cast<acc_t>(at[row_of[q] * g.out_pixels()]);
    }
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
__global__ void __launch_bounds__(kThreads) sparse_conv2d_grad_values_kernel(
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
      launch(
          scope,
          {"sparse_conv2d_kernel", grid_over(op, y), dim3(kThreads)},
          sparse_conv2d_kernel<scalar_t, index_t>,
          images.const_data_ptr<scalar_t>(),
          weights.const_data_ptr<scalar_t>(),
          crow_indices.const_data_ptr<index_t>(),
          col_indices.const_data_ptr<index_t>(),
          b ? b->const_data_ptr<scalar_t>() : static_cast<const scalar_t*>(nullptr),
          target_of<scalar_t>(y),
          geometry
      );
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
