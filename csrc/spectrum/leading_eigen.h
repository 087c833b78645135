#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/random_start.h"
#include "spectrum/symmetric_eigen.h"
#include "spectrum/tridiagonal.h"

namespace fullspectrum::spectrum {

// The leading eigenvalues and eigenvectors of a small dense symmetric matrix, for a team of
// threads: Householder reflections to tridiagonal form, bisection by the signs of the pivots with
// 64 points an eigenvalue at a time, inverse iteration. Unlike SymmetricEigen, whose QL steps
// follow one another, all but the reflections is done side by side.
class LeadingEigen {
 public:
  FULLSPECTRUM_HOST_DEVICE static int64_t workspace(int64_t stride, int64_t k) {
    return 5 * stride + 2 + (k + 1) * (kPoints + 2) + 3 * k * stride;
  }

  FULLSPECTRUM_DEVICE LeadingEigen(double* workspace, int64_t stride, int64_t k)
      : stride_(stride),
        eigen_(workspace, stride),
        interval_(workspace + 5 * stride + 2),
        above_(interval_ + 2 * (k + 1)),
        pivots_(above_ + kPoints * (k + 1)) {}

  // Overwrites h [size, stride], both triangles given. theta receives the min(k + 1, size) largest
  // eigenvalues, descending, vectors [k, stride] the eigenvectors of the first k <= size.
  template <typename Team>
  FULLSPECTRUM_DEVICE void run(
      Team& team, double* h, int64_t size, int64_t k, double* theta, double* vectors
  ) {
    eigen_.tridiagonalise(team, h, size);
    bisect(team, size, k < size ? k + 1 : size, theta);
    find_vectors(team, size, k, theta, vectors);
    eigen_.transform_back(team, h, vectors, k, size);
  }

 private:
  static constexpr int64_t kPoints = 64;
  // Each round narrows an interval 65 times, ten of them to the rounding of its ends.
  static constexpr int kRounds = 10;

  template <typename Team>
  FULLSPECTRUM_DEVICE void bisect(Team& team, int64_t size, int64_t wanted, double* theta) {
    const double reach = norm_bound(size);
    for (int64_t i = team.rank(); i < wanted; i += team.size()) {
      interval_[2 * i] = -reach;
      interval_[2 * i + 1] = reach;
    }
    team.sync();
    for (int round = 0; round < kRounds; ++round) {
      for (int64_t job = team.rank(); job < wanted * kPoints; job += team.size()) {
        above_[job] = static_cast<double>(count_above(point(job / kPoints, job % kPoints), size));
      }
      team.sync();
      for (int64_t i = team.rank(); i < wanted; i += team.size()) {
        int64_t last = -1;  // the last point below the eigenvalue
        while (last + 1 < kPoints && above_[i * kPoints + last + 1] > static_cast<double>(i)) {
          ++last;
        }
        const double low = last < 0 ? interval_[2 * i] : point(i, last);
        const double high = last + 1 < kPoints ? point(i, last + 1) : interval_[2 * i + 1];
        interval_[2 * i] = low;
        interval_[2 * i + 1] = high;
      }
      team.sync();
    }
    for (int64_t i = team.rank(); i < wanted; i += team.size()) {
      theta[i] = (interval_[2 * i] + interval_[2 * i + 1]) / 2;
    }
    team.sync();
  }

  FULLSPECTRUM_DEVICE double point(int64_t i, int64_t at) const {
    const double low = interval_[2 * i];
    return low + (interval_[2 * i + 1] - low) * static_cast<double>(at + 1) / (kPoints + 1);
  }

  // A number that no eigenvalue's magnitude exceeds.
  FULLSPECTRUM_DEVICE double norm_bound(int64_t size) const {
    const double* diagonal = eigen_.values();
    const double* off = eigen_.off();
    double bound = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double row = std::fabs(diagonal[i]) + (i > 0 ? std::fabs(off[i - 1]) : 0) +
                         (i + 1 < size ? std::fabs(off[i]) : 0);
      bound = row > bound ? row : bound;
    }
    return bound;
  }

  // How many eigenvalues lie above x: the positive pivots of T - x.
  FULLSPECTRUM_DEVICE int64_t count_above(double x, int64_t size) const {
    constexpr double kLeast = 1e-300;
    const double* diagonal = eigen_.values();
    const double* off = eigen_.off();
    int64_t count = 0;
    double pivot = 1;
    for (int64_t i = 0; i < size; ++i) {
      const double before = i > 0 ? off[i - 1] : 0;
      pivot = diagonal[i] - x - before * (before / pivot);
      pivot = std::fabs(pivot) < kLeast ? -kLeast : pivot;
      count += pivot > 0;
    }
    return count;
  }

  // Vectors of values that lie close must be kept apart: one thread finds those of a cluster one
  // after the other, the workers share the clusters.
  template <typename Team>
  FULLSPECTRUM_DEVICE void find_vectors(
      Team& team, int64_t size, int64_t k, const double* theta, double* vectors
  ) {
    int64_t first = 0;
    int64_t cluster = 0;
    for (int64_t i = 0; i < k && team.lane() == 0; ++i) {
      if (i > 0 && theta[i - 1] - theta[i] > 1e-3 * std::fabs(theta[0])) {
        first = i;
        ++cluster;
      }
      if (cluster % team.workers() == team.worker()) {
        find_vector(size, i, first, theta, vectors);
      }
    }
    team.sync();
  }

  // Inverse iteration on the tridiagonal matrix.
  FULLSPECTRUM_DEVICE void find_vector(
      int64_t size, int64_t i, int64_t first, const double* theta, double* vectors
  ) {
    double* x = vectors + i * stride_;
    for (int64_t at = 0; at < size; ++at) {
      x[at] = 1 + random_start(i * size + at);
    }
    const double largest = kEpsilon * std::fabs(theta[0]);
    const double least = largest > 1e-300 ? largest : 1e-300;
    constexpr int kIterations = 3;
    for (int iteration = 0; iteration < kIterations; ++iteration) {
      double* pivots = pivots_ + 3 * i * stride_;
      solve_shifted(eigen_.values(), eigen_.off(), size, theta[i], least, pivots, x);
      normalise(x, size);
      for (int64_t j = first; j < i; ++j) {
        const double* other = vectors + j * stride_;
        const double part = inner(x, other, size);
        for (int64_t at = 0; at < size; ++at) {
          x[at] -= part * other[at];
        }
        normalise(x, size);
      }
    }
  }

  int64_t stride_;
  SymmetricEigen eigen_;
  double* interval_;  // [k + 1, 2], the ends between which an eigenvalue lies
  double* above_;     // [k + 1, points], eigenvalues above each point
  double* pivots_;    // [k, 3, stride]
};

}  // namespace fullspectrum::spectrum
