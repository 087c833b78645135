#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/dense_svd.h"
#include "spectrum/problem.h"
#include "spectrum/random_start.h"

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
class BlockLanczos {
 public:
  FULLSPECTRUM_DEVICE BlockLanczos(
      Team& team,
      const Problem& problem,
      const Sizes& sizes,
      double* workspace  // [sizes.workspace()]
  )
      : team_(team),
        tall_(problem.tall),
        narrow_(problem.narrow),
        size_(sizes),
        right_(workspace),
        left_(right_ + size_.stride() * size_.narrow),
        spare_(left_ + size_.stride() * size_.tall),
        projected_(spare_ + Sizes::larger(size_.kept, 2) * size_.tall),
        border_(projected_ + size_.capacity * size_.capacity),
        product_(border_ + size_.block * size_.stride()),
        svd_(product_ + size_.block * size_.stride(), size_.capacity) {}

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

  // Orthogonalises block [width, length], which follows basis [count, length] in memory, against it
  // and within itself. Independent vectors move to the front, noise is dropped. coordinates
  // [width, stride] must be zero and receive each vector's part along basis and new vectors.
  // Returns the number of new vectors.
  FULLSPECTRUM_DEVICE int64_t orthonormalise(
      double* basis,
      int64_t count,
      int64_t width,
      int64_t length,
      double* coordinates,
      int64_t stride,
      double noise_level
  ) {
    double* block = basis + count * length;
    int64_t found = 0;
    project_out(basis, count, length, block, width, coordinates, stride);
    for (int64_t t = 0; t < width && count + found < length; ++t) {
      double* vector = block + t * length;
      double* along = coordinates + t * stride;
      double norm = team_norm(vector, length);
      // Against the vectors before it in the block; against the whole basis again only if, and as
      // long as, more than half of the vector goes (Kahan, Parlett: twice is enough).
      bool enough = norm > 0.5 * std::sqrt(norm * norm + square_norm(along, count));
      constexpr int kMaxPasses = 5;
      for (int pass = 0; pass < kMaxPasses && norm > noise_level; ++pass) {
        const double before = norm;
        const int64_t first = enough ? count : 0;
        const int64_t others = count + found - first;
        project_out(basis + first * length, others, length, vector, 1, along + first, stride);
        norm = team_norm(vector, length);
        enough = norm > 0.5 * before;
        if (enough) {
          break;
        }
      }
      if (!(norm > noise_level)) {
        continue;
      }
      double* target = block + found * length;
      for (int64_t i = team_.rank(); i < length; i += team_.size()) {
        target[i] = vector[i] / norm;
      }
      if (team_.rank() == 0) {
        along[count + found] = norm;
      }
      team_.sync();
      ++found;
    }
    return found;
  }

