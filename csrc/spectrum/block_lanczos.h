#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/dense_svd.h"
#include "spectrum/problem.h"
#include "spectrum/random_start.h"
#include "spectrum/team_vectors.h"

namespace fullspectrum::spectrum {

// The leading singular values of one sparse matrix A [n, m], with error bounds: block
// Golub-Kahan-Lanczos bidiagonalisation (Golub, Luk, Overton, ACM TOMS 7, 1981) with full
// reorthogonalisation and thick restarts (Baglama, Reichel, SIAM J. Sci. Comput. 27, 2005).
//
// Two orthonormal bases grow block by block, U from A V and V from A^T U, so that A V = U T and
// A^T U = V T^T + Z L with a small projected matrix T and the next block Z. It never forms A^T A,
// which would lose singular values below 1e-8 of the largest. Written for a team of threads: one
// thread on the CPU, a block of threads on CUDA. All sums have a fixed order, so the result has the
// same bits whatever runs beside it.
template <typename Team>
class BlockLanczos : private TeamVectors<Team> {
 public:
  FULLSPECTRUM_DEVICE BlockLanczos(
      Team& team,
      const Problem& problem,
      const Sizes& sizes,
      double* workspace  // [sizes.workspace()]
  )
      : Vectors(team, workspace, sizes.stride()),
        tall_(problem.tall),
        narrow_(problem.narrow),
        size_(sizes),
        right_(workspace + sizes.block * sizes.stride()),
        left_(right_ + size_.stride() * size_.narrow),
        spare_(left_ + size_.stride() * size_.tall),
        projected_(spare_ + Sizes::larger(size_.kept, 2) * size_.tall),
        border_(projected_ + size_.capacity * size_.capacity),
        svd_(border_ + size_.block * size_.stride(), size_.capacity) {}

  // Writes the size.k leading singular values, descending, and their error bounds.
  FULLSPECTRUM_DEVICE void run(double tol, double* sigma, double* bound) {
    int64_t next_check = size_.complete() ? size_.narrow : 8 * size_.block;
    int restarts = 0;
    add_random_block();
    while (true) {
      step();
      const bool exhausted = right_count_ == size_.narrow;
      if (pending_ == 0 && !exhausted && size_.complete()) {
        add_random_block();
        continue;
      }
      // Without new vectors the space is invariant, and as its start was random it holds, with
      // probability one, up to `block` vectors of every singular value: the answer is exact.
      const bool finished = exhausted || pending_ == 0;
      const bool full = right_count_ + pending_ > size_.capacity;
      if (!finished && !full && right_count_ < next_check) {
        continue;
      }
      svd_.run(
          team_, projected_, left_count_, right_count_, size_.complete() ? size_.k : size_.kept
      );
      if (finished || restarts == kMaxRestarts || converged(tol)) {
        break;
      }
      next_check = right_count_ + right_count_ / 3;
      if (full) {
        restart();
        ++restarts;
        next_check = (size_.kept + size_.capacity) / 2;
      }
    }
    for (int64_t i = 0; i < size_.k; ++i) {
      report(i, sigma, bound);
    }
  }

 private:
  using Vectors = TeamVectors<Team>;
  using Vectors::combine;
  using Vectors::copy;
  using Vectors::fill_zero;
  using Vectors::multiply;
  using Vectors::orthonormalise;
  using Vectors::square_norm;
  using Vectors::subtract;
  using Vectors::team_;
  using Vectors::team_norm;

  // After so many restarts the values are reported with the bounds they have.
  static constexpr int kMaxRestarts = 500;
  // A vector whose norm falls below this part of the matrix's norm is rounding noise.
  static constexpr double kNoise = 256 * kEpsilon;

  // Adds U_j from A V_j, then the next block of V from A^T U_j.
  FULLSPECTRUM_DEVICE void step() {
    double* image = left_ + left_count_ * size_.tall;
    double* columns = projected_ + right_count_ * size_.capacity;
    multiply(tall_, right_ + right_count_ * size_.narrow, size_.narrow, image, pending_);
    fill_zero(columns, pending_ * size_.capacity);
    const int64_t width = orthonormalise(
        left_, left_count_, pending_, size_.tall, columns, size_.capacity, noise(image, size_.tall)
    );
    right_count_ += pending_;
    left_count_ += width;
    last_width_ = width;

    double* next = right_ + right_count_ * size_.narrow;
    multiply(narrow_, image, size_.tall, next, width);
    fill_zero(border_, size_.block * size_.stride());
    pending_ = width;
    pending_ = orthonormalise(
        right_,
        right_count_,
        width,
        size_.narrow,
        border_,
        size_.stride(),
        noise(next, size_.narrow)
    );
  }

  // Pending vectors drawn at random, orthogonal to all there are. The first is mostly positive, as
  // the leading vector of a matrix without negative entries is.
  FULLSPECTRUM_DEVICE void add_random_block() {
    const int64_t m = size_.narrow;
    double* block = right_ + right_count_ * m;
    pending_ = Sizes::smaller(size_.block, m - right_count_);
    for (int64_t at = team_.rank(); at < pending_ * m; at += team_.size()) {
      const double shift = right_count_ == 0 && at < m ? 1 : 0;
      block[at] = random_start(right_count_ * m + at) + shift;
    }
    team_.sync();
    pending_ = orthonormalise(right_, right_count_, pending_, m, border_, size_.stride(), kNoise);
    fill_zero(border_, size_.block * size_.stride());
  }

