#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "common/cpu_features.h"
#include "common/csr.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "selection/candidates.h"
#include "selection/gradient_tiles.h"
#include "selection/product_search.h"
#include "selection/rank.h"
#include "selection/search_kernels.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Small enough to stay in the second-level cache between the product and the search.
constexpr int64_t kTileSize = int64_t{1} << 18;
// Entries that a thread searches at a time.
constexpr int64_t kPartSize = int64_t{1} << 19;
// A column's number is an int32_t there.
constexpr int64_t kMostColumns = (int64_t{1} << 31) - 1;
// Rows and entries of a sample, and the largest share of a row's groups of columns.
constexpr int64_t kSampledRows = 1024;
constexpr int64_t kSample = int64_t{1} << 16;
constexpr int64_t kSampledShare = 8;

constexpr const char* kLinear = "dense_grad_topk";
constexpr const char* kOnesNan = "dense_grad_topk: the gradient holds NaNs of all ones";

template <typename index_t>
CsrView<index_t> csr_view(
    int64_t rows, int64_t cols, const Tensor& crow_indices, const Tensor& col_indices
) {
  return {
      rows,
      cols,
      col_indices.numel(),
      crow_indices.const_data_ptr<index_t>(),
      col_indices.const_data_ptr<index_t>()
  };
}

// Writes kTaken over the tile's stored entries.
template <typename scalar_t, typename index_t>
void mark_stored(
    typename Rank<scalar_t>::type* tile,  // rows [begin, end), from row `begin` on
    const CsrView<index_t>& csr,
    int64_t begin,
    int64_t end
) {
  for (int64_t row = begin; row < end; ++row) {
    auto* entries = tile + (row - begin) * csr.cols;
    for (int64_t p = csr.crow_indices[row]; p < csr.crow_indices[row + 1]; ++p) {
      entries[csr.col_indices[p]] = kTaken<scalar_t>;
    }
  }
}

template <typename scalar_t, typename index_t>
void select(
    const GradientTiles& tiles,
    const CsrView<index_t>& csr,
    int64_t k,
    int64_t* position,  // [k]
    scalar_t* value     // [k]
) {
  using rank_t = typename Rank<scalar_t>::type;
  const SearchKernel<rank_t> search = FULLSPECTRUM_ACTIVE(search_kernel<rank_t>());
  const int64_t largest = tiles.largest();
  Candidates<scalar_t> candidates(k, largest);
  const std::unique_ptr<int64_t[]> found(new int64_t[largest]);
  std::vector<int64_t> number(thread_count());
  const int64_t parts = static_cast<int64_t>(number.size());
  for (size_t t = 0; t + 1 < tiles.boundary.size(); ++t) {
    const int64_t first = tiles.boundary[t], rows = tiles.boundary[t + 1] - first;
    Tensor product = tiles.product(first, first + rows);
    rank_t* tile = reinterpret_cast<rank_t*>(product.mutable_data_ptr<scalar_t>());
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t from = rows * part / parts, to = rows * (part + 1) / parts;
        mark_stored<scalar_t>(tile + from * csr.cols, csr, first + from, first + to);
        // a rank above the threshold is a magnitude of at least it: rank_of adds one
        number[part] = search(
            tile + from * csr.cols,
            (to - from) * csr.cols,
            candidates.threshold(),
            from * csr.cols,
            found.get() + from * csr.cols
        );
      }
    });
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t* places = found.get() + rows * part / parts * csr.cols;
      for (int64_t i = 0; i < number[part]; ++i) {
        candidates.add(tile[places[i]], first * csr.cols + places[i]);
      }
    }
    candidates.settle();
  }
  candidates.reduce();
  STD_TORCH_CHECK(candidates.size() == k, kOnesNan);
  candidates.write(position, reinterpret_cast<rank_t*>(value));
}

