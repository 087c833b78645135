#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "common/ceil_div.h"
#include "common/compute_dtype.h"
#include "common/cpu_features.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "masked_matmul/conv_kernels.h"
#include "masked_matmul/conv_plan.h"
#include "masked_matmul/sparse_conv2d.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

thread_local Scratch scratch;

// How the kernels see an element: float16 and bfloat16 by their bits, computed in float.
template <typename scalar_t>
struct Element {
  using stored = scalar_t;
  using computed = scalar_t;
};
template <>
struct Element<Half> {
  using stored = Float16Bits;
  using computed = float;
};
template <>
struct Element<BFloat16> {
  using stored = BFloat16Bits;
  using computed = float;
};

template <typename scalar_t>
using stored_t = typename Element<scalar_t>::stored;
template <typename scalar_t>
using computed_t = typename Element<scalar_t>::computed;

template <typename scalar_t>
struct Kernels {
  ConvKernels<computed_t<scalar_t>> compute;
  ConvPacking<stored_t<scalar_t>, computed_t<scalar_t>> packing;
};

template <typename scalar_t>
Kernels<scalar_t> active_kernels() {
  using S = stored_t<scalar_t>;
  using T = computed_t<scalar_t>;
  return {FULLSPECTRUM_ACTIVE(conv_kernels<T>()), FULLSPECTRUM_ACTIVE(conv_packing<S, T>())};
}

// A column out of range or an offset that decreases would read foreign memory.
template <typename index_t>
void check_indices(
    const char* op, const index_t* crow, const index_t* col, const SparseConv2dSizes& size
) {
  bool falls = crow[0] != 0 || crow[size.out_channels] != size.nnz;
  for (int64_t r = 0; r < size.out_channels; ++r) {
    falls |= crow[r] > crow[r + 1];
  }
  STD_TORCH_CHECK(!falls, op, ": crow_indices must rise from 0 to nnz = ", size.nnz);
  const int64_t cols = size.cols();
  bool outside = false;
  for (int64_t p = 0; p < size.nnz; ++p) {
    outside |= (col[p] < 0) | (col[p] >= cols);
  }
  if (outside) {
    const index_t* wrong =
        std::find_if(col, col + size.nnz, [&](index_t c) { return c < 0 || c >= cols; });
    STD_TORCH_CHECK(false, op, ": col_indices must lie in [0, ", cols, "), got ", *wrong);
  }
}

// ---- images and panels -------------------------------------------------------------------------

// An image tensor's memory: in torch's default order or with the channels innermost.
template <typename S>
struct Images {
  S* data;
  bool channels_last;
  int64_t channels;
  int64_t bytes;
};

// A contiguous or channels-last tensor of the same values.
Tensor stored_whole(const Tensor& tensor) {
  return is_channels_last(tensor) ? tensor : torch::stable::contiguous(tensor);
}

template <typename scalar_t>
int64_t bytes_of(const Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(sizeof(scalar_t));
}

template <typename scalar_t>
Images<const stored_t<scalar_t>> images_of(const Tensor& tensor) {
  const auto* data = reinterpret_cast<const stored_t<scalar_t>*>(tensor.const_data_ptr<scalar_t>());
  return {data, is_channels_last(tensor), tensor.size(1), bytes_of<scalar_t>(tensor)};
}

template <typename scalar_t>
Images<stored_t<scalar_t>> mutable_images_of(const Tensor& tensor) {
  auto* data = reinterpret_cast<stored_t<scalar_t>*>(tensor.mutable_data_ptr<scalar_t>());
  return {data, is_channels_last(tensor), tensor.size(1), bytes_of<scalar_t>(tensor)};
}

template <typename S>
Bands<S> bands_of(
    const Images<S>& images,
    const BandedImage& shape,
    const ConvPanels& panels,
    int64_t batch,
    int64_t panel,
    int64_t first_channel
) {
  const int64_t pixels = shape.height * shape.width;
  Bands<S> bands{};
  bands.all_begin = 0;
  bands.all_end = shape.rows * shape.width;
  for (int64_t lane = 0; lane < panels.lanes; ++lane) {
    const int64_t index = panel * panels.lanes + lane;
    const int64_t n = index / panels.bands, band = index % panels.bands;
    if (n >= batch) {
      bands.image[lane] = images.data;
      bands.all_end = 0;
      continue;
    }
    const int64_t channel_stride = images.channels_last ? 1 : pixels;
    bands.image[lane] = images.data + n * images.channels * pixels + first_channel * channel_stride;
    const int64_t first = (shape.first_row + band * shape.row_step) * shape.width;
    bands.first[lane] = first;
    bands.valid_begin[lane] = std::max<int64_t>(0, -first);
    bands.valid_end[lane] = std::min(shape.rows * shape.width, pixels - first);
    bands.all_begin = std::max(bands.all_begin, bands.valid_begin[lane]);
    bands.all_end = std::min(bands.all_end, bands.valid_end[lane]);
  }
  return bands;
}

