#include "spectrum/eigen_kernels.h"

#include "spectrum/gram_kernels.h"
#include "spectrum/vectors.h"

// Compiled once for each instruction set, so: no header with inline functions of external linkage.
namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

double dot(const double* x, const double* y, int64_t from, int64_t to) {
  Doubles total = {};
  for (int64_t e = from; e < to; e += kLanes) {
    total += load(x + e) * load(y + e);
  }
  return sum(total);
}

// The previous reflection, not yet applied, and the next one. All [stride].
struct Reflections {
  const double* v;  // H -= v w^T + w v^T
  const double* w;
  const double* next;
  double* image;  // += H next
};

// Rows row, ..., row + kRows - 1 of h: applies the previous reflection and multiplies with the next
// vector in one pass. H is symmetric, so its rows serve as columns and no sum runs along a vector.
template <int kRows>
void reflect_rows(double* h, int64_t row, int64_t stride, int64_t from, const Reflections& by) {
  Doubles v[kRows];
  Doubles w[kRows];
  Doubles next[kRows];
  for (int r = 0; r < kRows; ++r) {
    v[r] = Doubles{} + by.v[row + r];
    w[r] = Doubles{} + by.w[row + r];
    next[r] = Doubles{} + by.next[row + r];
  }
  for (int64_t e = from; e < stride; e += kLanes) {
    const Doubles ve = load(by.v + e);
    const Doubles we = load(by.w + e);
    Doubles image = load(by.image + e);
    for (int r = 0; r < kRows; ++r) {
      double* at = h + (row + r) * stride + e;
      const Doubles entries = load(at) - (v[r] * we + w[r] * ve);
      store(at, entries);
      image += next[r] * entries;
    }
    store(by.image + e, image);
  }
}

void tridiagonalise(
    double* h,
    int64_t size,
    int64_t stride,
    double* diagonal,
    double* off,
    double* factor,
    double* scratch
) {
  double* v = scratch;
  double* w = v + stride;
  double* next = w + stride;
  double* image = next + stride;
  for (int64_t e = 0; e < 4 * stride; ++e) {
    scratch[e] = 0;
  }
  for (int64_t j = 0; j < size; ++j) {
    double* row = h + j * stride;
    for (int64_t e = j / kGramPadding * kGramPadding; e < stride; ++e) {
      row[e] -= v[j] * w[e] + w[j] * v[e];
      next[e] = e > j && e < size ? row[e] : 0;
      image[e] = 0;
    }
    const int64_t first = j + 1;
    const int64_t from = first / kGramPadding * kGramPadding;
    diagonal[j] = row[j];
    off[j] = first < size ? row[first] : 0;
    factor[j] = 0;
    double tail = 0;
    if (first < size) {
      next[first] = 0;
      tail = dot(next, next, from, stride);
    }
    if (tail > 0) {
      const double head = row[first];
      const double square = head * head + tail;
      const double norm = __builtin_sqrt(square);
      off[j] = head > 0 ? -norm : norm;
      next[first] = head - off[j];
      factor[j] = 1 / (square - head * off[j]);
      row[first] = next[first];
    }
    const Reflections by{v, w, next, image};
    int64_t r = first;
    for (; r + 4 <= size; r += 4) {
      reflect_rows<4>(h, r, stride, from, by);
    }
    for (; r < size; ++r) {
      reflect_rows<1>(h, r, stride, from, by);
    }
    // w = f H v - f / 2 <f H v, v> v
    const double shift = factor[j] * factor[j] / 2 * dot(image, next, from, stride);
    for (int64_t e = from; e < stride; ++e) {
      v[e] = next[e];
      w[e] = e < first ? 0 : factor[j] * image[e] - shift * next[e];
    }
  }
}

