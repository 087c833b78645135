#pragma once

#include <cstdint>

#include "spectrum/gram_operator.h"

namespace fullspectrum::spectrum {

// The leading singular values of A by block Lanczos iteration on its Gram matrix with full
// reorthogonalisation (Golub, Underwood: The block Lanczos method for computing eigenvalues, 1977).
// The block has as many vectors as values are wanted (at least two), so that a value that is there
// twice is found twice. Gram matrices of at most 64 rows are diagonalised completely instead.
//
// A residual r of an eigenvalue theta of G is worth r / (sigma + sqrt(theta - r)) in sigma:
// squaring costs accuracy where sigma is far below the largest one. run() sees that and says so.
class GramLanczos {
 public:
  static constexpr int64_t kComplete = 64;
  static constexpr int64_t kMinBlock = 2;
  // Whether the iteration can find so many values.
  static bool can_find(int64_t k, int64_t size) { return k <= 2 || size <= kComplete; }

  // `rounding` is the largest error that rounding makes in the product of G with a unit vector,
  // that of forming G included.
  GramLanczos(const GramOperator& gram, double rounding, GramScratch& scratch);

  // Writes the k <= size leading singular values, descending, and their certified bounds, and
  // returns true; or returns false where rounding would make a bound exceed tol times its value, or
  // where values nearly coincide, which takes a wider block to sort out. A large matrix whose
  // leading values are too dense for the iteration comes with the bounds that it has reached.
  bool run(int64_t k, double tol, double* sigma, double* bound);

 private:
  enum class Outcome { converged, unclear, unfinished };

  int64_t most_vectors() const;
  Outcome iterate(int64_t k, double tol);
  void add_random_block(int64_t width);
  void step();
  int64_t orthonormalise(int64_t first, int64_t width, double* coordinates, double noise);
  void project_out(int64_t from, int64_t to, double* block, int64_t width, double* coordinates);
  bool nearly_coincide(int64_t k) const;
  double log_excess(int64_t k, double tol) const;
  double norm(const double* x) const;
  double* vector(int64_t i) { return basis_ + i * stride_; }

  const GramKernels& kernels_;
  const GramOperator& gram_;
  const double rounding_;
  const int64_t size_;
  const int64_t stride_;
  GramScratch& scratch_;
  int64_t capacity_ = 0;     // vectors in the basis
  int64_t row_ = 0;          // length of a set of coordinates, padded
  double* basis_ = nullptr;  // [capacity + 2, stride]
  double* band_ = nullptr;   // V^T G V [i, i - d] for d <= 2: the rest is zero, [capacity + 2, 3]
  double* coordinates_ = nullptr;  // of the last images along the basis, [2, row]
  double* border_ = nullptr;       // of these, those along the pending vectors, [2, 2]
  double* theta_ = nullptr;        // [k + 1]
  double* ritz_ = nullptr;         // eigenvectors of the projected matrix, [k, row]
  double* work_ = nullptr;
  int64_t computed_ = 0;    // vectors whose images are in the projected matrix
  int64_t pending_ = 0;     // vectors that follow
  int64_t last_width_ = 0;  // of the block before them
  double scale_ = 0;        // a lower bound of the norm of G
};

}  // namespace fullspectrum::spectrum