// Results from this size on leave the caches before anyone reads them.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

template <typename S>
PanelLayout layout_of(const Images<S>& images, const BandedImage& shape) {
  PanelLayout layout{};
  layout.channel_stride = images.channels_last ? 1 : shape.height * shape.width;
  layout.pixel_stride = images.channels_last ? images.channels : 1;
  layout.begin = shape.begin_row * shape.width;
  layout.end = shape.end_row * shape.width;
  layout.place = shape.place.data();
  layout.channel_pitch = shape.channel_pixels;
  layout.streams = images.bytes >= kStreamBytes;
  return layout;
}

// Zeroes what packing never writes.
template <typename T>
void clear_padding(const BandedImage& shape, int64_t channels, int64_t lanes, T* panel) {
  for (int64_t c = 0; c < channels; ++c) {
    for (const int32_t pixel : shape.padding) {
      std::memset(panel + (c * shape.channel_pixels + pixel) * lanes, 0, lanes * sizeof(T));
    }
  }
}

// ---- tiles and tasks ---------------------------------------------------------------------------

// Calls f(row, col, rows, cols) for tiles of at most `pixels` pixels, in one row or two, that cover
// a grid.
template <typename F>
void for_tiles(int64_t grid_rows, int64_t grid_cols, int64_t pixels, F&& f) {
  const int64_t height = 2 * grid_cols <= pixels && grid_rows > 1 ? 2 : 1;
  const int64_t across = ceil_div(grid_cols, pixels / height);
  for (int64_t row = 0; row < grid_rows; row += height) {
    const int64_t rows = std::min(height, grid_rows - row);
    for (int64_t i = 0; i < across; ++i) {
      const int64_t col = grid_cols * i / across;
      f(row, col, static_cast<int>(rows), static_cast<int>(grid_cols * (i + 1) / across - col));
    }
  }
}

// So many groups of panels for each thread, so that none waits long for the last.
constexpr int64_t kGroupsPerThread = 4;
// Partial gradients of the values, one for each group of panels, are added at the end. Up to so
// many groups whatever they take; more only while all together they stay in the cache.
constexpr int64_t kMaxGroups = 8;
constexpr int64_t kPartialBytes = int64_t{1} << 20;
// Values that a thread should at least have to gather or to add up.
constexpr int64_t kWorthValues = int64_t{1} << 14;

// Below this many multiplications (some 10 us) a second thread costs more than it saves.
constexpr int64_t kWorthThreads = int64_t{1} << 18;

int64_t threads_for(const SparseConv2dSizes& size) {
  const int64_t moved = size.in_channels + size.out_channels;
  const int64_t work = (size.nnz + 8 * moved) * size.batch * size.out[0] * size.out[1];
  return work >= kWorthThreads ? thread_count() : 1;
}

// The panels are cut into groups, and the channels that a panel's results have into chunks of
// about equal cost where the groups alone would leave threads idle.
struct Tasks {
  int64_t panels, groups;
  std::vector<int64_t> boundary;  // of the chunks of channels

  int64_t chunks() const { return static_cast<int64_t>(boundary.size()) - 1; }
  int64_t count() const { return groups * chunks(); }
  int64_t first_panel(int64_t group) const { return panels * group / groups; }
};

