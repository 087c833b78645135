#include "spectrum/leading_pairs.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/cpu_features.h"
#include "spectrum/eigen_kernels.h"
#include "spectrum/random_start.h"

namespace fullspectrum::spectrum {
namespace {

constexpr double kEpsilon = 2.220446049250313e-16;
constexpr int kWidest = 2;  // diagonals on each side of a band matrix

const EigenKernels& eigen_kernels() {
  static const EigenKernels kernels = FULLSPECTRUM_ACTIVE(eigen_kernels());
  return kernels;
}

double inner(const double* x, const double* y, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += x[i] * y[i];
  }
  return sum;
}

void normalise(double* x, int64_t count) {
  double largest = 0;  // squares of the result of a nearly singular system may overflow
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
  }
  const double scale = 1 / largest;
  for (int64_t i = 0; i < count; ++i) {
    x[i] *= scale;
  }
  const double inverse = 1 / std::sqrt(inner(x, x, count));
  for (int64_t i = 0; i < count; ++i) {
    x[i] *= inverse;
  }
}

// Row i of a band matrix minus shift times the identity, from its first diagonal on.
template <int kDiagonals>
void shifted_row(const double* band, int64_t size, int64_t i, double shift, double* row) {
  constexpr int kStride = kDiagonals + 1;
  for (int d = 0; d <= kDiagonals; ++d) {
    row[kDiagonals - d] = band[kStride * i + d];
    row[kDiagonals + d] = i + d < size ? band[kStride * (i + d) + d] : 0;
  }
  row[kDiagonals] -= shift;
}

// Solves (B - shift) x = x for a symmetric band matrix by elimination with row exchanges; a pivot
// below `least` is replaced by it. band [size, kDiagonals + 1], work [size, 2 kDiagonals + 1].
template <int kDiagonals>
void solve_shifted(
    const double* band, int64_t size, double shift, double least, double* work, double* x
) {
  constexpr int kEntries = 2 * kDiagonals + 1;  // of a row, from its first one that is not zero on
  double rows[kDiagonals + 1][kEntries];        // those that the present column touches
  double right[kDiagonals + 1];
  for (int64_t r = 0; r <= kDiagonals; ++r) {
    double row[kEntries] = {};
    right[r] = r < size ? x[r] : 0;
    if (r < size) {
      shifted_row<kDiagonals>(band, size, r, shift, row);
    }
    for (int64_t c = 0; c < kEntries; ++c) {  // the first rows begin left of the matrix
      const int64_t from = c + kDiagonals - r;
      rows[r][c] = from < kEntries ? row[from] : 0;
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    int pivot = 0;
    for (int r = 1; r <= kDiagonals; ++r) {
      pivot = std::fabs(rows[r][0]) > std::fabs(rows[pivot][0]) ? r : pivot;
    }
    std::swap(rows[0], rows[pivot]);
    std::swap(right[0], right[pivot]);
    double* upper = work + i * kEntries;
    std::copy(rows[0], rows[0] + kEntries, upper);
    x[i] = right[0];
    const double inverse = 1 / (std::fabs(upper[0]) < least ? least : upper[0]);
    upper[0] = inverse;
    for (int r = 1; r <= kDiagonals; ++r) {
      const double factor = rows[r][0] * inverse;
      for (int c = 1; c < kEntries; ++c) {
        rows[r - 1][c - 1] = rows[r][c] - factor * upper[c];
      }
      rows[r - 1][kEntries - 1] = 0;
      right[r - 1] = right[r] - factor * right[0];
    }
    const int64_t next = i + kDiagonals + 1;
    right[kDiagonals] = next < size ? x[next] : 0;
    std::fill(rows[kDiagonals], rows[kDiagonals] + kEntries, 0.0);
    if (next < size) {
      shifted_row<kDiagonals>(band, size, next, shift, rows[kDiagonals]);
    }
  }
  for (int64_t i = size - 1; i >= 0; --i) {
    const double* upper = work + i * kEntries;
    double sum = x[i];
    for (int64_t c = 1; c < kEntries && i + c < size; ++c) {
      sum -= upper[c] * x[i + c];
    }
    x[i] = sum * upper[0];
  }
}

// Inverse iteration; work [size, 2 kDiagonals + 1].
template <int kDiagonals>
void find_vectors(
    const double* band,
    int64_t size,
    int64_t stride,
    int64_t k,
    const double* value,
    double* vector,
    double* work
) {
  for (int64_t i = 0; i < k; ++i) {
    double* x = vector + i * stride;
    for (int64_t at = 0; at < size; ++at) {
      x[at] = 1 + random_start(i * size + at);
    }
    const double norm = std::max(std::fabs(value[0]), std::fabs(value[i]));
    const double least = std::max(kEpsilon * norm, 1e-300);
    constexpr int kIterations = 3;
    for (int iteration = 0; iteration < kIterations; ++iteration) {
      solve_shifted<kDiagonals>(band, size, value[i], least, work, x);
      normalise(x, size);
      for (int64_t j = 0; j < i; ++j) {  // vectors of values that lie close must be kept apart
        if (value[j] - value[i] <= 1e-3 * norm) {
          const double* other = vector + j * stride;
          const double part = inner(x, other, size);
          for (int64_t at = 0; at < size; ++at) {
            x[at] -= part * other[at];
          }
          normalise(x, size);
        }
      }
    }
  }
}

// A plane rotation and what it does to two numbers.
struct Rotation {
  double c = 1;
  double s = 0;
  // The one that makes b zero; returns what becomes of a.
  double eliminate(double a, double b) {
    if (b == 0) {
      return a;
    }
    const double length = std::sqrt(a * a + b * b);
    const double inverse = 1 / length;
    c = a * inverse;
    s = b * inverse;
    return length;
  }
  void apply(double& a, double& b) const {
    const double first = c * a + s * b;
    b = c * b - s * a;
    a = first;
  }
};

// A tridiagonal matrix with the eigenvalues of a matrix with two diagonals on each side, by
// rotations that move each entry of the outer diagonal down and out (Schwarz, Numerische Mathematik
// 12, 1968). The matrix comes in its diagonals; `second` is destroyed.
void tridiagonalise_band(double* diagonal, double* off, double* second, int64_t size) {
  for (int64_t column = 0; column + 2 < size; ++column) {
    double bulge = second[column];
    double* above = off + column;  // the entry beside `bulge` in the same column
    for (int64_t i = column + 1; i + 1 < size && bulge != 0; i += 2) {
      // Rows and columns i and i + 1: `bulge` at [i + 1, column] vanishes, another may appear at
      // [i + 3, i].
      Rotation rotation;
      *above = rotation.eliminate(*above, bulge);
      if (i > column + 1) {  // the other column with entries in these rows
        rotation.apply(off[i - 1], second[i - 1]);
      }
      const double c = rotation.c;
      const double s = rotation.s;
      const double p = diagonal[i];
      const double q = diagonal[i + 1];
      const double both = 2 * c * s * off[i];
      diagonal[i] = c * c * p + both + s * s * q;
      diagonal[i + 1] = s * s * p - both + c * c * q;
      off[i] = c * s * (q - p) + (c * c - s * s) * off[i];
      bulge = 0;
      if (i + 2 < size) {
        rotation.apply(second[i], off[i + 1]);
      }
      if (i + 3 < size) {
        bulge = s * second[i + 1];
        second[i + 1] *= c;
      }
      above = second + i;
    }
    second[column] = 0;
  }
}

}  // namespace

