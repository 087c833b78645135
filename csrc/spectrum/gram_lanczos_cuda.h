#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/cuda_team.h"
#include "spectrum/leading_eigen.h"
#include "spectrum/problem.h"
#include "spectrum/random_start.h"
#include "spectrum/team_vectors.h"

namespace fullspectrum::spectrum {

// The Gram matrix of a problem's shorter side as the kernels left it. Counts and the sums of small
// problems are as exact as float64; other sums are rounded to float32.
struct CudaGram {
  const float* rounded = nullptr;  // [size, size], or
  const double* sums = nullptr;    // [size, size], or neither: the lists are multiplied instead
  bool exact = true;
};

// The leading singular values of A by block Lanczos iteration on its Gram matrix, by one block of
// threads: the algorithm of gram_lanczos.h. Vectors are float64 whatever the matrix is stored in,
// and what is reported comes from A itself: for unit y, theta = ||A y||^2 and the residual
// A^T A y - theta y.
class CudaGramLanczos : private TeamVectors<CudaTeam> {
 public:
  // Gram matrices of at most so many rows are diagonalised completely.
  static constexpr int64_t kComplete = 64;
  // A basis of so many vectors has converged, or would take longer than the fallback.
  static constexpr int64_t kCapacity = 192;

  // Whether the iteration can find so many values.
  FULLSPECTRUM_HOST_DEVICE static bool can_find(int64_t k, int64_t size) {
    return k <= 2 || size <= kComplete;
  }

  // Doubles of workspace; grows with each argument.
  FULLSPECTRUM_HOST_DEVICE static int64_t workspace(int64_t narrow, int64_t tall, int64_t k) {
    const int64_t capacity = Sizes::smaller(narrow, kCapacity);
    const int64_t row = capacity + 2;
    const int64_t found = Sizes::smaller(k, Sizes::smaller(narrow, kComplete));
    return 2 * row + (capacity + 4) * narrow + 2 * narrow + 2 * tall + (2 * capacity + 2) * row +
           4 + (found + 1) + found * (row + 2) + LeadingEigen::workspace(row, found);
  }

  __device__ CudaGramLanczos(
      CudaTeam& team,
      const Problem& problem,
      const CudaGram& gram,
      int64_t k,         // at most the size, and such that can_find(k, size)
      double* workspace  // [workspace(narrow, tall, k)]
  )
      : TeamVectors<CudaTeam>(team, workspace, row_length(problem)),
        tall_(problem.tall),
        narrow_(problem.narrow),
        gram_(gram),
        size_(problem.narrow.size),
        capacity_(row_length(problem) - 2),
        row_(row_length(problem)),
        k_(k),
        basis_(workspace + 2 * row_),
        vector_(basis_ + (capacity_ + 4) * size_),
        image_(vector_ + 2 * size_),
        projected_(image_ + 2 * tall_.size),
        h_(projected_ + (capacity_ + 2) * row_),
        border_(h_ + capacity_ * row_),
        theta_(border_ + 4),
        ritz_(theta_ + k + 1),
        found_(ritz_ + k * row_),
        leading_(found_ + 2 * k, row_, k) {}

  // Writes the k leading singular values, descending, and their certified bounds, and returns true;
  // or returns false where a bound would exceed tol times its value, or where values nearly
  // coincide, which takes a wider block to sort out.
  __device__ bool run(double tol, double* sigma, double* bound) {
    rounding_ = kEpsilon * (8 + longest(tall_) + longest(narrow_)) * sum_of_squares();
    if (size_ <= kComplete) {
      diagonalise();
    } else if (!iterate(tol)) {
      return false;
    }
    for (int64_t i = 0; i < k_; ++i) {
      if (!certify(i, tol)) {
        return false;
      }
    }
    for (int64_t i = 0; i < k_ && team_.rank() == 0; ++i) {
      int64_t at = i;
      for (; at > 0 && sigma[at - 1] < found_[2 * i]; --at) {
        sigma[at] = sigma[at - 1];
        bound[at] = bound[at - 1];
      }
      sigma[at] = found_[2 * i];
      bound[at] = found_[2 * i + 1];
    }
    return true;
  }

 private:
  static constexpr int64_t kBlock = 2;
  static constexpr double kNoise = 256 * kEpsilon;

  __device__ static int64_t row_length(const Problem& problem) {
    return Sizes::smaller(problem.narrow.size, kCapacity) + 2;
  }

  // All eigenvalues at once: what to_dense() copies is small.
  __device__ void diagonalise() {
    for (int64_t at = team_.rank(); at < size_ * size_; at += team_.size()) {
      h_[at / size_ * row_ + at % size_] = gram_.sums ? gram_.sums[at] : gram_.rounded[at];
    }
    team_.sync();
    leading_.run(team_, h_, size_, k_, theta_, ritz_);
  }