// `nonzeros` up to each channel, [channels + 1].
Tasks divide(
    int64_t panels, int64_t threads, int64_t max_groups, const std::vector<int64_t>& nonzeros
) {
  constexpr int64_t kChannelCost = 8;  // apart from its nonzeros, in nonzeros
  const int64_t channels = static_cast<int64_t>(nonzeros.size()) - 1;
  Tasks tasks{panels, std::max<int64_t>(1, std::min(panels, max_groups)), {}};
  const int64_t chunks = ceil_div(threads, tasks.groups);
  const auto cost = [&](int64_t c) { return nonzeros[c] + kChannelCost * c; };
  tasks.boundary.assign(chunks + 1, channels);
  tasks.boundary[0] = 0;
  int64_t channel = 0;
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    while (channel < channels && cost(channel) * chunks < cost(channels) * chunk) {
      ++channel;
    }
    tasks.boundary[chunk] = channel;
  }
  return tasks;
}

// Runs f(group, chunk) for all tasks. A thread that is done takes the next one, for cores are not
// equally fast; what a task computes does not depend on the thread.
template <typename F>
void run(const Tasks& tasks, int64_t threads, F&& f) {
  std::atomic<int64_t> next{0};
  parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < tasks.count(); task = next++) {
      f(task / tasks.chunks(), task % tasks.chunks());
    }
    scratch.release_if_large();
  });
}

// ---- forward -----------------------------------------------------------------------------------

template <typename scalar_t, typename index_t>
void forward(
    const SparseConv2dSizes& size,
    const Tensor& x,
    const computed_t<scalar_t>* value,  // [nnz]
    const index_t* crow,
    const index_t* col,
    const computed_t<scalar_t>* bias,  // [out channels] or null
    const Tensor& y
) {
  using T = computed_t<scalar_t>;
  const Kernels<scalar_t> kernels = active_kernels<scalar_t>();
  const int64_t lanes = kernels.compute.lanes, threads = threads_for(size);
  const ConvAxes axes(size);
  const ConvPanels panels = forward_panels(size, axes, lanes, lanes * sizeof(T), threads);
  const int64_t tile_pixels = kernels.compute.multiply_pixels;
  const ConvOrder order = forward_order(size, axes, panels, crow, col, tile_pixels);
  const auto from = images_of<scalar_t>(x);
  const auto to = mutable_images_of<scalar_t>(y);
  const std::vector<int64_t> nonzeros(crow, crow + size.out_channels + 1);
  const Tasks tasks = divide(panels.panels, threads, kGroupsPerThread * threads, nonzeros);
  const int64_t in_size = size.in_channels * panels.in.channel_pixels * lanes;
  const int64_t out_pitch = panels.out.channel_pixels * lanes;

  run(tasks, threads, [&](int64_t group, int64_t chunk) {
    const int64_t first = tasks.boundary[chunk];
    const int64_t channels = tasks.boundary[chunk + 1] - first;
    T* in = scratch.reserve<T>(in_size + channels * out_pitch);
    T* out = in + in_size;
    clear_padding(panels.in, size.in_channels, lanes, in);
    for (int64_t p = tasks.first_panel(group); p < tasks.first_panel(group + 1); ++p) {
      const auto x_bands = bands_of(from, panels.in, panels, size.batch, p, 0);
      kernels.packing.pack(x_bands, layout_of(from, panels.in), size.in_channels, in);
      for_tiles(
          panels.tile_rows,
          panels.tile_cols,
          tile_pixels,
          [&](int64_t row, int64_t column, int rows, int cols) {
            const int64_t x_pitch = panels.in.grid_width * lanes;
            const int64_t y_pitch = panels.out.grid_width * lanes;
            const TileOf<const T> x_tile{in + row * x_pitch + column * lanes, x_pitch, 0};
            const TileOf<T> y_tile{out + row * y_pitch + column * lanes, y_pitch, out_pitch};
            for (int64_t block = 0; block < order.blocks; ++block) {
              const Nonzeros<T> weights{
                  channels,
                  order.begin(block) + first,
                  order.begin(block + 1) + first,
                  order.offset.get(),
                  value
              };
              const T* start = bias != nullptr ? bias + first : nullptr;
              kernels.compute.multiply(rows, cols, weights, start, x_tile, y_tile, block > 0);
            }
          }
      );
      const auto y_bands = bands_of(to, panels.out, panels, size.batch, p, first);
      kernels.packing.unpack(out, y_bands, layout_of(to, panels.out), channels);
    }
  });
}

// ---- backward ----------------------------------------------------------------------------------

