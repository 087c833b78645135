#pragma once

#include <cmath>
#include <cstdint>

#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

// Solves (T - shift) x = x for a symmetric tridiagonal T by elimination with row exchanges; a pivot
// below `least` is replaced by it. work [3, size].
FULLSPECTRUM_DEVICE inline void solve_shifted(
    const double* diagonal,
    const double* off,
    int64_t size,
    double shift,
    double least,
    double* work,
    double* x
) {
  double* pivot = work;
  double* first = work + size;  // the entries right of the pivot
  double* second = first + size;
  double here = diagonal[0] - shift;
  double right = size > 1 ? off[0] : 0;
  for (int64_t i = 0; i < size; ++i) {
    if (i + 1 == size) {
      pivot[i] = std::fabs(here) < least ? least : here;
      break;
    }
    const double below = off[i];
    const double next = diagonal[i + 1] - shift;
    const double after = i + 2 < size ? off[i + 1] : 0;
    if (std::fabs(here) >= std::fabs(below)) {
      pivot[i] = std::fabs(here) < least ? least : here;
      first[i] = right;
      second[i] = 0;
      const double factor = below / pivot[i];
      x[i + 1] -= factor * x[i];
      here = next - factor * right;
      right = after;
    } else {
      pivot[i] = below;
      first[i] = next;
      second[i] = after;
      const double factor = here / below;
      const double kept = x[i];
      x[i] = x[i + 1];
      x[i + 1] = kept;
      x[i + 1] -= factor * x[i];
      here = right - factor * next;
      right = -factor * after;
    }
  }
  for (int64_t i = size - 1; i >= 0; --i) {
    double sum = x[i];
    sum -= i + 1 < size ? first[i] * x[i + 1] : 0;
    sum -= i + 2 < size ? second[i] * x[i + 2] : 0;
    x[i] = sum / pivot[i];
  }
}

FULLSPECTRUM_DEVICE inline double inner(const double* x, const double* y, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += x[i] * y[i];
  }
  return sum;
}

FULLSPECTRUM_DEVICE inline void normalise(double* x, int64_t count) {
  double largest = 0;  // squares of the result of a nearly singular system may overflow
  for (int64_t i = 0; i < count; ++i) {
    largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
  }
  for (int64_t i = 0; i < count; ++i) {
    x[i] /= largest;
  }
  const double norm = std::sqrt(inner(x, x, count));
  for (int64_t i = 0; i < count; ++i) {
    x[i] /= norm;
  }
}

}  // namespace fullspectrum::spectrum