  // The norm below which what is left of an image of unit vectors is noise.
  FULLSPECTRUM_DEVICE double noise(const double* image, int64_t length) {
    for (int64_t t = 0; t < pending_; ++t) {
      const double norm = team_norm(image + t * length, length);
      scale_ = norm > scale_ ? norm : scale_;
    }
    return kNoise * scale_;
  }

  // Whether the residual of each value, estimated from T, is small enough.
  FULLSPECTRUM_DEVICE bool converged(double tol) {
    const double largest = svd_.sigma(0);
    for (int64_t i = 0; i < size_.k; ++i) {
      const double sigma = svd_.sigma(i);
      if (!(sigma > kNoise * largest)) {
        return false;  // nothing found yet for this one
      }
      const double* last = svd_.scaled_left(i) + left_count_ - last_width_;
      double square = 0;
      for (int64_t row = 0; row < pending_; ++row) {
        double sum = 0;
        for (int64_t t = 0; t < last_width_; ++t) {
          sum += border_[t * size_.stride() + right_count_ + row] * last[t];
        }
        square += sum * sum;
      }
      const double residual = std::sqrt(square) / sigma;
      const double wanted = tol * sigma;
      const double floor = 16 * kEpsilon * largest;
      if (!(residual <= (wanted > floor ? wanted : floor))) {
        return false;
      }
    }
    return true;
  }

  // Replaces both bases by their leading singular vectors; the pending block stays.
  FULLSPECTRUM_DEVICE void restart() {
    int64_t kept = 0;
    while (kept < size_.kept && kept < left_count_ && svd_.sigma(kept) > kNoise * svd_.sigma(0)) {
      ++kept;
    }
    for (int64_t i = 0; i < kept; ++i) {
      combine(
          left_,
          left_count_,
          size_.tall,
          svd_.scaled_left(i),
          svd_.sigma(i),
          spare_ + i * size_.tall
      );
    }
    copy(spare_, left_, kept * size_.tall);
    for (int64_t i = 0; i < kept; ++i) {
      combine(right_, right_count_, size_.narrow, svd_.right(i), 1, spare_ + i * size_.narrow);
    }
    copy(spare_, right_, kept * size_.narrow);
    copy(
        right_ + right_count_ * size_.narrow, right_ + kept * size_.narrow, pending_ * size_.narrow
    );
    fill_zero(projected_, kept * size_.capacity);
    if (team_.rank() == 0) {
      for (int64_t i = 0; i < kept; ++i) {
        projected_[i * size_.capacity + i] = svd_.sigma(i);
      }
    }
    team_.sync();
    left_count_ = kept;
    right_count_ = kept;
  }

  // Writes value i and its bound, from residuals computed with A itself: for unit vectors u and v
  // some singular value lies within ||(A v - sigma u, A^T u - sigma v)|| / sqrt(2) of sigma, which
  // is the residual of the symmetric matrix [[0, A], [A^T, 0]].
  FULLSPECTRUM_DEVICE void report(int64_t i, double* sigma, double* bound) {
    const int64_t n = size_.tall;
    const int64_t m = size_.narrow;
    double* u = spare_;
    double* v = spare_ + n;
    double* image = left_ + left_count_ * n;
    double* back = right_ + right_count_ * m;
    combine(right_, right_count_, m, svd_.right(i), 1, v);
    multiply(tall_, v, m, image, 1);
    double value = team_norm(image, n);
    double residual = value;  // with no left vector: A v = 0 up to this
    if (svd_.sigma(i) > kNoise * svd_.sigma(0)) {
      combine(left_, left_count_, n, svd_.scaled_left(i), svd_.sigma(i), u);
      multiply(narrow_, u, n, back, 1);
      value = team_.dot(u, image, n);
      team_.sync();
      subtract(image, u, value, n);
      subtract(back, v, value, m);
      residual = std::sqrt((square_norm(image, n) + square_norm(back, m)) / 2);
    }
    if (team_.rank() == 0) {
      sigma[i] = value;
      bound[i] = residual + rounding();
      for (int64_t j = i; j > 0 && sigma[j] > sigma[j - 1]; --j) {
        swap(sigma[j], sigma[j - 1]);
        swap(bound[j], bound[j - 1]);
      }
    }
    team_.sync();
  }

  // What rounding adds to a residual: sums over lists of length d err by about sqrt(d) units.
  FULLSPECTRUM_DEVICE double rounding() const {
    const double entries = static_cast<double>(tall_.offset[tall_.size] - tall_.offset[0]);
    return kEpsilon * svd_.sigma(0) * (8 + 4 * std::sqrt(entries / size_.narrow));
  }

  FULLSPECTRUM_DEVICE static void swap(double& a, double& b) {
    const double kept = a;
    a = b;
    b = kept;
  }

  const Lists tall_;
  const Lists narrow_;
  const Sizes size_;
  double* right_;      // V [capacity + block, m]
  double* left_;       // U [capacity + block, n]
  double* spare_;      // [max(kept, 2), n]
  double* projected_;  // T [capacity, capacity], one column after the other
  double* border_;     // L: coordinates of the last A^T U_j, [block, capacity + block]
  DenseSvd svd_;
  int64_t right_count_ = 0;  // vectors of V whose images are in T
  int64_t left_count_ = 0;   // vectors of U
  int64_t last_width_ = 0;   // of them, in the last block
  int64_t pending_ = 0;      // vectors of V that follow
  double scale_ = 0;         // a lower bound of the largest singular value
};

}  // namespace fullspectrum::spectrum
