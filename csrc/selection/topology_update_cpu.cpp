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
#include "common/parallel_csr_fault.h"
#include "selection/topology_update.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "topology_update";

// Rows that are worth a thread.
constexpr int64_t kGrain = 64;

// Listed numbers that are worth a thread.
constexpr int64_t kListGrain = int64_t{1} << 15;

void check_rising(const char* name, const int64_t* list, int64_t size, int64_t end) {
  std::atomic<bool> is_good{size == 0 || (list[0] >= 0 && list[size - 1] < end)};
  parallel_for(1, size, kListGrain, [&](int64_t first, int64_t last) {
    bool rises = true;
    for (int64_t i = first; i < last; ++i) {
      rises &= list[i - 1] < list[i];
    }
    if (!rises) {
      is_good = false;
    }
  });
  STD_TORCH_CHECK(is_good, kOp, ": ", name, " must rise strictly within [0, ", end, ")");
}

// What happens to one row.
template <typename index_t>
struct RowChange {
  const index_t* col;   // of its stored entries
  int64_t stored;       // how many they are
  int64_t first_entry;  // how many are stored in the rows before
  const int64_t* drop;  // its part of the list
  const int64_t* drop_end;
  const int64_t* grow;  // its part of the list
  const int64_t* grow_end;
  int64_t first_place;  // its first flat position
  int64_t cols;
};

// How many grown positions are kept ones as well, and how many were not stored.
struct GrownCounts {
  int64_t clashes = 0;
  int64_t added = 0;
};

// A row as it is made. No branch depends on which entries go and come.
template <typename index_t>
class NewRow {
 public:
  // Takes the stored entries but for the dropped.
  void shorten(const RowChange<index_t>& row) {
    prepare(row);
    for (int64_t s = 0; s < row.stored; ++s) {
      col_[size_] = row.col[s];
      source_[size_] = row.first_entry + s;
      size_ += 1 - is_dropped_[s];
    }
    forget(row);
  }

  // Takes the stored entries but for the dropped, and the grown.
  GrownCounts merge(const RowChange<index_t>& row) {
    prepare(row);
    const int64_t grows = row.grow_end - row.grow;
    // behind the last of both lists stands what is larger than all
    std::copy_n(row.col, row.stored, stored_.data());
    stored_[row.stored] = row.cols;
    std::transform(row.grow, row.grow_end, grown_.data(), [&](int64_t place) {
      return place - row.first_place;
    });
    grown_[grows] = row.cols;
    GrownCounts counts;
    for (int64_t s = 0, g = 0; s < row.stored || g < grows;) {
      const int64_t old = stored_[s], grown = grown_[g];
      const bool is_stored = old <= grown, is_grown = grown <= old;
      const bool stays = is_stored & !is_dropped_[s];
      col_[size_] = static_cast<index_t>(std::min(old, grown));
      source_[size_] = (row.first_entry + s) | -static_cast<int64_t>(!is_stored);
      size_ += stays | is_grown;
      counts.clashes += stays & is_grown;
      counts.added += !is_stored;
      s += is_stored;
      g += is_grown;
    }
    forget(row);
    return counts;
  }

  // Writes what was taken, and returns how many entries it is.
  int64_t write(index_t* new_col, int64_t* source) const {
    std::copy_n(col_.data(), size_, new_col);
    std::copy_n(source_.data(), size_, source);
    return size_;
  }

 private:
  void prepare(const RowChange<index_t>& row) {
    const size_t stored = row.stored + 1, grows = row.grow_end - row.grow + 1;
    stored_.resize(std::max(stored_.size(), stored));
    is_dropped_.resize(stored_.size(), 0);
    grown_.resize(std::max(grown_.size(), grows));
    col_.resize(stored_.size() + grown_.size());
    source_.resize(stored_.size() + grown_.size());
    size_ = 0;
    std::for_each(row.drop, row.drop_end, [&](int64_t p) { is_dropped_[p - row.first_entry] = 1; });
  }

  void forget(const RowChange<index_t>& row) {
    std::for_each(row.drop, row.drop_end, [&](int64_t p) { is_dropped_[p - row.first_entry] = 0; });
  }

  std::vector<int64_t> stored_, grown_;
  std::vector<uint8_t> is_dropped_;
  std::vector<index_t> col_;
  std::vector<int64_t> source_;
  int64_t size_ = 0;
};

// Merges what is kept of each row with what grows in it.
template <typename index_t>
GrownCounts merge_rows(
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
  std::atomic<int64_t> clashes{0}, added{0};
  parallel_for(0, size.rows, kGrain, [&](int64_t begin, int64_t end) {
    GrownCounts here;
    NewRow<index_t> new_row;
    const int64_t* dropped = std::lower_bound(drop, drop_end, csr.crow_indices[begin]);
    const int64_t* grown = std::lower_bound(grow, grow_end, begin * size.cols);
    int64_t out = csr.crow_indices[begin] - (dropped - drop) + (grown - grow);
    for (int64_t row = begin; row < end; ++row) {
      new_crow[row] = static_cast<index_t>(out);
      const int64_t p = csr.crow_indices[row], p_end = csr.crow_indices[row + 1];
      const int64_t place = row * size.cols, place_end = place + size.cols;
      const int64_t* dropped_here = dropped;
      const int64_t* grown_here = grown;
      dropped = std::lower_bound(
          dropped, dropped + std::min<int64_t>(p_end - p, drop_end - dropped), p_end
      );
      grown = std::lower_bound(
          grown, grown + std::min<int64_t>(size.cols, grow_end - grown), place_end
      );
      const RowChange<index_t> change{
          csr.col_indices + p,
          p_end - p,
          p,
          dropped_here,
          dropped,
          grown_here,
          grown,
          place,
          size.cols
      };
      if (grown == grown_here) {
        new_row.shorten(change);
      } else {
        const GrownCounts counts = new_row.merge(change);
        here.clashes += counts.clashes;
        here.added += counts.added;
      }
      out += new_row.write(new_col + out, source + out);
    }
    clashes += here.clashes;
    added += here.added;
  });
  new_crow[size.rows] = static_cast<index_t>(size.new_nnz);
  return {clashes, added};
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
  Tensor counts = torch::stable::new_empty(col_indices, {2}, ScalarType::Long);
  dispatch_index(crow_indices.scalar_type(), kOp, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const CsrView<index_t> csr{
        size.rows,
        cols,
        size.nnz,
        crow_indices.const_data_ptr<index_t>(),
        col_indices.const_data_ptr<index_t>()
    };
    const std::string fault = parallel_csr_fault(csr);
    STD_TORCH_CHECK(fault.empty(), kOp, ": ", fault);
    const GrownCounts found = merge_rows(
        csr,
        drops,
        grows,
        size,
        new_crow.mutable_data_ptr<index_t>(),
        new_col.mutable_data_ptr<index_t>(),
        source.mutable_data_ptr<int64_t>()
    );
    counts.mutable_data_ptr<int64_t>()[0] = found.clashes;
    counts.mutable_data_ptr<int64_t>()[1] = found.added;
  });
  return {new_crow, new_col, source, counts};
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("topology_update", TORCH_BOX(&topology_update_cpu)); }

}  // namespace fullspectrum
