#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

constexpr double kEpsilon = 2.220446049250313e-16;

// Eigenvectors of a small dense symmetric matrix: Householder reflections to tridiagonal form, then
// the implicit QL iteration (Golub, Van Loan: Matrix Computations, sections 8.3.1 and 8.3.3).
// Eigenvalues come out to the rounding of the largest one.
class SymmetricEigen {
 public:
  // Five columns and two numbers of workspace.
  FULLSPECTRUM_DEVICE SymmetricEigen(double* workspace, int64_t stride)
      : stride_(stride),
        diagonal_(workspace),
        off_(diagonal_ + stride),
        factor_(off_ + stride),
        cosine_(factor_ + stride),
        sine_(cosine_ + stride),
        control_(sine_ + stride) {}

  // Overwrites h [size, size], both triangles given; vectors [size, size] receives the eigenvectors
  // and values() the eigenvalues, in no order. Columns lie `stride` apart.
  template <typename Team>
  FULLSPECTRUM_DEVICE void run(Team& team, double* h, double* vectors, int64_t size) {
    tridiagonalise(team, h, size);
    for (int64_t at = team.rank(); at < size * stride_; at += team.size()) {
      vectors[at] = at % stride_ == at / stride_ ? 1 : 0;
    }
    team.sync();
    for (int64_t j = size - 2; j >= 0; --j) {
      apply_reflection(team, h, vectors, j, size, j + 1, size);
    }
    iterate(team, vectors, size);
  }

  FULLSPECTRUM_DEVICE const double* values() const { return diagonal_; }

  // The first half of run(): Q^T H Q tridiagonal, with values() on the diagonal and off() beside
  // it. Overwrites h, which keeps Q.
  template <typename Team>
  FULLSPECTRUM_DEVICE void tridiagonalise(Team& team, double* h, int64_t size) {
    for (int64_t j = 0; j + 1 < size; ++j) {
      reflect(team, h, j, size);
    }
    for (int64_t j = team.rank(); j < size; j += team.size()) {
      diagonal_[j] = h[j * stride_ + j];
    }
    team.sync();
  }

  FULLSPECTRUM_DEVICE const double* off() const { return off_; }

  // Multiplies `count` vectors by the Q that tridiagonalise() left in h.
  template <typename Team>
  FULLSPECTRUM_DEVICE void transform_back(
      Team& team, const double* h, double* vectors, int64_t count, int64_t size
  ) {
    for (int64_t j = size - 2; j >= 0; --j) {
      apply_reflection(team, h, vectors, j, size, 0, count);
    }
  }

 private:
  // Column j below the diagonal becomes (e_j, 0, ..., 0) under I - f v v^T, which is applied to the
  // rest of the matrix from both sides. v stays in the column.
  template <typename Team>
  FULLSPECTRUM_DEVICE void reflect(Team& team, double* h, int64_t j, int64_t size) {
    const int64_t first = j + 1;
    const int64_t length = size - first;
    double* v = h + j * stride_ + first;
    const double head = v[0];
    const double tail = team.dot(v + 1, v + 1, length - 1);
    team.sync();
    if (tail == 0) {
      if (team.rank() == 0) {
        off_[j] = head;
        factor_[j] = 0;
      }
      team.sync();
      return;
    }
    const double norm = std::sqrt(head * head + tail);
    const double image = head > 0 ? -norm : norm;
    const double factor = 1 / (norm * norm - head * image);
    if (team.rank() == 0) {
      v[0] = head - image;
      off_[j] = image;
      factor_[j] = factor;
    }
    team.sync();
    double* w = cosine_;  // free until the iteration
    for (int64_t c = team.worker(); c < length; c += team.workers()) {
      const double dot = team.dot(h + (first + c) * stride_ + first, v, length);
      if (team.lane() == 0) {
        w[c] = factor * dot;
      }
    }
    team.sync();
    const double shift = factor / 2 * team.dot(w, v, length);
    team.sync();
    for (int64_t c = team.rank(); c < length; c += team.size()) {
      w[c] -= shift * v[c];
    }
    team.sync();
    for (int64_t c = team.worker(); c < length; c += team.workers()) {
      double* column = h + (first + c) * stride_ + first;
      const double vc = v[c];
      const double wc = w[c];
      for (int64_t r = team.lane(); r < length; r += team.lanes()) {
        column[r] -= v[r] * wc + w[r] * vc;
      }
    }
    team.sync();
  }

