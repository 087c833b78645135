#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

// What the block iterations do with long vectors, for a team of threads: sums in a fixed order,
// products with lists, orthonormal bases that grow.
template <typename Team>
class TeamVectors {
 protected:
  FULLSPECTRUM_DEVICE TeamVectors(
      Team& team,
      double* product,        // [vectors of a block, product_stride]
      int64_t product_stride  // at least the vectors of a basis
  )
      : team_(team), product_(product), product_stride_(product_stride) {}

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
        product_[t * product_stride_ + i] = -dot;
        coordinates[t * stride + i] += dot;
      }
    }
    team_.sync();
    for (int64_t t = 0; t < width; ++t) {
      const double* weight = product_ + t * product_stride_;
      team_.add_combination(basis, length, count, length, weight, block + t * length);
    }
    team_.sync();
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

  Team& team_;
  double* product_;  // inner products
  const int64_t product_stride_;
};

}  // namespace fullspectrum::spectrum