// How many eigenvalues lie above each of kPoints points: the agreements of sign in the sequence of
// the leading principal minors. The matrix is divided by `norm`, at least twice its largest row, so
// that no minor overflows; every few rows they are scaled so that none vanishes.
constexpr int kVectors = 4;
constexpr int kPoints = kVectors * kLanes;
constexpr int64_t kScaleEvery = 8;

void count_above(
    const double* diagonal,
    const double* off,
    int64_t size,
    double norm,
    const double* point,
    double* count
) {
  const double scale = 1 / norm;
  constexpr double kLeast = kEpsilon * kEpsilon;
  Doubles x[kVectors];
  Doubles minor[kVectors];
  Doubles before[kVectors];
  Words above[kVectors] = {};
  const Doubles zero = {};
  for (int v = 0; v < kVectors; ++v) {
    x[v] = load(point + v * kLanes) * scale;
    minor[v] = zero + 1.0;
    before[v] = zero;
  }
  double square = 0;  // of the entry beside the diagonal
  for (int64_t i = 0; i < size; ++i) {
    const double entry = diagonal[i] * scale;
    for (int v = 0; v < kVectors; ++v) {
      Doubles next = (entry - x[v]) * minor[v] - square * before[v];
      next = next == zero ? minor[v] * -kLeast : next;  // a pivot of zero counts as negative
      above[v] += ~(reinterpret_cast<Words>(next) ^ reinterpret_cast<Words>(minor[v])) >> 63;
      before[v] = minor[v];
      minor[v] = next;
    }
    if (i % kScaleEvery == kScaleEvery - 1) {
      for (int v = 0; v < kVectors; ++v) {
        const Doubles a = minor[v] < zero ? -minor[v] : minor[v];
        const Doubles b = before[v] < zero ? -before[v] : before[v];
        const Doubles inverse = 1 / (a > b ? a : b);
        minor[v] *= inverse;
        before[v] *= inverse;
      }
    }
    square = off[i] * scale * (off[i] * scale);
  }
  for (int v = 0; v < kVectors; ++v) {
    store(count + v * kLanes, __builtin_convertvector(above[v], Doubles));
  }
}

void leading_eigenvalues(
    const double* diagonal, const double* off, int64_t size, int64_t wanted, double* value
) {
  // Gershgorin's discs
  double top = diagonal[0] + absolute(off[0]);
  double bottom = diagonal[0] - absolute(off[0]);
  for (int64_t i = 1; i < size; ++i) {
    const double radius = absolute(off[i - 1]) + (i + 1 < size ? absolute(off[i]) : 0);
    top = larger(top, diagonal[i] + radius);
    bottom = -larger(-bottom, radius - diagonal[i]);
  }
  const double norm = larger(absolute(top), absolute(bottom));
  const double resolution = 128 * kEpsilon * norm;
  double next_low = bottom - resolution;  // of the eigenvalue after the present one
  for (int64_t i = 0; i < wanted; ++i) {
    double low = next_low;
    double high = i > 0 ? value[i - 1] + resolution : top + resolution;
    next_low = bottom - resolution;
    constexpr int kMaxPasses = 40;
    for (int pass = 0; pass < kMaxPasses && high - low > resolution; ++pass) {
      double point[kPoints];
      double count[kPoints];
      for (int v = 0; v < kPoints; ++v) {
        point[v] = low + (high - low) * ((v + 1) / (kPoints + 1.0));
      }
      count_above(diagonal, off, size, 2 * norm, point, count);
      int inside = 0;  // points below the eigenvalue
      while (inside < kPoints && count[inside] > i) {
        next_low = count[inside] > i + 1 ? larger(next_low, point[inside]) : next_low;
        ++inside;
      }
      const double next = inside > 0 ? point[inside - 1] : low;
      high = inside < kPoints ? point[inside] : high;
      low = next;
    }
    value[i] = low + (high - low) / 2;
  }
}

}  // namespace

EigenKernels eigen_kernels() { return {tridiagonalise, leading_eigenvalues}; }

}  // namespace fullspectrum::FULLSPECTRUM_ISA
