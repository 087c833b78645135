#pragma once

#include <cstdint>

#include "common/narrow_floats.h"

namespace fullspectrum {

// The rows that one call of a kernel takes, at most.
constexpr int64_t kRowBlock = 128;

// Rows of a sparse matrix, and the columns to take at a time: those whose strips of the panel stay
// in the first-level cache, where so many nonzeros share them that it pays; else all.
template <typename index_t>
struct SparseRows {
  const index_t* crow;  // [rows + 1], offsets into col and the values; crow[0] need not be 0
  const index_t* col;   // [nnz]
  int64_t rows;         // at most kRowBlock
  int64_t cols;
  int64_t block;  // at least 1
};

// The inner loops of the sparse linear operators on the CPU, for float, double and, computed as
// float, Float16Bits and BFloat16Bits.
//
// They work on panels. A panel holds `width` rows of a row-major matrix [batch, features], turned
// to [features, width]: each column of the sparse matrix then meets one contiguous strip of batch
// entries that fills whole vector registers. Strips are 64, 128 or 256 bytes wide and 64-byte
// aligned; a batch that does not fill its strip is padded with zeros.
template <typename storage_t, typename index_t>
struct PanelKernels {
  using scalar_t = compute_t<storage_t>;

  // Whether 0 <= index[p] <= last for all p.
  bool (*inside)(const index_t* index, int64_t count, index_t last);
  // panel[f, b] = rows[b * stride + f] for b < batch, 0 for batch <= b < width.
  void (*pack)(
      const storage_t* rows,  // [batch, features], rows `stride` apart
      int64_t stride,
      int64_t batch,
      int64_t features,
      int64_t width,
      scalar_t* panel  // [features, width]
  );
  // rows[b * stride + f] = panel[f, b] for b < batch.
  void (*unpack)(
      const scalar_t* panel,  // [features, width]
      int64_t width,
      int64_t batch,
      int64_t features,
      int64_t stride,
      storage_t* rows  // [batch, features], rows `stride` apart
  );
  // y[r, :] = bias[r] + sum over the nonzeros p of row r of value[p] x[col[p], :].
  void (*multiply)(
      const SparseRows<index_t>& w,
      const scalar_t* value,  // [nnz]
      const scalar_t* bias,   // [rows] or null
      const scalar_t* x,      // [cols, width]
      int64_t width,
      scalar_t* y  // [rows, width]
  );
  // out[p] (= or +=) the inner product of g[r, :] and x[col[p], :] for every nonzero p of row r.
  void (*sample)(
      const SparseRows<index_t>& w,
      const scalar_t* x,  // [cols, width]
      const scalar_t* g,  // [rows, width]
      int64_t width,
      bool accumulate,
      scalar_t* out  // [nnz]
  );
  // Both, each strip of x loaded once. There is no bias.
  void (*multiply_and_sample)(
      const SparseRows<index_t>& w,
      const scalar_t* value,  // [nnz]
      const scalar_t* x,      // [cols, width]
      const scalar_t* g,      // [rows, width]
      int64_t width,
      bool accumulate,
      scalar_t* y,   // [rows, width]
      scalar_t* out  // [nnz]
  );
};

// The width in bytes of the widest strip.
constexpr int64_t kPanelBytes = 256;

namespace baseline {
template <typename storage_t, typename index_t>
PanelKernels<storage_t, index_t> panel_kernels();
}
namespace avx2 {
template <typename storage_t, typename index_t>
PanelKernels<storage_t, index_t> panel_kernels();
}
namespace avx512 {
template <typename storage_t, typename index_t>
PanelKernels<storage_t, index_t> panel_kernels();
}

}  // namespace fullspectrum
