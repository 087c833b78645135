#pragma once

#include <cstdint>
#include <vector>

#include "spectrum/gram_operator.h"
#include "spectrum/pair_kernels.h"

namespace fullspectrum::spectrum {

// The two leading eigenvectors of a large Gram matrix in the memory of ten vectors: block Lanczos
// iteration without a stored basis and without reorthogonalisation. A first pass computes the
// projected matrix, a second one repeats the same steps bit by bit and sums the eigenvectors.
//
// Orthogonality is lost only along eigenvectors that have converged to half of all digits (Paige:
// The Computation of Eigenvalues and Eigenvectors of Very Large Sparse Matrices, 1971). Before the
// first of two wanted ones does, a run ends; it is locked, and the next run stays orthogonal to it
// (Parlett, Scott, Math. Comp. 33, 1979).
class TwoPassLanczos {
 public:
  // `rounding` as in GramLanczos.
  TwoPassLanczos(const GramOperator& gram, double rounding, GramScratch& scratch);

  // Improves k <= 2 approximate eigenvectors y [k, gram.stride()] until their residuals are worth
  // at most tol in the singular values, or no more can be had in reasonable time.
  void run(int64_t k, double tol, double* y);

 private:
  static constexpr int64_t kWidth = 2;
  // G V_j = V_{j-1} R_{j-1}^T + V_j A_j + Y C_j + V_{j+1} R_j with locked vectors Y, [2, 2] each.
  struct Step {
    double before[4];        // R_{j-1}^T
    double along[4];         // A_j, in two parts
    double locked[4];        // C_j
    double before_again[4];  // what rounding has left along V_{j-1}
    double along_again[4];
    double next[4];  // R_j, upper triangular
    double inverse[4];
  };
  // Vectors and what is taken of them.
  struct Part {
    const double* pairs;
    const double* factor;
  };

  void make_start(bool second);
  void assess();
  void lock_first();
  bool iterate(int64_t wanted, double tol);
  void find_leading();
  double log_excess(int64_t wanted, double tol) const;
  double residual(int64_t i) const;
  bool advance(Step& step, bool known);
  void collect();
  void begin();
  void subtract(
      double* x,
      const std::vector<Part>& parts,
      const std::vector<const double*>& measured,
      double* sums
  );
  void transform(double* x, const double* factor);
  void for_each_block(const std::function<void(int64_t first, int64_t rows)>& body);
  int64_t blocks() const;
  void sum_blocks(int64_t count, double* sums) const;
  double wanted_residual(double theta, double tol) const;

  const PairKernels& kernels_;
  const GramOperator& gram_;
  const double rounding_;
  GramScratch& scratch_;
  const int64_t rows_;           // of a pair of vectors, padded
  double* previous_;             // V_{j-1} [rows, 2], as are all pairs
  double* current_;              // V_j
  double* next_;                 // V_{j+1}
  double* locked_;               // Y
  double* leading_;              // where a run starts and what it ends with
  std::vector<double> partial_;  // sums of each block of rows
  int64_t locks_ = 0;
  std::vector<Step> steps_;
  std::vector<double> band_;
  std::vector<double> ritz_;
  std::vector<double> work_;
  int64_t ritz_stride_ = 0;
  double theta_[kWidth + 1] = {};
  double residual_[kWidth] = {};
};

}  // namespace fullspectrum::spectrum
