#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/problem.h"
#include "spectrum/symmetric_eigen.h"

namespace fullspectrum::spectrum {

// The leading part of the singular value decomposition T Q = P diag(sigma) of a small upper
// triangular matrix. The eigenvectors of T^T T come first; they know singular values only to 1e-8
// of the largest. One-sided Jacobi rotations (Hestenes 1958), started there, then make the leading
// columns of T Q orthogonal to all others: to the rounding of T itself, in a sweep or two. A
// tournament pairs the columns, so that the rotations of one round are independent and the team's
// workers share them.
class DenseSvd {
 public:
  // Two matrices, seven columns and two numbers of workspace. All matrices hold one column after
  // the other, `stride` apart.
  FULLSPECTRUM_DEVICE DenseSvd(double* workspace, int64_t stride)
      : stride_(stride),
        image_(workspace),
        right_(image_ + stride * stride),
        sigma_(right_ + stride * stride),
        order_(sigma_ + stride),
        eigen_(order_ + stride, stride) {}

  // Decomposes t [rows, columns], zero below the diagonal, rows <= columns <= `stride`. Of the
  // result the `wanted` leading values and vectors are accurate.
  template <typename Team>
  FULLSPECTRUM_DEVICE void run(
      Team& team, const double* t, int64_t rows, int64_t columns, int64_t wanted
  ) {
    form_gram(team, t, rows, columns);
    eigen_.run(team, image_, right_, columns);
    if (team.rank() == 0) {
      sort(eigen_.values(), columns);
    }
    form_image(team, t, rows, columns);
    measure(team, rows, columns);
    // T^T T knows the vectors of a value to rounding times (first / value)^2: where that is not
    // enough to tell which columns are the leading ones, all take part.
    const bool some = wanted > 0 && wanted < columns;
    const bool accurate = some && sigma(wanted - 1) > 1e-3 * sigma(0);
    const int64_t leading = accurate ? wanted : columns;
    constexpr int kMaxSweeps = 40;
    for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
      const bool rotated = sweep_once(team, rows, columns, leading);
      measure(team, rows, columns);
      if (!rotated) {
        break;
      }
    }
    if (team.rank() == 0) {
      sort(sigma_, columns);
    }
    team.sync();
  }

  // The i-th largest singular value, its right vector [columns] and its left vector times it
  // [rows].
  FULLSPECTRUM_DEVICE double sigma(int64_t i) const { return sigma_[column(i)]; }
  FULLSPECTRUM_DEVICE const double* right(int64_t i) const { return right_ + column(i) * stride_; }
  FULLSPECTRUM_DEVICE const double* scaled_left(int64_t i) const {
    return image_ + column(i) * stride_;
  }

 private:
  FULLSPECTRUM_DEVICE int64_t column(int64_t i) const { return static_cast<int64_t>(order_[i]); }
  FULLSPECTRUM_DEVICE double* image(int64_t j) { return image_ + j * stride_; }

  // T^T T, both triangles.
  template <typename Team>
  FULLSPECTRUM_DEVICE void form_gram(Team& team, const double* t, int64_t rows, int64_t columns) {
    for (int64_t job = team.worker(); job < columns * columns; job += team.workers()) {
      const int64_t i = job / columns;
      const int64_t j = job % columns;
      if (i > j) {
        continue;
      }
      const int64_t length = i + 1 < rows ? i + 1 : rows;
      const double dot = team.dot(t + i * stride_, t + j * stride_, length);
      if (team.lane() == 0) {
        image_[i * stride_ + j] = dot;
        image_[j * stride_ + i] = dot;
      }
    }
    team.sync();
  }

  // T Q; a thread owns rows.
  template <typename Team>
  FULLSPECTRUM_DEVICE void form_image(Team& team, const double* t, int64_t rows, int64_t columns) {
    for (int64_t at = team.rank(); at < columns * stride_; at += team.size()) {
      image_[at] = 0;
    }
    team.sync();
    for (int64_t j = 0; j < columns; ++j) {
      team.add_combination(t, stride_, columns, rows, right_ + j * stride_, image(j));
    }
    team.sync();
  }

