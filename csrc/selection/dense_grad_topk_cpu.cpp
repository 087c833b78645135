#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "common/cpu_features.h"
#include "common/csr.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "selection/gradient_tiles.h"
#include "selection/rank.h"
#include "selection/search_kernels.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Small enough to stay in the second-level cache between the product and the search.
constexpr int64_t kTileSize = int64_t{1} << 18;

// The k entries of largest rank among those offered so far, and some more: what an entry must
// exceed rises only each time there are 2 k. Entries come and stay in row-major order, so
// that of equal entries the first are kept without comparing positions.
template <typename scalar_t>
class Candidates {
 public:
  using rank_t = typename Rank<scalar_t>::type;

  // At most `most` entries are added between two calls of settle().
  Candidates(int64_t k, int64_t most)
      : k_(k),
        capacity_(2 * k + most),
        bits_(new rank_t[capacity_]),
        position_(new int64_t[capacity_]) {}

  // Only entries above it need to be added.
  rank_t threshold() const { return threshold_; }

  int64_t size() const { return size_; }

  void add(rank_t bits, int64_t position) {
    bits_[size_] = bits;
    position_[size_] = position;
    ++size_;
  }

  // Keeps the number of candidates below 2 k.
  void settle() {
    if (size_ >= 2 * k_) {
      reduce();
    }
  }

  // Leaves the k best, and raises the threshold to the last of them.
  void reduce() {
    if (size_ <= k_) {
      return;
    }
    int64_t ties = k_;
    threshold_ = last_kept(ties);
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const rank_t rank = rank_of<scalar_t>(bits_[i]);
      const bool tie = (rank == threshold_) & (ties > 0);  // no branch: half the entries go
      ties -= tie;
      bits_[kept] = bits_[i];
      position_[kept] = position_[i];
      kept += (rank > threshold_) | tie;
    }
    size_ = kept;
  }

  void write(int64_t* position, rank_t* bits) const {
    std::copy_n(position_.get(), size_, position);
    std::copy_n(bits_.get(), size_, bits);
  }

 private:
  static constexpr int kDigit = 16;
  static constexpr int kTop = 8 * static_cast<int>(sizeof(rank_t)) - kDigit;

  // The rank of the wanted-th largest entry, digit by digit; leaves in `wanted` how many entries of
  // this very rank belong to the k best.
  rank_t last_kept(int64_t& wanted) const {
    uint64_t prefix = 0;
    std::vector<int64_t> count(size_t{1} << kDigit);
    for (int shift = kTop; shift >= 0; shift -= kDigit) {
      std::fill(count.begin(), count.end(), 0);
      for (int64_t i = 0; i < size_; ++i) {
        const uint64_t digits = static_cast<uint64_t>(rank_of<scalar_t>(bits_[i])) >> shift;
        if (digits >> kDigit == prefix) {
          ++count[digits % count.size()];
        }
      }
      uint64_t digit = count.size() - 1;
      for (; count[digit] < wanted; --digit) {
        wanted -= count[digit];
      }
      prefix = prefix << kDigit | digit;
    }
    return static_cast<rank_t>(prefix);
  }

  int64_t k_;
  int64_t capacity_;
  int64_t size_ = 0;
  rank_t threshold_ = 0;
  std::unique_ptr<rank_t[]> bits_;  // pages that are never reached cost nothing
  std::unique_ptr<int64_t[]> position_;
};

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
  STD_TORCH_CHECK(candidates.size() == k, "dense_grad_topk: the gradient holds NaNs of all ones");
  candidates.write(position, reinterpret_cast<rank_t*>(value));
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
    const CsrView<index_t> csr{
        tiles.rows,
        tiles.cols,
        col_indices.numel(),
        crow_indices.const_data_ptr<index_t>(),
        col_indices.const_data_ptr<index_t>()
    };
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
  return {positions, values.scalar_type() == dtype ? values : torch::stable::to(values, dtype)};
}

std::tuple<Tensor, Tensor> dense_grad_topk_cpu(
    Tensor grad, Tensor x, Tensor crow_indices, Tensor col_indices, int64_t k
) {
  const GradientTiles tiles =
      linear_gradient_tiles(grad, x, crow_indices, col_indices, k, kTileSize);
  return select_of_tiles("dense_grad_topk", tiles, x, crow_indices, col_indices, k);
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
