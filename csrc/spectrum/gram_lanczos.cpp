#include "spectrum/gram_lanczos.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/cpu_features.h"
#include "spectrum/random_start.h"

namespace fullspectrum::spectrum {
namespace {

constexpr double kEpsilon = 2.220446049250313e-16;
// What is left of an image of a unit vector below this part of the norm of G is rounding noise.
constexpr double kNoise = 256 * kEpsilon;
// A basis of so many vectors has converged, or would take longer than the fallback.
constexpr int64_t kCapacity = 192;

int64_t padded(int64_t count) { return (count + kGramPadding - 1) / kGramPadding * kGramPadding; }

// What is there is not cleared.
template <typename T>
T* room(std::vector<T>& memory, int64_t count) {
  if (static_cast<int64_t>(memory.size()) < count) {
    memory.resize(count);
  }
  return memory.data();
}

template <typename T>
T* zeros(std::vector<T>& memory, int64_t count) {
  T* data = room(memory, count);
  std::fill(data, data + count, T{0});
  return data;
}

// Solves (T - shift) x = x for a symmetric tridiagonal T by elimination with row exchanges; a pivot
// below `least` is replaced by it. work [3, size].
void solve_shifted(
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
      std::swap(x[i], x[i + 1]);
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
  for (int64_t i = 0; i < count; ++i) {
    x[i] /= largest;
  }
  const double norm = std::sqrt(inner(x, x, count));
  for (int64_t i = 0; i < count; ++i) {
    x[i] /= norm;
  }
}

}  // namespace

const GramKernels& gram_kernels() {
  static const GramKernels kernels = [] {
#if defined(__x86_64__)
    switch (active_isa()) {
      case Isa::avx512:
        return avx512::gram_kernels();
      case Isa::avx2:
        return avx2::gram_kernels();
      default:
        break;
    }
#endif
    return baseline::gram_kernels();
  }();
  return kernels;
}

// ---- the Gram matrix ---------------------------------------------------------------------------

GramOperator::GramOperator(int64_t size, GramScratch& scratch)
    : size_(size), stride_(padded(size)), scratch_(&scratch) {}

GramOperator GramOperator::from_bits(
    const Lists& lists, bool of_narrow, int64_t size, int64_t length, GramScratch& scratch
) {
  GramOperator gram(size, scratch);
  const int64_t words = (length + 511) / 512 * 8;
  uint64_t* bits = zeros(scratch.bits, size * words);
  for (int64_t node = 0; node < lists.size; ++node) {
    for (int64_t p = lists.offset[node]; p < lists.offset[node + 1]; ++p) {
      const int64_t row = of_narrow ? node : lists.index[p];
      const int64_t bit = of_narrow ? lists.index[p] : node;
      bits[row * words + bit / 64] |= uint64_t{1} << (bit % 64);
    }
  }
  float* counts = room(scratch.counts, size * gram.stride_);
  for (int64_t row = 0; row < size; ++row) {
    std::fill(counts + row * gram.stride_ + size, counts + (row + 1) * gram.stride_, 0.0f);
  }
  gram_kernels().bit_gram(bits, words, size, gram.stride_, counts);
  gram.counts_ = counts;
  return gram;
}

GramOperator GramOperator::from_lists(const Lists& tall, int64_t size, GramScratch& scratch) {
  GramOperator gram(size, scratch);
  double* sums = zeros(scratch.sums, size * gram.stride_);
  gram_kernels().sparse_gram(
      tall.offset, tall.index, tall.value, tall.size, size, gram.stride_, sums
  );
  gram.sums_ = sums;
  return gram;
}

GramOperator GramOperator::matrix_free(const Lists& tall, int64_t size, GramScratch& scratch) {
  GramOperator gram(size, scratch);
  gram.tall_ = tall;
  room(scratch.pairs, 4 * size);
  return gram;
}

void GramOperator::multiply(const double* x, int64_t width, double* y) const {
  std::fill(y, y + width * stride_, 0.0);
  if (counts_) {
    gram_kernels().multiply_float(counts_, size_, stride_, x, width, y, stride_);
    return;
  }
  if (sums_) {
    gram_kernels().multiply_double(sums_, size_, stride_, x, width, y, stride_);
    return;
  }
  double* from = scratch_->pairs.data();
  double* to = from + 2 * size_;
  for (int64_t i = 0; i < size_; ++i) {
    from[2 * i] = x[i];
    from[2 * i + 1] = width == 2 ? x[stride_ + i] : 0;
    to[2 * i] = to[2 * i + 1] = 0;
  }
  gram_kernels().multiply_lists(tall_.offset, tall_.index, tall_.value, tall_.size, from, to);
  for (int64_t i = 0; i < size_; ++i) {
    for (int64_t t = 0; t < width; ++t) {
      y[t * stride_ + i] = to[2 * i + t];
    }
  }
}

void GramOperator::to_dense(double* h) const {
  if (counts_) {
    std::copy(counts_, counts_ + size_ * stride_, h);
    return;
  }
  if (sums_) {
    std::copy(sums_, sums_ + size_ * stride_, h);
    return;
  }
  std::fill(h, h + size_ * stride_, 0.0);
  gram_kernels().sparse_gram(tall_.offset, tall_.index, tall_.value, tall_.size, size_, stride_, h);
}

// ---- the iteration -----------------------------------------------------------------------------

GramLanczos::GramLanczos(const GramOperator& gram, double rounding, GramScratch& scratch)
    : kernels_(gram_kernels()),
      gram_(gram),
      rounding_(rounding),
      size_(gram.size()),
      stride_(gram.stride()),
      scratch_(scratch) {}

bool GramLanczos::run(int64_t k, double tol, double* sigma, double* bound) {
  const bool complete = size_ <= kComplete;
  capacity_ = complete ? size_ : std::min(size_, kCapacity);
  row_ = complete ? stride_ : padded(capacity_ + 2);
  basis_ = room(scratch_.basis, (capacity_ + 4 + 2 * k) * stride_);
  projected_ = zeros(scratch_.coordinates, (capacity_ + 2) * row_ + 4);
  border_ = projected_ + (capacity_ + 2) * row_;
  h_ = room(scratch_.dense, capacity_ * row_);
  theta_ = room(scratch_.small, k + 1 + k * row_ + 8 * row_);
  ritz_ = theta_ + k + 1;
  work_ = ritz_ + k * row_;
  if (complete) {
    gram_.to_dense(h_);
    diagonalise(size_, row_, k);
  } else if (!iterate(k, tol)) {
    return false;
  }
  double* y = vector(capacity_ + 4);  // the k vectors, then their images
  double* image = y + k * stride_;
  std::fill(y, y + k * stride_, 0.0);
  for (int64_t i = 0; i < k; ++i) {
    if (complete) {
      std::copy(ritz_ + i * row_, ritz_ + i * row_ + size_, y + i * stride_);
    } else {
      kernels_.combine(basis_, computed_, stride_, ritz_ + i * row_, row_, 1, y + i * stride_);
    }
  }
  for (int64_t i = 0; i < k; i += 2) {
    gram_.multiply(y + i * stride_, std::min<int64_t>(2, k - i), image + i * stride_);
  }
  for (int64_t i = 0; i < k; ++i) {
    // For any vector y some eigenvalue of G lies within ||G y - theta y|| / ||y|| of theta.
    const double* yi = y + i * stride_;
    double* residual = image + i * stride_;
    const double square = norm(yi) * norm(yi);
    double theta = 0;
    kernels_.multiply_double(yi, 1, stride_, residual, 1, &theta, 1);
    theta /= square;
    const double shift = -theta;
    kernels_.combine(yi, 1, stride_, &shift, 1, 1, residual);
    const double error = norm(residual) / std::sqrt(square) + rounding_;
    if (!(theta > error)) {
      return false;
    }
    theta_[i] = std::sqrt(theta);
    ritz_[i] = error / (theta_[i] + std::sqrt(theta - error)) + 4 * kEpsilon * theta_[i];
    if (!(ritz_[i] <= tol * theta_[i])) {
      return false;
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    sigma[i] = theta_[i];
    bound[i] = ritz_[i];
    for (int64_t j = i; j > 0 && sigma[j] > sigma[j - 1]; --j) {
      std::swap(sigma[j], sigma[j - 1]);
      std::swap(bound[j], bound[j - 1]);
    }
  }
  return true;
}

// Grows the basis until the leading k eigenvalues have converged. False if they do not within the
// capacity.
bool GramLanczos::iterate(int64_t k, double tol) {
  add_random_block(std::max(k, kMinBlock));
  int64_t next_check = 8 * k;
  int64_t last_check = 0;
  double last_excess = -std::log(tol);
  while (true) {
    step();
    // Without new vectors the space is invariant, and as its start was random it holds, with
    // probability one, up to k vectors of every eigenvalue: the answer is exact.
    const bool finished = pending_ == 0 || computed_ == size_;
    const bool full = computed_ + pending_ > capacity_;
    if (!finished && !full && computed_ < next_check) {
      continue;
    }
    if (computed_ < k) {
      return false;  // fewer dimensions than values: some are zero
    }
    std::copy(projected_, projected_ + computed_ * row_, h_);
    for (int64_t i = 0; i < computed_; ++i) {
      for (int64_t j = i + 1; j < computed_; ++j) {
        h_[i * row_ + j] = h_[j * row_ + i];
      }
      std::fill(h_ + i * row_ + computed_, h_ + (i + 1) * row_, 0.0);
    }
    diagonalise(computed_, row_, k);
    const double excess = finished ? 0 : log_excess(k, tol);
    if (excess <= 0) {
      return computed_ == size_ || !nearly_coincide(k);
    }
    if (full) {
      return false;
    }
    // The residuals fall about geometrically: the next check comes when they should be small
    // enough.
    const double here = static_cast<double>(computed_);
    const double fall = (last_excess - excess) / (here - static_cast<double>(last_check));
    const double wait = fall > 0 ? excess / fall : 4 * here;
    if (2 * computed_ > capacity_ && here + wait > 2 * static_cast<double>(capacity_)) {
      return false;  // it will not get there
    }
    last_check = computed_;
    last_excess = excess;
    next_check = computed_ +
                 std::max<int64_t>(2 * k, static_cast<int64_t>(std::min(0.9 * wait, 0.6 * here)));
  }
}

// Whether two of the leading k + 1 eigenvalues are closer than the iteration tells apart, yet not
// equal. A cluster of more such values than the block has vectors shows as mixtures of them, each
// close to a value of the cluster, though perhaps not to the i-th one.
bool GramLanczos::nearly_coincide(int64_t k) const {
  constexpr double kEqual = 1e-11;
  constexpr double kApart = 1e-5;
  for (int64_t i = 0; i < std::min(k, computed_ - 1); ++i) {
    const double gap = (theta_[i] - theta_[i + 1]) / theta_[0];
    if (gap > kEqual && gap < kApart) {
      return true;
    }
  }
  return false;
}

// The logarithm of how many times too large the worst residual is, estimated from the border; a
// residual that rounding hides is small enough.
double GramLanczos::log_excess(int64_t k, double tol) const {
  double worst = 0;
  for (int64_t i = 0; i < k; ++i) {
    const double* last = ritz_ + i * row_ + computed_ - last_width_;
    double square = 0;
    for (int64_t f = 0; f < pending_; ++f) {
      double sum = 0;
      for (int64_t t = 0; t < last_width_; ++t) {
        sum += border_[2 * t + f] * last[t];
      }
      square += sum * sum;
    }
    const double wanted = 1.8 * tol * theta_[i] - rounding_;
    worst = std::max(worst, std::sqrt(square) / std::max(wanted, rounding_));
  }
  return std::log(worst);
}

// The first vector is mostly positive, as the leading one of a matrix without negative entries is.
void GramLanczos::add_random_block(int64_t width) {
  std::fill(basis_, basis_ + width * stride_, 0.0);
  for (int64_t t = 0; t < width; ++t) {
    for (int64_t i = 0; i < size_; ++i) {
      vector(t)[i] = random_start(t * size_ + i) + (t == 0 ? 1 : 0);
    }
  }
  computed_ = 0;
  pending_ = orthonormalise(0, width, projected_, kNoise);
  std::fill(projected_, projected_ + 4 * row_, 0.0);
}

// Multiplies the pending vectors and makes what is new in their images the next block.
void GramLanczos::step() {
  double* image = vector(computed_ + pending_);
  gram_.multiply(vector(computed_), pending_, image);
  for (int64_t t = 0; t < pending_; ++t) {
    scale_ = std::max(scale_, norm(image + t * stride_));
  }
  double* coordinates = projected_ + computed_ * row_;
  // Most of an image lies along the last two blocks; after that one pass over all is enough.
  const int64_t recent = std::max<int64_t>(0, computed_ - last_width_);
  project_out(recent, computed_ + pending_, image, pending_, coordinates);
  const int64_t first = computed_ + pending_;
  const int64_t found = orthonormalise(first, pending_, coordinates, kNoise * scale_);
  for (int64_t t = 0; t < pending_; ++t) {
    for (int64_t f = 0; f < 2; ++f) {
      border_[2 * t + f] = f < found ? coordinates[t * row_ + first + f] : 0;
    }
  }
  last_width_ = pending_;
  computed_ += pending_;
  pending_ = computed_ < size_ ? found : 0;
}

// Orthonormalises the `width` vectors from `first` on against all before them and among themselves.
// Independent ones move to the front, noise is dropped; returns how many stay. Each one's parts are
// added to its coordinates.
int64_t GramLanczos::orthonormalise(
    int64_t first, int64_t width, double* coordinates, double noise
) {
  double before[2];
  for (int64_t t = 0; t < width; ++t) {
    before[t] = norm(vector(first + t));
  }
  project_out(0, first, vector(first), width, coordinates);
  int64_t found = 0;
  for (int64_t t = 0; t < width; ++t) {
    double* x = vector(first + t);
    double* along = coordinates + t * row_;
    double length = norm(x);
    // Again if, and as long as, more than half of the vector went (Kahan, Parlett: twice is
    // enough).
    bool enough = length > 0.5 * before[t] && found == 0;
    constexpr int kMaxPasses = 5;
    for (int pass = 0; pass < kMaxPasses && length > noise && !enough; ++pass) {
      const double last = length;
      project_out(0, first + found, x, 1, along);
      length = norm(x);
      enough = length > 0.5 * last;
    }
    if (!(length > noise)) {
      continue;
    }
    double* target = vector(first + found);
    for (int64_t i = 0; i < stride_; ++i) {
      target[i] = x[i] / length;
    }
    along[first + found] = length;
    ++found;
  }
  return found;
}

// block_t -= sum_i <v_i, block_t> v_i for from <= i < to, and coordinates_ti += <v_i, block_t>.
void GramLanczos::project_out(
    int64_t from, int64_t to, double* block, int64_t width, double* coordinates
) {
  const int64_t count = to - from;
  if (count == 0) {
    return;
  }
  double* product = work_;  // [2, row]
  kernels_.multiply_double(vector(from), count, stride_, block, width, product, row_);
  for (int64_t t = 0; t < width; ++t) {
    for (int64_t i = 0; i < count; ++i) {
      coordinates[t * row_ + from + i] += product[t * row_ + i];
      product[t * row_ + i] = -product[t * row_ + i];
    }
  }
  kernels_.combine(vector(from), count, stride_, product, row_, width, block);
}

// The leading eigenvalues and eigenvectors of the matrix in h_.
void GramLanczos::diagonalise(int64_t count, int64_t stride, int64_t k) {
  double* diagonal = work_;
  double* off = diagonal + row_;
  double* factor = off + row_;
  kernels_.tridiagonalise(h_, count, stride, diagonal, off, factor, factor + row_);
  kernels_.leading_eigenvalues(diagonal, off, count, std::min(k + 1, count), theta_);
  for (int64_t i = 0; i < k; ++i) {
    find_eigenvector(i, diagonal, off, count);
  }
  for (int64_t i = 0; i < k; ++i) {
    double* x = ritz_ + i * row_;
    for (int64_t j = count - 1; j >= 0; --j) {
      const int64_t length = count - 1 - j;
      if (factor[j] != 0) {
        const double* v = h_ + j * stride + j + 1;
        const double part = factor[j] * inner(v, x + j + 1, length);
        for (int64_t at = 0; at < length; ++at) {
          x[j + 1 + at] -= part * v[at];
        }
      }
    }
  }
}

// Inverse iteration on the tridiagonal matrix.
void GramLanczos::find_eigenvector(
    int64_t i, const double* diagonal, const double* off, int64_t count
) {
  double* work = work_ + 3 * row_;
  double* x = ritz_ + i * row_;
  std::fill(x, x + row_, 0.0);
  for (int64_t at = 0; at < count; ++at) {
    x[at] = 1 + random_start(i * count + at);
  }
  const double size = std::max(std::fabs(theta_[0]), std::fabs(theta_[i]));
  const double least = std::max(kEpsilon * size, 1e-300);
  constexpr int kIterations = 3;
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    solve_shifted(diagonal, off, count, theta_[i], least, work, x);
    normalise(x, count);
    for (int64_t j = 0; j < i; ++j) {  // vectors of values that lie close must be kept apart
      if (theta_[j] - theta_[i] <= 1e-3 * size) {
        const double* other = ritz_ + j * row_;
        const double part = inner(x, other, count);
        for (int64_t at = 0; at < count; ++at) {
          x[at] -= part * other[at];
        }
        normalise(x, count);
      }
    }
  }
}

double GramLanczos::norm(const double* x) const {
  double square = 0;
  kernels_.multiply_double(x, 1, stride_, x, 1, &square, 1);
  return std::sqrt(square);
}

}  // namespace fullspectrum::spectrum