  // Grows the basis until the leading k eigenvalues have converged. False if they do not within the
  // capacity.
  __device__ bool iterate(double tol) {
    add_random_block();
    int64_t next_check = 8 * k_;
    int64_t last_check = 0;
    double last_excess = -std::log(tol);
    while (true) {
      step();
      // Without new vectors the space is invariant, and as its start was random it holds, with
      // probability one, up to kBlock vectors of every eigenvalue: the answer is exact.
      const bool finished = pending_ == 0 || computed_ == size_;
      const bool full = computed_ + pending_ > capacity_;
      if (!finished && !full && computed_ < next_check) {
        continue;
      }
      if (computed_ < k_) {
        return false;  // fewer dimensions than values: some are zero
      }
      for (int64_t at = team_.rank(); at < computed_ * computed_; at += team_.size()) {
        const int64_t i = at / computed_;
        const int64_t j = at % computed_;
        h_[i * row_ + j] = j <= i ? projected_[i * row_ + j] : projected_[j * row_ + i];
      }
      team_.sync();
      leading_.run(team_, h_, computed_, k_, theta_, ritz_);
      const double excess = finished ? 0 : log_excess(tol);
      if (excess <= 0) {
        return computed_ == size_ ? gram_.exact || !nearly_coincide() : !nearly_coincide();
      }
      if (full) {
        return false;
      }
      // The residuals fall about geometrically: the next check comes when they should be small
      // enough.
      const double here = static_cast<double>(computed_);
      const double fall = (last_excess - excess) / (here - static_cast<double>(last_check));
      const double wait = fall > 0 ? excess / fall : 4 * here;
      if (2 * computed_ > capacity_ && here + wait > 2 * static_cast<double>(capacity_)) {
        return false;  // it will not get there
      }
      last_check = computed_;
      last_excess = excess;
      const double ahead = 0.9 * wait < 0.6 * here ? 0.9 * wait : 0.6 * here;
      next_check = computed_ + Sizes::larger(2 * k_, static_cast<int64_t>(ahead));
    }
  }

  // The first vector is mostly positive, as the leading one of a matrix without negative entries
  // is.
  __device__ void add_random_block() {
    for (int64_t at = team_.rank(); at < kBlock * size_; at += team_.size()) {
      basis_[at] = random_start(at) + (at < size_ ? 1 : 0);
    }
    fill_zero(projected_, kBlock * row_);
    pending_ = orthonormalise(basis_, 0, kBlock, size_, projected_, row_, kNoise);
    fill_zero(projected_, (capacity_ + 2) * row_);
  }

  // Multiplies the pending vectors and makes what is new in their images the next block.
  __device__ void step() {
    const int64_t first = computed_ + pending_;
    double* image = basis_ + first * size_;
    double* coordinates = projected_ + computed_ * row_;
    multiply_gram(basis_ + computed_ * size_, pending_, image);
    for (int64_t t = 0; t < pending_; ++t) {
      const double norm = team_norm(image + t * size_, size_);
      scale_ = norm > scale_ ? norm : scale_;
    }
    const int64_t found =
        orthonormalise(basis_, first, pending_, size_, coordinates, row_, kNoise * scale_);
    for (int64_t t = team_.rank(); t < pending_ * kBlock; t += team_.size()) {
      const int64_t f = t % kBlock;
      border_[t] = f < found ? coordinates[t / kBlock * row_ + first + f] : 0;
    }
    team_.sync();
    last_width_ = pending_;
    computed_ += pending_;
    pending_ = computed_ < size_ ? found : 0;
  }

  // y_t = G x_t for one or two vectors. A warp owns eight rows, so that enough reads are on their
  // way at once: one block has a whole matrix to read.
  __device__ void multiply_gram(const double* x, int64_t width, double* y) {
    if (gram_.rounded == nullptr) {
      multiply(tall_, x, size_, image_, width);
      multiply(narrow_, image_, tall_.size, y, width);
      return;
    }
    constexpr int kRows = 8;
    const double* second = width == 2 ? x + size_ : x;
    for (int64_t first = kRows * team_.worker(); first < size_; first += kRows * team_.workers()) {
      const float* entry[kRows];
      for (int r = 0; r < kRows; ++r) {  // rows beyond the last are computed and not written
        entry[r] = gram_.rounded + Sizes::smaller(first + r, size_ - 1) * size_;
      }
      double sum[2][kRows] = {};
      for (int64_t j = team_.lane(); j < size_; j += kWarp) {
        for (int r = 0; r < kRows; ++r) {
          const double value = entry[r][j];
          sum[0][r] += value * x[j];
          sum[1][r] += value * second[j];
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int t = 0; t < 2; ++t) {
          const double total = team_.warp_sum(sum[t][r]);
          if (team_.lane() == 0 && t < width && first + r < size_) {
            y[t * size_ + first + r] = total;
          }
        }
      }
    }
    team_.sync();
  }

