#pragma once

#include <cmath>
#include <cstdint>

namespace fullspectrum::spectrum {

// A team of one thread: what the CPU runs a problem with. Problems run side by side instead.
class SerialTeam {
 public:
  int64_t rank() const { return 0; }
  int64_t size() const { return 1; }
  int64_t worker() const { return 0; }
  int64_t workers() const { return 1; }
  int64_t lane() const { return 0; }
  int64_t lanes() const { return 1; }
  void sync() const {}
  void sync_worker() const {}
  bool any(bool flag) const { return flag; }

  // Eight sums side by side, which the compiler turns into vectors.
  double dot(const double* x, const double* y, int64_t length) const {
    double sum[8] = {};
    int64_t i = 0;
    for (; i + 8 <= length; i += 8) {
      for (int lane = 0; lane < 8; ++lane) {
        sum[lane] += x[i + lane] * y[i + lane];
      }
    }
    double rest = 0;
    for (; i < length; ++i) {
      rest += x[i] * y[i];
    }
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7])) + rest;
  }

  // y += sum_i weight_i basis_i, four at a time.
  void add_combination(
      const double* basis,  // [count, stride], of which length are used
      int64_t stride,
      int64_t count,
      int64_t length,
      const double* weight,  // [count]
      double* y              // [length]
  ) const {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
      const double* b0 = basis + i * stride;
      const double* b1 = b0 + stride;
      const double* b2 = b1 + stride;
      const double* b3 = b2 + stride;
      const double w0 = weight[i], w1 = weight[i + 1], w2 = weight[i + 2], w3 = weight[i + 3];
      for (int64_t e = 0; e < length; ++e) {
        y[e] += (w0 * b0[e] + w1 * b1[e]) + (w2 * b2[e] + w3 * b3[e]);
      }
    }
    for (; i < count; ++i) {
      for (int64_t e = 0; e < length; ++e) {
        y[e] += weight[i] * basis[i * stride + e];
      }
    }
  }
};

}  // namespace fullspectrum::spectrum