// A threshold that very likely k entries exceed, from a sample of the entries; 0 if k is too many
// to say. Rows and groups of columns are taken at regular and at scattered places.
template <typename index_t>
uint32_t likely_threshold(
    const PackedProduct& product, const CsrView<index_t>& csr, int64_t k, int64_t margin
) {
  const int64_t rows = std::min(csr.rows, kSampledRows);
  const int64_t columns = product.shape().columns;
  const int64_t number =
      std::max<int64_t>(std::min(kSample / (rows * columns), product.groups() / kSampledShare), 1);
  const int64_t parts = std::min(thread_count(), rows);
  std::vector<std::vector<uint32_t>> found(parts);
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    RowSearch search(product, 1, csr.cols);
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; ++i) {
        const int64_t row = csr.rows * i / rows;
        // by steps of the golden section, which spread evenly over the groups
        std::vector<int64_t> groups(number);
        for (int64_t j = 0; j < number; ++j) {
          const auto turn = static_cast<uint32_t>(i * number + j) * 0x9e3779b9u;
          groups[j] = static_cast<int64_t>(uint64_t{turn} * product.groups() >> 32);
        }
        if (search.sample(csr, row, groups)) {
          found[part].insert(found[part].end(), search.bits(), search.bits() + search.count());
        }
      }
    }
  });
  int64_t size = 0;
  for (const auto& bits : found) {
    size += static_cast<int64_t>(bits.size());
  }
  const auto free = static_cast<double>(csr.rows * csr.cols - csr.nnz);
  const double expected = static_cast<double>(k) / free * static_cast<double>(size);
  // the deviation of such a count is its root; entries of one row go together, which makes it more
  const auto rank =
      static_cast<int64_t>((expected + 6 * std::sqrt(expected) + 16) * static_cast<double>(margin));
  Candidates<float> best(rank, size);
  const std::vector<int64_t> nowhere(size);
  for (const auto& bits : found) {
    best.add(bits.data(), nowhere.data(), static_cast<int64_t>(bits.size()));
  }
  best.reduce();
  return std::max(best.threshold(), 1u) - 1;
}

// The same of a product in float32, see product_search.h.
template <typename index_t>
void select_of_product(
    const PackedProduct& product,
    const CsrView<index_t>& csr,
    int64_t k,
    int64_t* position,  // [k]
    float* value        // [k]
) {
  // each thread's rows are whole groups, and so are those that it searches at a time
  const int64_t group = product.shape().rows;
  const int64_t groups = ceil_div(csr.rows, group);
  const int64_t parts = std::min(thread_count(), groups);
  const int64_t most = ceil_div(groups, parts) * group;
  const int64_t step = std::clamp(kPartSize / csr.cols / group * group, group, most);
  std::vector<char> sound(parts, true);
  for (int64_t margin = 1;; margin *= 4) {
    const uint32_t threshold = likely_threshold(product, csr, k, margin);
    std::vector<Candidates<float>> found;
    for (int64_t part = 0; part < parts; ++part) {
      found.emplace_back(k, step * csr.cols, threshold);
    }
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      RowSearch search(product, step, csr.cols);
      for (int64_t part = begin; part < end; ++part) {
        const int64_t last = std::min(groups * (part + 1) / parts * group, csr.rows);
        for (int64_t first = groups * part / parts * group; first < last; first += step) {
          const int64_t to = std::min(first + step, last);
          sound[part] &= search.search(csr, first, to, found[part].threshold());
          found[part].add(search.bits(), search.position(), search.count());
          found[part].settle();
        }
      }
    });
    const bool all_sound = std::all_of(sound.begin(), sound.end(), [](char is) { return is; });
    STD_TORCH_CHECK(all_sound, kLinear, ": ", csr_fault(csr));
    int64_t size = 0;
    for (const auto& part : found) {
      size += part.size();
    }
    if (size >= k) {
      write_best(found, k, position, reinterpret_cast<uint32_t*>(value));
      return;
    }
    STD_TORCH_CHECK(threshold > 0, kOnesNan);
  }
}