  // Whether two of the leading k + 1 eigenvalues are closer than the iteration tells apart, yet not
  // equal. A cluster of more such values than the block has vectors shows as mixtures of them, each
  // close to a value of the cluster, though perhaps not to the i-th one. Rounded sums blur equal
  // values.
  __device__ bool nearly_coincide() const {
    const double equal = gram_.exact ? 1e-11 : -1;
    constexpr double kApart = 1e-5;
    for (int64_t i = 0; i < k_ && i + 1 < computed_; ++i) {
      const double gap = (theta_[i] - theta_[i + 1]) / theta_[0];
      if (gap > equal && gap < kApart) {
        return true;
      }
    }
    return false;
  }

  // The logarithm of how many times too large the worst residual is, estimated from the border; a
  // residual that rounding hides is small enough.
  __device__ double log_excess(double tol) const {
    const double hidden = rounding_ + (gram_.exact ? 0 : 0x1p-26 * theta_[0]);
    double worst = 0;
    for (int64_t i = 0; i < k_; ++i) {
      const double* last = ritz_ + i * row_ + computed_ - last_width_;
      double square = 0;
      for (int64_t f = 0; f < pending_; ++f) {
        double sum = 0;
        for (int64_t t = 0; t < last_width_; ++t) {
          sum += border_[kBlock * t + f] * last[t];
        }
        square += sum * sum;
      }
      const double wanted = 1.8 * tol * theta_[i] - hidden;
      const double excess = std::sqrt(square) / (wanted > hidden ? wanted : hidden);
      worst = excess > worst ? excess : worst;
    }
    return std::log(worst);
  }

  // Finds value i and its bound from A itself. For any vector y some eigenvalue of A^T A lies
  // within ||A^T A y - theta y|| / ||y|| = rho of theta; in sigma that is worth
  // rho / (sigma + sqrt(theta - rho)).
  __device__ bool certify(int64_t i, double tol) {
    double* y = vector_;
    double* residual = vector_ + size_;
    const double* ritz = ritz_ + i * row_;
    if (size_ <= kComplete) {
      copy(ritz, y, size_);
    } else {
      combine(basis_, computed_, size_, ritz, 1, y);
    }
    multiply(tall_, y, size_, image_, 1);
    multiply(narrow_, image_, tall_.size, residual, 1);
    const double square = square_norm(y, size_);
    const double theta = square_norm(image_, tall_.size) / square;
    subtract(residual, y, theta, size_);
    const double error = team_norm(residual, size_) / std::sqrt(square) + rounding_;
    if (!(theta > error)) {
      return false;
    }
    const double sigma = std::sqrt(theta);
    const double bound = error / (sigma + std::sqrt(theta - error)) + 4 * kEpsilon * sigma;
    if (team_.rank() == 0) {
      found_[2 * i] = sigma;
      found_[2 * i + 1] = bound;
    }
    return bound <= tol * sigma;
  }

  // The longest list's length.
  __device__ double longest(const Lists& lists) const {
    int64_t length = 0;
    for (int64_t node = team_.lane(); node < lists.size; node += kWarp) {
      length = Sizes::larger(length, lists.offset[node + 1] - lists.offset[node]);
    }
    return team_.warp_largest(static_cast<double>(length));
  }

  __device__ double sum_of_squares() {
    const int64_t first = narrow_.offset[0];
    const int64_t entries = narrow_.offset[size_] - first;
    return narrow_.value ? square_norm(narrow_.value + first, entries)
                         : static_cast<double>(entries);
  }

  const Lists tall_;
  const Lists narrow_;
  const CudaGram gram_;
  const int64_t size_;
  const int64_t capacity_;  // vectors in the basis
  const int64_t row_;       // length of a set of coordinates
  const int64_t k_;
  double* basis_;      // [capacity + 4, size]
  double* vector_;     // [2, size]
  double* image_;      // [2, tall]
  double* projected_;  // V^T G V, lower triangle, [capacity + 2, row]
  double* h_;          // [capacity, row]
  double* border_;     // coordinates of the last images along the pending vectors, [2, 2]
  double* theta_;      // [k + 1]
  double* ritz_;       // eigenvectors of the projected matrix, [k, row]
  double* found_;      // values and bounds, [k, 2]
  LeadingEigen leading_;
  int64_t computed_ = 0;    // vectors whose images are in the projected matrix
  int64_t pending_ = 0;     // vectors that follow
  int64_t last_width_ = 0;  // of the block before them
  double scale_ = 0;        // a lower bound of the norm of G
  double rounding_ = 0;     // what rounding adds to a product with A^T A
};

}  // namespace fullspectrum::spectrum
