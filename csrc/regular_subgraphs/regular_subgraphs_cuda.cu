#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/aten.h"
#include "common/cuda_launch.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "regular_subgraphs/regular_subgraphs.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kRowThreads = 128;
// Degrees that one pass over a row counts in shared memory, 4 bytes each.
constexpr int kDegreesAtOnce = 8192;
// A tap's sort key: its layer in the upper half, its degree in the lower.
constexpr int kLayerShift = 32;

// Adds each entry to its column's key, which becomes the column's degree within its layer.
//
// A thread owns an entry: coalesced reads of col, scattered integer atomics, whose order does not
// matter. Launch: grid ceil(nnz / 256), block 256. Slow when few columns take most entries.
template <typename index_t>
__global__ void __launch_bounds__(kThreads) tap_degree_kernel(
    const index_t* __restrict__ col,       // [nnz]
    unsigned long long* __restrict__ key,  // [cols]
    int64_t nnz
) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p < nnz) {
    atomicAdd(&key[col[p]], 1ull);
  }
}

// Sets every tap's key to its layer, degree zero. Launch: grid ceil(cols / 256), block 256.
__global__ void __launch_bounds__(kThreads) start_key_kernel(
    unsigned long long* __restrict__ key,  // [cols]
    int64_t layer,
    int64_t cols
) {
  const int64_t tap = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (tap < cols) {
    key[tap] = static_cast<unsigned long long>(layer) << kLayerShift;
  }
}

// Counts, for each degree, the rows that have an entry in a column of that degree.
//
// A block owns a row: it counts the row's entries by degree in shared memory, then adds one for
// every degree it saw. Reads of col are coalesced, of key scattered but cached. Degrees beyond
// kDegreesAtOnce take further passes over the row. Launch: grid rows, block 128, shared memory 4
// bytes a degree of one pass.
template <typename index_t>
__global__ void __launch_bounds__(kRowThreads) live_outputs_kernel(
    const index_t* __restrict__ crow,            // [rows + 1]
    const index_t* __restrict__ col,             // [nnz]
    const unsigned long long* __restrict__ key,  // [cols]
    unsigned long long* __restrict__ live,       // [degrees]
    int64_t degrees,
    int at_once
) {
  FULLSPECTRUM_DYNAMIC_SHARED(int, seen);
  const int64_t row = blockIdx.x;
  for (int64_t first = 0; first < degrees; first += at_once) {
    const int64_t count = min(static_cast<int64_t>(at_once), degrees - first);
    for (int64_t d = threadIdx.x; d < count; d += kRowThreads) {
      seen[d] = 0;
    }
    __syncthreads();
    for (int64_t p = crow[row] + static_cast<int64_t>(threadIdx.x); p < crow[row + 1];
         p += kRowThreads) {
      const int64_t degree = static_cast<uint32_t>(key[col[p]]);
      if (degree >= first && degree < first + count) {
        atomicAdd(&seen[degree - first], 1);
      }
    }
    __syncthreads();
    for (int64_t d = threadIdx.x; d < count; d += kRowThreads) {
      if (seen[d] > 0) {
        atomicAdd(&live[first + d], 1ull);
      }
    }
    __syncthreads();
  }
}

// Turns one layer's sorted keys into the outputs. A thread owns a tap; all but the reads of live
// are coalesced. Launch: grid ceil(cols / 256), block 256.
__global__ void __launch_bounds__(kThreads) describe_taps_kernel(
    const int64_t* __restrict__ sorted_key,  // [cols]
    const int64_t* __restrict__ position,    // [cols], within all layers
    const int64_t* __restrict__ live,        // [degrees]
    int64_t first,                           // the layer's first tap
    int64_t cols,
    int64_t* __restrict__ taps,         // [cols]
    int64_t* __restrict__ degrees,      // [cols]
    int64_t* __restrict__ live_outputs  // [cols]
) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < cols) {
    const int64_t degree = static_cast<uint32_t>(sorted_key[i]);
    taps[i] = position[i] - first;
    degrees[i] = degree;
    live_outputs[i] = live[degree];
  }
}

// Counts degrees (into keys) and live outputs of one layer. Returns live outputs by degree.
Tensor count_layer(
    const DeviceScope& scope,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t layer,
    int64_t cols,
    unsigned long long* key
) {
  const int64_t rows = crow_indices.numel() - 1;
  const int64_t nnz = col_indices.numel();
  const int64_t degrees = rows + 1;
  Tensor live = torch::stable::new_zeros(crow_indices, {degrees}, ScalarType::Long);
  const dim3 tap_grid(ceil_div(cols, kThreads));
  launch(scope, {"start_key_kernel", tap_grid, dim3(kThreads)}, start_key_kernel, key, layer, cols);
  dispatch_index(crow_indices.scalar_type(), "regular_subgraphs", [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const index_t* crow = crow_indices.const_data_ptr<index_t>();
    const index_t* col = col_indices.const_data_ptr<index_t>();
    launch(
        scope,
        {"tap_degree_kernel", dim3(ceil_div(nnz, kThreads)), dim3(kThreads)},
        tap_degree_kernel<index_t>,
        col,
        key,
        nnz
    );
    const int at_once = static_cast<int>(std::min<int64_t>(degrees, kDegreesAtOnce));
    launch(
        scope,
        {"live_outputs_kernel", dim3(rows), dim3(kRowThreads), at_once * sizeof(int)},
        live_outputs_kernel<index_t>,
        crow,
        col,
        key,
        reinterpret_cast<unsigned long long*>(live.mutable_data_ptr<int64_t>()),
        degrees,
        at_once
    );
  });
  return live;
}

std::tuple<Tensor, Tensor, Tensor> regular_subgraphs_cuda(
    std::vector<Tensor> crow_indices, std::vector<Tensor> col_indices, std::vector<int64_t> cols
) {
  const std::vector<int64_t> first = check_regular_subgraphs(crow_indices, col_indices, cols);
  const DeviceScope scope(crow_indices[0]);
  const auto new_column = [&] {
    return torch::stable::new_empty(crow_indices[0], {first.back()}, ScalarType::Long);
  };
  Tensor keys = new_column();
  std::vector<Tensor> live;
  for (size_t i = 0; i < cols.size(); ++i) {
    unsigned long long* key =
        reinterpret_cast<unsigned long long*>(keys.mutable_data_ptr<int64_t>()) + first[i];
    live.push_back(
        count_layer(scope, crow_indices[i], col_indices[i], static_cast<int64_t>(i), cols[i], key)
    );
  }
  const auto [sorted_keys, positions] = stable_sort(keys);
  Tensor taps = new_column();
  Tensor degrees = new_column();
  Tensor live_outputs = new_column();
  for (size_t i = 0; i < cols.size(); ++i) {
    launch(
        scope,
        {"describe_taps_kernel", dim3(ceil_div(cols[i], kThreads)), dim3(kThreads)},
        describe_taps_kernel,
        sorted_keys.const_data_ptr<int64_t>() + first[i],
        positions.const_data_ptr<int64_t>() + first[i],
        live[i].const_data_ptr<int64_t>(),
        first[i],
        cols[i],
        taps.mutable_data_ptr<int64_t>() + first[i],
        degrees.mutable_data_ptr<int64_t>() + first[i],
        live_outputs.mutable_data_ptr<int64_t>() + first[i]
    );
  }
  return {taps, degrees, live_outputs};
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) { m.impl("regular_subgraphs", TORCH_BOX(&regular_subgraphs_cuda)); }

}  // namespace fullspectrum
