#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/csr.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "common/parallel_csr_fault.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "csr_transpose";

// Entries that are worth a thread.
constexpr int64_t kGrain = int64_t{1} << 15;

// Columns that are written to at a time: so many lines stay in the nearest cache.
constexpr int64_t kColumnsAtOnce = 256;
// Entries that a row has at least for each of these blocks, on average.
constexpr int64_t kEntriesAtOnce = 8;

// A counting sort by column: each part of the rows counts its entries by column, which says where
// the part's entries of each column go. Any number of parts gives the same order. Entries are moved
// one block of columns after the other.
template <typename index_t>
void transpose(
    const CsrView<index_t>& csr,
    index_t* ccol,        // [cols + 1]
    index_t* row_index,   // [nnz]
    index_t* permutation  // [nnz]
) {
  const int64_t parts =
      std::max<int64_t>(std::min({thread_count(), csr.nnz / kGrain, csr.nnz / (csr.cols + 1)}), 1);
  std::vector<int64_t> first_row(parts + 1);
  for (int64_t part = 0; part <= parts; ++part) {  // as many entries for each, nearly
    const index_t* end = csr.crow_indices + csr.rows;
    const auto share = static_cast<index_t>(csr.nnz * part / parts);
    first_row[part] = part == parts
                          ? csr.rows
                          : std::lower_bound(csr.crow_indices, end, share) - csr.crow_indices;
  }
  std::vector<index_t> next(parts * csr.cols, 0);  // of each part, by column
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      index_t* count = next.data() + part * csr.cols;
      for (int64_t p = csr.crow_indices[first_row[part]]; p < csr.crow_indices[first_row[part + 1]];
           ++p) {
        ++count[csr.col_indices[p]];
      }
    }
  });
  index_t sum = 0;
  for (int64_t col = 0; col < csr.cols; ++col) {
    ccol[col] = sum;
    for (int64_t part = 0; part < parts; ++part) {
      const index_t count = next[part * csr.cols + col];
      next[part * csr.cols + col] = sum;
      sum += count;
    }
  }
  ccol[csr.cols] = sum;
  const int64_t most_blocks = csr.nnz / (kEntriesAtOnce * csr.rows + 1);
  const int64_t blocks = std::max<int64_t>(std::min(csr.cols / kColumnsAtOnce, most_blocks), 1);
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      index_t* place = next.data() + part * csr.cols;
      const int64_t first = first_row[part], end = first_row[part + 1];
      std::vector<index_t> next_of_row(csr.crow_indices + first, csr.crow_indices + end);
      for (int64_t block = 1; block <= blocks; ++block) {
        const int64_t block_end = csr.cols * block / blocks;
        for (int64_t row = first; row < end; ++row) {
          index_t p = next_of_row[row - first];
          for (; p < csr.crow_indices[row + 1] && csr.col_indices[p] < block_end; ++p) {
            const index_t at = place[csr.col_indices[p]]++;
            row_index[at] = static_cast<index_t>(row);
            permutation[at] = p;
          }
          next_of_row[row - first] = p;
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> csr_transpose_cpu(
    Tensor crow_indices, Tensor col_indices, int64_t cols
) {
  const int64_t rows = check_csr(kOp, crow_indices, col_indices);
  STD_TORCH_CHECK(cols >= 0, kOp, ": cols must not be negative, got ", cols);
  Tensor ccol_indices = torch::stable::new_empty(col_indices, {cols + 1});
  Tensor row_indices = torch::stable::empty_like(col_indices);
  Tensor permutation = torch::stable::empty_like(col_indices);
  dispatch_index(crow_indices.scalar_type(), kOp, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const CsrView<index_t> csr{
        rows,
        cols,
        col_indices.numel(),
        crow_indices.const_data_ptr<index_t>(),
        col_indices.const_data_ptr<index_t>()
    };
    const std::string fault = parallel_csr_fault(csr);
    STD_TORCH_CHECK(fault.empty(), kOp, ": ", fault);
    transpose(
        csr,
        ccol_indices.mutable_data_ptr<index_t>(),
        row_indices.mutable_data_ptr<index_t>(),
        permutation.mutable_data_ptr<index_t>()
    );
  });
  return {ccol_indices, row_indices, permutation};
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("csr_transpose", TORCH_BOX(&csr_transpose_cpu)); }

}  // namespace fullspectrum