// Either result may be left out.
template <typename scalar_t, typename index_t>
void backward(
    const SparseConv2dSizes& size,
    const Tensor& grad,
    const Tensor& x,
    const computed_t<scalar_t>* value,  // [nnz]
    const index_t* crow,
    const index_t* col,
    const Tensor* grad_x,
    computed_t<scalar_t>* grad_value  // [nnz] or null
) {
  using T = computed_t<scalar_t>;
  const Kernels<scalar_t> kernels = active_kernels<scalar_t>();
  const int64_t lanes = kernels.compute.lanes, threads = threads_for(size);
  const ConvAxes axes(size);
  const ConvPanels panels = backward_panels(size, axes, lanes, lanes * sizeof(T), threads);
  const int64_t tile_pixels =
      grad_value != nullptr ? kernels.compute.sample_pixels : kernels.compute.multiply_pixels;
  std::unique_ptr<index_t[]> source(new index_t[size.nnz]);
  const ConvOrder order = backward_order(size, axes, panels, crow, col, tile_pixels, source.get());
  std::unique_ptr<T[]> weight(new T[size.nnz]);
  parallel_for(0, size.nnz, kWorthValues, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      weight[i] = value[source[i]];
    }
  });
  const auto grads = images_of<scalar_t>(grad);
  const auto inputs = images_of<scalar_t>(x);

  const int64_t planes = axes.planes();
  std::vector<int64_t> nonzeros(size.in_channels + 1, 0);
  for (int64_t block = 0; block < order.blocks; ++block) {
    for (int64_t c = 0; c < size.in_channels; ++c) {
      nonzeros[c + 1] += order.begin(block)[(c + 1) * planes] - order.begin(block)[c * planes];
    }
  }
  for (int64_t c = 0; c < size.in_channels; ++c) {
    nonzeros[c + 1] += nonzeros[c];
  }
  const int64_t partial_size = grad_value != nullptr ? size.nnz : 0;
  const int64_t cached = kPartialBytes / std::max<int64_t>(1, partial_size * sizeof(T));
  const int64_t groups =
      std::clamp(cached, std::min(threads, kMaxGroups), kGroupsPerThread * threads);
  const Tasks tasks = divide(panels.panels, threads, groups, nonzeros);
  std::unique_ptr<T[]> partial(new T[tasks.groups * partial_size]);
  std::fill_n(partial.get(), tasks.groups * partial_size, T{0});

  const int64_t grad_pixels = size.out_channels * panels.out.channel_pixels * lanes;
  const int64_t plane_pitch = panels.in.plane_pixels * lanes;
  run(tasks, threads, [&](int64_t group, int64_t chunk) {
    const int64_t first = tasks.boundary[chunk];
    const int64_t channels = tasks.boundary[chunk + 1] - first;
    const int64_t in_pixels = channels * panels.in.channel_pixels * lanes;
    T* g = scratch.reserve<T>(grad_pixels + 2 * in_pixels);
    T* in = g + grad_pixels;
    T* out = in + in_pixels;
    T* sums = partial.get() + group * partial_size;
    clear_padding(panels.out, size.out_channels, lanes, g);
    clear_padding(panels.in, channels, lanes, in);
    clear_padding(panels.in, channels, lanes, out);
    for (int64_t p = tasks.first_panel(group); p < tasks.first_panel(group + 1); ++p) {
      const auto grad_bands = bands_of(grads, panels.out, panels, size.batch, p, 0);
      kernels.packing.pack(grad_bands, layout_of(grads, panels.out), size.out_channels, g);
      if (grad_value != nullptr) {
        const auto x_bands = bands_of(inputs, panels.in, panels, size.batch, p, first);
        kernels.packing.pack(x_bands, layout_of(inputs, panels.in), channels, in);
      }
      for_tiles(
          panels.tile_rows,
          panels.tile_cols,
          tile_pixels,
          [&](int64_t row, int64_t column, int rows, int cols) {
            const int64_t g_pitch = panels.out.grid_width * lanes;
            const int64_t x_pitch = panels.in.grid_width * lanes;
            const int64_t at = row * x_pitch + column * lanes;
            const TileOf<const T> g_tile{g + row * g_pitch + column * lanes, g_pitch, 0};
            const TileOf<const T> x_tile{in + at, x_pitch, plane_pitch};
            const TileOf<T> dx_tile{out + at, x_pitch, plane_pitch};
            for (int64_t block = 0; block < order.blocks; ++block) {
              const int64_t* begin = order.begin(block) + first * planes;
              const Nonzeros<T> weights{
                  channels * planes, begin, begin + 1, order.offset.get(), weight.get()
              };
              if (grad_value == nullptr) {
                kernels.compute.multiply(rows, cols, weights, nullptr, g_tile, dx_tile, block > 0);
              } else if (grad_x == nullptr) {
                kernels.compute.sample(rows, cols, weights, g_tile, x_tile, sums);
              } else {
                kernels.compute.multiply_and_sample(
                    rows, cols, weights, g_tile, x_tile, dx_tile, block > 0, sums
                );
              }
            }
          }
      );
      if (grad_x != nullptr) {
        const auto to = mutable_images_of<scalar_t>(*grad_x);
        const auto dx_bands = bands_of(to, panels.in, panels, size.batch, p, first);
        kernels.packing.unpack(out, dx_bands, layout_of(to, panels.in), channels);
      }
    }
  });
  parallel_for(0, partial_size, kWorthValues, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T sum = partial[i];
      for (int64_t group = 1; group < tasks.groups; ++group) {
        sum += partial[group * partial_size + i];
      }
      grad_value[source[i]] = sum;
    }
  });
}