  template <typename Team>
  FULLSPECTRUM_DEVICE void apply_reflection(
      Team& team,
      const double* h,
      double* vectors,
      int64_t j,
      int64_t size,
      int64_t from,  // the vectors it is applied to
      int64_t to
  ) {
    const int64_t first = j + 1;
    const int64_t length = size - first;
    const double* v = h + j * stride_ + first;
    for (int64_t c = from + team.worker(); c < to && factor_[j] != 0; c += team.workers()) {
      double* column = vectors + c * stride_ + first;
      const double along = factor_[j] * team.dot(v, column, length);
      for (int64_t r = team.lane(); r < length; r += team.lanes()) {
        column[r] -= along * v[r];
      }
    }
    team.sync();
  }

  // QL steps until every off-diagonal entry is negligible. One thread finds the rotations of a
  // step, then the team applies them to the vectors, each thread to its rows.
  template <typename Team>
  FULLSPECTRUM_DEVICE void iterate(Team& team, double* vectors, int64_t size) {
    int64_t row = 0;  // of the eigenvalue that is being isolated; the first thread's alone
    int64_t steps = 0;
    while (true) {
      if (team.rank() == 0) {
        find_rotations(row, steps, size);
      }
      team.sync();
      const int64_t from = static_cast<int64_t>(control_[0]);
      const int64_t down_to = static_cast<int64_t>(control_[1]);
      if (from < 0) {
        return;
      }
      for (int64_t i = from; i >= down_to; --i) {
        double* x = vectors + i * stride_;
        double* y = x + stride_;
        const double c = cosine_[i];
        const double s = sine_[i];
        for (int64_t r = team.rank(); r < size; r += team.size()) {
          const double yr = y[r];
          y[r] = s * x[r] + c * yr;
          x[r] = c * x[r] - s * yr;
        }
      }
      team.sync();
    }
  }

  // The next QL step: rotations of columns (i, i + 1) for i from control_[0] down to control_[1];
  // control_[0] < 0 when there is nothing left to do.
  FULLSPECTRUM_DEVICE void find_rotations(int64_t& row, int64_t& steps, int64_t size) {
    constexpr int64_t kMaxSteps = 80;  // for one eigenvalue; two or three are usual
    int64_t end = row;
    for (; row + 1 < size; ++row, steps = 0) {
      end = row;
      while (end + 1 < size && std::fabs(off_[end]) > kEpsilon * (std::fabs(diagonal_[end]) +
                                                                  std::fabs(diagonal_[end + 1]))) {
        ++end;
      }
      if (end > row && steps++ < kMaxSteps) {
        break;
      }
    }
    if (row + 1 >= size) {
      control_[0] = -1;
      return;
    }
    // Wilkinson's shift, from the leading two by two block
    const double half = (diagonal_[row + 1] - diagonal_[row]) / (2 * off_[row]);
    const double root = std::sqrt(half * half + 1);
    double g = diagonal_[end] - diagonal_[row] + off_[row] / (half + (half >= 0 ? root : -root));
    double s = 1;
    double c = 1;
    double p = 0;
    int64_t i = end - 1;
    for (; i >= row; --i) {
      const double f = s * off_[i];
      const double b = c * off_[i];
      const double r = std::sqrt(f * f + g * g);
      off_[i + 1] = r;
      if (r == 0) {
        break;
      }
      s = f / r;
      c = g / r;
      g = diagonal_[i + 1] - p;
      const double q = (diagonal_[i] - g) * s + 2 * c * b;
      p = s * q;
      diagonal_[i + 1] = g + p;
      g = c * q - b;
      cosine_[i] = c;
      sine_[i] = s;
    }
    if (i < row) {
      diagonal_[row] -= p;
      off_[row] = g;
    } else {
      diagonal_[i + 1] -= p;
    }
    off_[end] = 0;  // for end = size - 1 an entry that stands for nothing
    control_[0] = static_cast<double>(end - 1);
    control_[1] = static_cast<double>(i + 1);
  }

  int64_t stride_;
  double* diagonal_;
  double* off_;
  double* factor_;  // of each reflection
  double* cosine_;
  double* sine_;
  double* control_;  // [2]
};

}  // namespace fullspectrum::spectrum
