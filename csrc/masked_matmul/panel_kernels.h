#pragma once

#include <cstdint>

namespace fullspectrum {

// The inner loops of the sparse linear operators on the CPU, for scalar_t float or double.
//
// They work on panels. A panel holds `width` rows of a row-major matrix [batch, features], turned
// to [features, width]: each column of the sparse matrix then meets one contiguous strip of batch
// entries that fills whole vector registers. Strips are 64, 128 or 256 bytes wide and 64-byte
// aligned; a batch that does not fill its strip is padded with zeros.
template <typename scalar_t, typename index_t>
struct PanelKernels {
  // Whether 0 <= col[p] <= last for all p.
  bool (*inside)(const index_t* col, int64_t nnz, index_t last);
  // panel[f, b] = rows[b * stride + f] for b < batch, 0 for batch <= b < width.
  void (*pack)(
      const scalar_t* rows,  // [batch, features], rows `stride` apart
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
      scalar_t* rows  // [batch, features], rows `stride` apart
  );
  // y[r, :] = bias[r] + sum over the nonzeros p of row r of value[p] x[col[p], :].
  void (*multiply)(
      const index_t* crow,    // [rows + 1], offsets into col and value; crow[0] need not be 0
      const index_t* col,     // [nnz]
      const scalar_t* value,  // [nnz]
      const scalar_t* bias,   // [rows] or null
      const scalar_t* x,      // [cols, width]
      int64_t rows,
      int64_t width,
      scalar_t* y  // [rows, width]
  );
  // out[p] (= or +=) the inner product of grad[r, :] and x[col[p], :] for every nonzero p of row r.
  void (*sample)(
      const index_t* crow,   // [rows + 1], as above
      const index_t* col,    // [nnz]
      const scalar_t* grad,  // [rows, width]
      const scalar_t* x,     // [cols, width]
      int64_t rows,
      int64_t width,
      bool accumulate,
      scalar_t* out  // [nnz]
  );
};

// The width in bytes of the widest strip.
constexpr int64_t kPanelBytes = 256;

namespace baseline {
template <typename scalar_t, typename index_t>
PanelKernels<scalar_t, index_t> panel_kernels();
}
namespace avx2 {
template <typename scalar_t, typename index_t>
PanelKernels<scalar_t, index_t> panel_kernels();
}
namespace avx512 {
template <typename scalar_t, typename index_t>
PanelKernels<scalar_t, index_t> panel_kernels();
}

}  // namespace fullspectrum