std::tuple<Tensor, Tensor> in_dtype_of(
    const Tensor& x, const Tensor& positions, const Tensor& values
) {
  const ScalarType dtype = x.scalar_type();
  return {positions, values.scalar_type() == dtype ? values : torch::stable::to(values, dtype)};
}

std::tuple<Tensor, Tensor> select_of_tiles(
    const char* op,
    const GradientTiles& tiles,
    const Tensor& x,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    int64_t k
) {
  const ScalarType dtype = x.scalar_type();
  const bool is_double = dtype == ScalarType::Double;
  Tensor positions = torch::stable::new_empty(x, {k}, ScalarType::Long);
  Tensor values =
      torch::stable::new_empty(x, {k}, is_double ? ScalarType::Double : ScalarType::Float);
  dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const auto csr = csr_view<index_t>(tiles.rows, tiles.cols, crow_indices, col_indices);
    const std::string fault = csr_fault(csr);
    STD_TORCH_CHECK(fault.empty(), op, ": ", fault);
    if (k == 0) {
      return;
    }
    int64_t* position = positions.mutable_data_ptr<int64_t>();
    if (is_double) {
      select(tiles, csr, k, position, values.mutable_data_ptr<double>());
    } else {
      select(tiles, csr, k, position, values.mutable_data_ptr<float>());
    }
  });
  return in_dtype_of(x, positions, values);
}

std::tuple<Tensor, Tensor> dense_grad_topk_cpu(
    Tensor grad, Tensor x, Tensor crow_indices, Tensor col_indices, int64_t k
) {
  const int64_t cols = x.dim() > 0 ? x.size(x.dim() - 1) : 0;
  if (x.scalar_type() == ScalarType::Double || cols > kMostColumns) {
    const GradientTiles tiles =
        linear_gradient_tiles(grad, x, crow_indices, col_indices, k, kTileSize);
    return select_of_tiles(kLinear, tiles, x, crow_indices, col_indices, k);
  }
  const LinearOperands operands = linear_operands(grad, x, crow_indices, col_indices, k);
  const Tensor by_batch = torch::stable::contiguous(operands.grad);
  const Tensor inputs = torch::stable::contiguous(operands.x);
  Tensor positions = torch::stable::new_empty(inputs, {k}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(inputs, {k});
  dispatch_index(crow_indices.scalar_type(), kLinear, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const auto csr = csr_view<index_t>(by_batch.size(1), inputs.size(1), crow_indices, col_indices);
    const std::string fault = k == 0 ? csr_fault(csr) : crow_fault(csr);
    STD_TORCH_CHECK(fault.empty(), kLinear, ": ", fault);
    if (k > 0) {
      const PackedProduct product(
          by_batch.const_data_ptr<float>(),
          inputs.const_data_ptr<float>(),
          csr.rows,
          csr.cols,
          inputs.size(0)
      );
      select_of_product(
          product, csr, k, positions.mutable_data_ptr<int64_t>(), values.mutable_data_ptr<float>()
      );
    }
  });
  return in_dtype_of(x, positions, values);
}

std::tuple<Tensor, Tensor> conv2d_dense_grad_topk_cpu(
    Tensor grad,
    Tensor x,
    Tensor crow_indices,
    Tensor col_indices,
    int64_t k,
    std::vector<int64_t> kernel_size,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    std::vector<int64_t> dilation,
    int64_t groups
) {
  const Conv2dGeometry geometry{kernel_size, stride, padding, dilation, groups};
  const GradientTiles tiles =
      conv2d_gradient_tiles(grad, x, crow_indices, col_indices, k, geometry, kTileSize);
  return select_of_tiles("conv2d_dense_grad_topk", tiles, x, crow_indices, col_indices, k);
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) {
  m.impl("dense_grad_topk", TORCH_BOX(&dense_grad_topk_cpu));
  m.impl("conv2d_dense_grad_topk", TORCH_BOX(&conv2d_dense_grad_topk_cpu));
}

}  // namespace fullspectrum