  template <typename Team>
  FULLSPECTRUM_DEVICE void measure(Team& team, int64_t rows, int64_t columns) {
    for (int64_t j = team.worker(); j < columns; j += team.workers()) {
      const double square = team.dot(image(j), image(j), rows);
      if (team.lane() == 0) {
        sigma_[j] = std::sqrt(square);
      }
    }
    team.sync();
  }

  // Rotates each pair of columns one of which is among the `leading` ones (in the order of
  // `order_`) once. Returns whether any needed it.
  template <typename Team>
  FULLSPECTRUM_DEVICE bool sweep_once(Team& team, int64_t rows, int64_t columns, int64_t leading) {
    const double negligible = 4 * kEpsilon * sigma(0);
    const int64_t players = columns + columns % 2;
    bool rotated = false;
    for (int64_t round = 0; round + 1 < players; ++round) {
      for (int64_t job = team.worker(); job < players / 2; job += team.workers()) {
        const int64_t a = (round + job) % (players - 1);
        const int64_t b = job == 0 ? players - 1 : (round + players - 1 - job) % (players - 1);
        const int64_t first = a < b ? a : b;
        const int64_t second = a < b ? b : a;
        if (second < columns && first < leading) {
          rotated |= rotate(
              team, column(first), column(second), rows, columns, second < leading, negligible
          );
        }
      }
      team.sync();
    }
    return team.any(rotated);
  }

  // Makes columns i and j of the image orthogonal. What is left may turn the left singular vector
  // of i (and of j, if `both` count) so little that its image under T^T changes by `negligible`.
  template <typename Team>
  FULLSPECTRUM_DEVICE bool rotate(
      Team& team, int64_t i, int64_t j, int64_t rows, int64_t columns, bool both, double negligible
  ) {
    const double gamma = team.dot(image(i), image(j), rows);
    const double alpha = team.dot(image(i), image(i), rows);
    const double beta = team.dot(image(j), image(j), rows);
    const double least = both && beta < alpha ? beta : alpha;
    if (std::fabs(gamma) <= negligible * std::sqrt(least)) {
      return false;
    }
    const double zeta = (beta - alpha) / (2 * gamma);
    const double root = std::fabs(zeta) + std::sqrt(1 + zeta * zeta);
    const double tangent = zeta >= 0 ? 1 / root : -1 / root;
    const double cosine = 1 / std::sqrt(1 + tangent * tangent);
    const double sine = cosine * tangent;
    turn(team, image(i), image(j), rows, cosine, sine);
    turn(team, right_ + i * stride_, right_ + j * stride_, columns, cosine, sine);
    return true;
  }

  template <typename Team>
  FULLSPECTRUM_DEVICE static void turn(
      const Team& team, double* x, double* y, int64_t length, double cosine, double sine
  ) {
    for (int64_t i = team.lane(); i < length; i += team.lanes()) {
      const double xi = x[i];
      const double yi = y[i];
      x[i] = cosine * xi - sine * yi;
      y[i] = sine * xi + cosine * yi;
    }
    team.sync_worker();
  }

  // Orders the columns by descending value.
  FULLSPECTRUM_DEVICE void sort(const double* value, int64_t columns) {
    for (int64_t j = 0; j < columns; ++j) {
      int64_t at = j;
      for (; at > 0 && value[column(at - 1)] < value[j]; --at) {
        order_[at] = order_[at - 1];
      }
      order_[at] = static_cast<double>(j);
    }
  }

  int64_t stride_;
  double* image_;  // T^T T, then T Q
  double* right_;  // Q
  double* sigma_;
  double* order_;
  SymmetricEigen eigen_;
};

}  // namespace fullspectrum::spectrum