// ---- operators ---------------------------------------------------------------------------------

// The few numbers that are not images (values, bias): contiguous, in the dtype of the computation.
Tensor computed(const Tensor& tensor) {
  return torch::stable::contiguous(in_compute_dtype(tensor));
}

Tensor sparse_conv2d_cpu(
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
    std::optional<Tensor>,  // the transposed index is for CUDA's derivative
    std::optional<Tensor>,
    std::optional<Tensor>
) {
  const char* op = "sparse_conv2d";
  const SparseConv2dSizes size = check_sparse_conv2d(
      x, values, crow_indices, col_indices, {kernel_size, stride, padding, dilation, groups}, bias
  );
  const Tensor in = stored_whole(x), weights = computed(values);
  const std::optional<Tensor> b = bias ? std::make_optional(computed(*bias)) : std::nullopt;
  Tensor y = new_image(x, size.out_shape(), is_channels_last(in));
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using T = computed_t<scalar_t>;
    dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      const index_t* crow = crow_indices.const_data_ptr<index_t>();
      const index_t* col = col_indices.const_data_ptr<index_t>();
      check_indices(op, crow, col, size);
      if (y.numel() > 0) {
        const T* value = weights.const_data_ptr<T>();
        const T* start = b ? b->const_data_ptr<T>() : nullptr;
        forward<scalar_t>(size, in, value, crow, col, start, y);
      }
    });
  });
  return y;
}

std::tuple<Tensor, Tensor> sparse_conv2d_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& values, const Tensor& crow_indices, const Tensor& col_indices, std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, bool need_x, bool need_values, std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>) {
  const char* op = "sparse_conv2d_backward";
  const SparseConv2dSizes size = check_sparse_conv2d_backward(
      grad, x, values, crow_indices, col_indices, {kernel_size, stride, padding, dilation, groups}
  );
  const Tensor weights = computed(values);
  const std::vector<int64_t> none{0}, nnz{size.nnz};
  Tensor grad_x = need_x ? new_image(x, size.in_shape(), is_channels_last(x))
                         : torch::stable::new_empty(x, none);
  Tensor grad_values = torch::stable::new_zeros(weights, need_values ? nnz : none);
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using T = computed_t<scalar_t>;
    dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      const index_t* crow = crow_indices.const_data_ptr<index_t>();
      const index_t* col = col_indices.const_data_ptr<index_t>();
      check_indices(op, crow, col, size);
      if (x.numel() == 0 || grad.numel() == 0) {
        torch::stable::zero_(grad_x);
      } else if (need_x || need_values) {
        backward<scalar_t>(
            size,
            stored_whole(grad),
            need_values ? stored_whole(x) : x,
            weights.const_data_ptr<T>(),
            crow,
            col,
            need_x ? &grad_x : nullptr,
            need_values ? grad_values.mutable_data_ptr<T>() : nullptr
        );
      }
    });
  });
  const bool rounds = grad_values.scalar_type() != x.scalar_type();
  return {grad_x, rounds ? torch::stable::to(grad_values, x.scalar_type()) : grad_values};
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) {
  m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d_cpu));
  m.impl("sparse_conv2d_backward", TORCH_BOX(&sparse_conv2d_backward_cpu));
}

}  // namespace fullspectrum
