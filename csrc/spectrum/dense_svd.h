#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

constexpr double kEpsilon = 2.220446049250313e-16;

// The singular value decomposition T Q = P diag(sigma) of a small dense matrix, by one-sided Jacobi
// rotations (Hestenes 1958): slow for its size, but every singular value, however small, comes out
// to the accuracy of T itself. A tournament pairs the columns, so that the rotations of one round
// are independent and the team's workers share them.
class DenseSvd {
 public:
  // All arrays hold one column after the other, `stride` apart.
  FULLSPECTRUM_DEVICE DenseSvd(double* workspace, int64_t stride)
      : stride_(stride),
        image_(workspace),
        right_(image_ + stride * stride),
        sigma_(right_ + stride * stride),
        order_(sigma_ + stride) {}

  // Decomposes t [rows, columns], rows and columns at most `stride`.
  template <typename Team>
  FULLSPECTRUM_DEVICE void run(Team& team, const double* t, int64_t rows, int64_t columns) {
    for (int64_t at = team.rank(); at < columns * stride_; at += team.size()) {
      const int64_t i = at % stride_;
      image_[at] = i < rows ? t[at] : 0;
      right_[at] = i == at / stride_ ? 1 : 0;
    }
    team.sync();
    constexpr int kMaxSweeps = 40;
    for (int sweep = 0; sweep < kMaxSweeps && sweep_once(team, rows, columns); ++sweep) {
    }
    for (int64_t j = team.worker(); j < columns; j += team.workers()) {
      const double square = team.dot(image(j), image(j), rows);
      if (team.lane() == 0) {
        sigma_[j] = std::sqrt(square);
      }
    }
    team.sync();
    if (team.rank() == 0) {
      sort(columns);
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

  // Returns whether anything was rotated.
  template <typename Team>
  FULLSPECTRUM_DEVICE bool sweep_once(Team& team, int64_t rows, int64_t columns) {
    const int64_t players = columns + columns % 2;
    bool rotated = false;
    for (int64_t round = 0; round + 1 < players; ++round) {
      for (int64_t job = team.worker(); job < players / 2; job += team.workers()) {
        const int64_t a = (round + job) % (players - 1);
        const int64_t b = job == 0 ? players - 1 : (round + players - 1 - job) % (players - 1);
        if (a < columns && b < columns) {
          rotated |= rotate(team, a < b ? a : b, a < b ? b : a, rows, columns);
        }
      }
      team.sync();
    }
    return team.any(rotated);
  }

  // Makes columns i and j of the image orthogonal.
  template <typename Team>
  FULLSPECTRUM_DEVICE bool rotate(Team& team, int64_t i, int64_t j, int64_t rows, int64_t columns) {
    const double alpha = team.dot(image(i), image(i), rows);
    const double beta = team.dot(image(j), image(j), rows);
    const double gamma = team.dot(image(i), image(j), rows);
    if (std::fabs(gamma) <= kEpsilon * std::sqrt(alpha) * std::sqrt(beta)) {
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

  FULLSPECTRUM_DEVICE void sort(int64_t columns) {
    for (int64_t j = 0; j < columns; ++j) {
      int64_t at = j;
      for (; at > 0 && sigma_[column(at - 1)] < sigma_[j]; --at) {
        order_[at] = order_[at - 1];
      }
      order_[at] = static_cast<double>(j);
    }
  }

  int64_t stride_;
  double* image_;  // T Q
  double* right_;  // Q
  double* sigma_;
  double* order_;
};

}  // namespace fullspectrum::spectrum