int64_t leading_pairs_workspace(int64_t stride) { return (2 * kWidest + 5) * stride; }

void leading_pairs_of_dense(
    double* h, int64_t size, int64_t stride, int64_t k, double* value, double* vector, double* work
) {
  double* diagonal = work;
  double* off = diagonal + stride;
  double* factor = off + stride;
  double* band = factor + stride;  // [size, 2]
  double* rest = band + 2 * stride;
  eigen_kernels().tridiagonalise(h, size, stride, diagonal, off, factor, band);
  eigen_kernels().leading_eigenvalues(diagonal, off, size, std::min(k + 1, size), value);
  for (int64_t i = 0; i < size; ++i) {
    band[2 * i] = diagonal[i];
    band[2 * i + 1] = i > 0 ? off[i - 1] : 0;
  }
  find_vectors<1>(band, size, stride, k, value, vector, rest);
  for (int64_t i = 0; i < k; ++i) {
    double* x = vector + i * stride;
    for (int64_t j = size - 1; j >= 0; --j) {
      const int64_t length = size - 1 - j;
      if (factor[j] != 0) {
        const double* v = h + j * stride + j + 1;
        const double part = factor[j] * inner(v, x + j + 1, length);
        for (int64_t at = 0; at < length; ++at) {
          x[j + 1 + at] -= part * v[at];
        }
      }
    }
  }
}

void leading_pairs_of_band(
    const double* band,
    int64_t size,
    int64_t stride,
    int64_t k,
    double* value,
    double* vector,
    double* work
) {
  double* diagonal = work;
  double* off = diagonal + stride;
  double* second = off + stride;
  for (int64_t i = 0; i < size; ++i) {
    diagonal[i] = band[3 * i];
    off[i] = i + 1 < size ? band[3 * (i + 1) + 1] : 0;
    second[i] = i + 2 < size ? band[3 * (i + 2) + 2] : 0;
  }
  tridiagonalise_band(diagonal, off, second, size);
  eigen_kernels().leading_eigenvalues(diagonal, off, size, std::min(k + 1, size), value);
  find_vectors<2>(band, size, stride, k, value, vector, work);
}

}  // namespace fullspectrum::spectrum
