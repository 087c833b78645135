#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <tuple>
#include <vector>

#include "common/csr.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "selection/topology_update.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "topology_update";

// Rows that are worth a thread.
constexpr int64_t kGrain = 64;

void check_rising(const char* name, const int64_t* list, int64_t size, int64_t end) {
  bool good = size == 0 || (list[0] >= 0 && list[size - 1] < end);
  for (int64_t i = 1; i < size; ++i) {
    good &= list[i - 1] < list[i];
  }
  STD_TORCH_CHECK(good, kOp, ": ", name, " must rise strictly within [0, ", end, ")");
}

// A row's entries without those that are dropped. No branch depends on which these are.
template <typename index_t>
class Shortened {
 public:
  explicit Shortened(int64_t longest) : is_dropped_(longest, 0), col_(longest), source_(longest) {}

  // Writes entries [begin, end) but for those in `dropped`, and returns how many they are.
  int64_t write(
      const index_t* col,  // [nnz]
      int64_t begin,
      int64_t end,
      const int64_t* dropped,
      const int64_t* dropped_end,
      index_t* new_col,
      int64_t* source
  ) {
    std::for_each(dropped, dropped_end, [&](int64_t p) { is_dropped_[p - begin] = 1; });
    int64_t kept = 0;
    for (int64_t p = begin; p < end; ++p) {
      col_[kept] = col[p];
      source_[kept] = p;
      kept += 1 - is_dropped_[p - begin];
    }
    std::for_each(dropped, dropped_end, [&](int64_t p) { is_dropped_[p - begin] = 0; });
    std::copy_n(col_.data(), kept, new_col);
    std::copy_n(source_.data(), kept, source);
    return kept;
  }

 private:
  std::vector<uint8_t> is_dropped_;
  std::vector<index_t> col_;
  std::vector<int64_t> source_;
};

template <typename index_t>
int64_t longest_row(const CsrView<index_t>& csr) {
  int64_t longest = 0;
  for (int64_t row = 0; row < csr.rows; ++row) {
    longest = std::max<int64_t>(longest, csr.crow_indices[row + 1] - csr.crow_indices[row]);
  }
  return longest;
}

// Merges what is kept of each row with what grows in it. Returns how many grown positions are kept
// ones as well.
template <typename index_t>
int64_t merge_rows(
    const CsrView<index_t>& csr,
    const int64_t* drop,  // [size.drop], rising
    const int64_t* grow,  // [size.grow], rising
    TopologyUpdateSizes size,
    index_t* new_crow,  // [rows + 1]
    index_t* new_col,   // [new_nnz]
    int64_t* source     // [new_nnz]
) {
  const int64_t* drop_end = drop + size.drop;
  const int64_t* grow_end = grow + size.grow;
  const int64_t longest = longest_row(csr);
  std::atomic<int64_t> clashes{0};
  parallel_for(0, size.rows, kGrain, [&](int64_t begin, int64_t end) {
    int64_t clashes_here = 0;
    Shortened<index_t> shortened(longest);
    const int64_t* dropped = std::lower_bound(drop, drop_end, csr.crow_indices[begin]);
    const int64_t* grown = std::lower_bound(grow, grow_end, begin * size.cols);
    int64_t p = csr.crow_indices[begin];
    int64_t out = p - (dropped - drop) + (grown - grow);
    for (int64_t row = begin; row < end; ++row) {
      new_crow[row] = static_cast<index_t>(out);
      const int64_t first = row * size.cols, next_row = first + size.cols;
      const int64_t p_end = csr.crow_indices[row + 1];
      if (grown == grow_end || *grown >= next_row) {
        const int64_t most = std::min<int64_t>(p_end - p, drop_end - dropped);
        const int64_t* next_dropped = std::lower_bound(dropped, dropped + most, p_end);
        out += shortened.write(
            csr.col_indices, p, p_end, dropped, next_dropped, new_col + out, source + out
        );
        dropped = next_dropped;
        p = p_end;
        continue;
      }
      const auto store = [&](int64_t position, int64_t from) {
        new_col[out] = static_cast<index_t>(position - first);
        source[out++] = from;
      };
      const auto first_grown = [&] {
        return grown < grow_end ? std::min(*grown, next_row) : next_row;
      };
      int64_t grows = first_grown();
      for (; p < p_end; ++p) {
        const int64_t stored = first + csr.col_indices[p];
        while (grows < stored) {
          store(grows, -1);
          ++grown;
          grows = first_grown();
        }
        const bool is_dropped = dropped < drop_end && *dropped == p, is_grown = grows == stored;
        if (is_grown || !is_dropped) {
          store(stored, p);
        }
        if (is_grown) {
          clashes_here += !is_dropped;
          ++grown;
          grows = first_grown();
        }
        dropped += is_dropped;
      }
      for (; grows < next_row; grows = first_grown()) {
        store(grows, -1);
        ++grown;
      }
    }
    clashes += clashes_here;
  });
  new_crow[size.rows] = static_cast<index_t>(size.new_nnz);
  return clashes;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> topology_update_cpu(
    Tensor crow_indices, Tensor col_indices, Tensor drop, Tensor grow, int64_t cols
) {
  const TopologyUpdateSizes size =
      check_topology_update(crow_indices, col_indices, drop, grow, cols);
  const int64_t* drops = drop.const_data_ptr<int64_t>();
  const int64_t* grows = grow.const_data_ptr<int64_t>();
  check_rising("drop", drops, size.drop, size.nnz);
  check_rising("grow", grows, size.grow, size.rows * cols);
  Tensor new_crow = torch::stable::empty_like(crow_indices);
  Tensor new_col = torch::stable::new_empty(col_indices, {size.new_nnz});
  Tensor source = torch::stable::new_empty(col_indices, {size.new_nnz}, ScalarType::Long);
  Tensor clashes = torch::stable::new_empty(col_indices, {1}, ScalarType::Long);
  dispatch_index(crow_indices.scalar_type(), kOp, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const CsrView<index_t> csr{
        size.rows,
        cols,
        size.nnz,
        crow_indices.const_data_ptr<index_t>(),
        col_indices.const_data_ptr<index_t>()
    };
    const std::string fault = csr_fault(csr);
    STD_TORCH_CHECK(fault.empty(), kOp, ": ", fault);
    *clashes.mutable_data_ptr<int64_t>() = merge_rows(
        csr,
        drops,
        grows,
        size,
        new_crow.mutable_data_ptr<index_t>(),
        new_col.mutable_data_ptr<index_t>(),
        source.mutable_data_ptr<int64_t>()
    );
  });
  return {new_crow, new_col, source, clashes};
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("topology_update", TORCH_BOX(&topology_update_cpu)); }

}  // namespace fullspectrum