  // block_t -= sum_i <basis_i, block_t> basis_i, and coordinates_ti += <basis_i, block_t>.
  FULLSPECTRUM_DEVICE void project_out(
      const double* basis,
      int64_t count,
      int64_t length,
      double* block,
      int64_t width,
      double* coordinates,
      int64_t stride
  ) {
    for (int64_t job = team_.worker(); job < count * width; job += team_.workers()) {
      const int64_t i = job / width;
      const int64_t t = job % width;
      const double dot = team_.dot(basis + i * length, block + t * length, length);
      if (team_.lane() == 0) {
        product_[t * size_.stride() + i] = -dot;
        coordinates[t * stride + i] += dot;
      }
    }
    team_.sync();
    for (int64_t t = 0; t < width; ++t) {
      const double* weight = product_ + t * size_.stride();
      team_.add_combination(basis, length, count, length, weight, block + t * length);
    }
    team_.sync();
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

  // y_t = A x_t for `count` vectors, A given by lists: a thread owns a list, for up to four vectors
  // at a time.
  FULLSPECTRUM_DEVICE void multiply(
      const Lists& lists, const double* x, int64_t x_stride, double* y, int64_t count
  ) {
    for (int64_t t = 0; t < count; t += 4) {
      const double* from = x + t * x_stride;
      double* to = y + t * lists.size;
      switch (count - t) {
        case 1:
          multiply_some<1>(lists, from, x_stride, to);
          break;
        case 2:
          multiply_some<2>(lists, from, x_stride, to);
          break;
        case 3:
          multiply_some<3>(lists, from, x_stride, to);
          break;
        default:
          multiply_some<4>(lists, from, x_stride, to);
      }
    }
    team_.sync();
  }

  template <int kVectors>
  FULLSPECTRUM_DEVICE void multiply_some(
      const Lists& lists, const double* x, int64_t x_stride, double* y
  ) {
    for (int64_t node = team_.rank(); node < lists.size; node += team_.size()) {
      double sum[kVectors] = {};
      for (int64_t p = lists.offset[node]; p < lists.offset[node + 1]; ++p) {
        const double value = lists.value ? lists.value[p] : 1;
        for (int t = 0; t < kVectors; ++t) {
          sum[t] += value * x[t * x_stride + lists.index[p]];
        }
      }
      for (int t = 0; t < kVectors; ++t) {
        y[t * lists.size + node] = sum[t];
      }
    }
  }

  // out = sum_i weight_i basis_i / divisor
  FULLSPECTRUM_DEVICE void combine(
      const double* basis,
      int64_t count,
      int64_t length,
      const double* weight,
      double divisor,
      double* out
  ) {
    fill_zero(out, length);
    team_.add_combination(basis, length, count, length, weight, out);
    for (int64_t i = team_.rank(); i < length; i += team_.size()) {
      out[i] /= divisor;
    }
    team_.sync();
  }

  FULLSPECTRUM_DEVICE void subtract(double* y, const double* x, double factor, int64_t length) {
    for (int64_t i = team_.rank(); i < length; i += team_.size()) {
      y[i] -= factor * x[i];
    }
    team_.sync();
  }

  FULLSPECTRUM_DEVICE void fill_zero(double* out, int64_t length) {
    for (int64_t i = team_.rank(); i < length; i += team_.size()) {
      out[i] = 0;
    }
    team_.sync();
  }

  // `to` may lie before `from` and overlap it, one team-wide stretch at a time.
  FULLSPECTRUM_DEVICE void copy(const double* from, double* to, int64_t length) {
    for (int64_t first = 0; first < length; first += team_.size()) {
      const int64_t i = first + team_.rank();
      const double value = i < length ? from[i] : 0;
      team_.sync();
      if (i < length) {
        to[i] = value;
      }
      team_.sync();
    }
  }

  // Every worker computes the same sum, so that all threads agree on it.
  FULLSPECTRUM_DEVICE double square_norm(const double* x, int64_t length) {
    const double square = team_.dot(x, x, length);
    team_.sync();
    return square;
  }
  FULLSPECTRUM_DEVICE double team_norm(const double* x, int64_t length) {
    return std::sqrt(square_norm(x, length));
  }

  FULLSPECTRUM_DEVICE static void swap(double& a, double& b) {
    const double kept = a;
    a = b;
    b = kept;
  }

  Team& team_;
  const Lists tall_;
  const Lists narrow_;
  const Sizes size_;
  double* right_;      // V [capacity + block, m]
  double* left_;       // U [capacity + block, n]
  double* spare_;      // [max(kept, 2), n]
  double* projected_;  // T [capacity, capacity], one column after the other
  double* border_;     // L: coordinates of the last A^T U_j, [block, capacity + block]
  double* product_;    // inner products, [block, capacity + block]
  DenseSvd svd_;
  int64_t right_count_ = 0;  // vectors of V whose images are in T
  int64_t left_count_ = 0;   // vectors of U
  int64_t last_width_ = 0;   // of them, in the last block
  int64_t pending_ = 0;      // vectors of V that follow
  double scale_ = 0;         // a lower bound of the largest singular value
};

}  // namespace fullspectrum::spectrum
