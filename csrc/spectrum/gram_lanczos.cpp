#include "spectrum/gram_lanczos.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "spectrum/leading_pairs.h"
#include "spectrum/random_start.h"
#include "spectrum/two_pass_lanczos.h"

namespace fullspectrum::spectrum {
namespace {

constexpr double kEpsilon = 2.220446049250313e-16;
// What is left of an image of a unit vector below this part of the norm of G is rounding noise.
constexpr double kNoise = 256 * kEpsilon;
// A basis of so many vectors has converged, or would take longer than other ways.
constexpr int64_t kCapacity = 512;
// Where the basis has more numbers than a cache holds and the matrix fewer entries than it,
// reorthogonalisation takes longer than the products: then so many vectors only.
constexpr int64_t kCachedBasis = int64_t{1} << 20;
constexpr int64_t kLeastCapacity = 16;
constexpr int64_t kBand = 3;  // entries of a row of the projected matrix up to the diagonal

}  // namespace

GramLanczos::GramLanczos(const GramOperator& gram, double rounding, GramScratch& scratch)
    : kernels_(gram_kernels()),
      gram_(gram),
      rounding_(rounding),
      size_(gram.size()),
      stride_(gram.stride()),
      scratch_(scratch) {}

bool GramLanczos::run(int64_t k, double tol, double* sigma, double* bound) {
  const bool complete = size_ <= kComplete;
  capacity_ = complete ? size_ : std::min(size_, most_vectors());
  row_ = padded(capacity_ + 2);
  basis_ = room(scratch_.basis, (capacity_ + 4 + 2 * k) * stride_);
  coordinates_ = room(scratch_.band, 2 * row_ + 4 + (capacity_ + 2) * kBand);
  border_ = coordinates_ + 2 * row_;
  band_ = border_ + 4;
  theta_ = room(scratch_.small, padded(k + 1) + k * row_ + leading_pairs_workspace(row_));
  ritz_ = theta_ + padded(k + 1);
  work_ = ritz_ + k * row_;
  double* y = vector(capacity_ + 4);  // the k vectors, then their images
  double* image = y + k * stride_;
  std::fill(y, image, 0.0);
  bool longer = false;
  if (complete) {
    gram_.to_dense(basis_);
    leading_pairs_of_dense(basis_, size_, stride_, k, theta_, y, work_);
  } else {
    const Outcome outcome = iterate(k, tol);
    longer = outcome == Outcome::unfinished && capacity_ < std::min(size_, kCapacity);
    if (outcome != Outcome::converged && !longer) {
      return false;
    }
    for (int64_t i = 0; i < k; ++i) {
      kernels_.combine(basis_, computed_, stride_, ritz_ + i * row_, row_, 1, y + i * stride_);
    }
    if (longer) {
      TwoPassLanczos(gram_, rounding_, scratch_).run(k, tol, y);
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
    kernels_.inner_products(yi, 1, stride_, residual, 1, &theta, 1);
    theta /= square;
    const double shift = -theta;
    kernels_.combine(yi, 1, stride_, &shift, 1, 1, residual);
    const double left = norm(residual) / std::sqrt(square);
    const double error = left + rounding_;
    if (!(theta > error)) {
      return false;
    }
    theta_[i] = std::sqrt(theta);
    ritz_[i] = error / (theta_[i] + std::sqrt(theta - error)) + 4 * kEpsilon * theta_[i];
    // Where the long iteration has ended early, other ways would not get further either.
    const bool at_an_end = longer && left > rounding_;
    if (!(ritz_[i] <= tol * theta_[i]) && !at_an_end) {
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

int64_t GramLanczos::most_vectors() const {
  if (!gram_.is_matrix_free()) {
    return kCapacity;
  }
  return std::clamp(
      std::max(kCachedBasis / stride_, gram_.entries() / size_), kLeastCapacity, kCapacity
  );
}

// Grows the basis until the leading k eigenvalues have converged, as far as it may.
GramLanczos::Outcome GramLanczos::iterate(int64_t k, double tol) {
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
      return Outcome::unclear;  // fewer dimensions than values: some are zero
    }
    leading_pairs_of_band(band_, computed_, row_, k, theta_, ritz_, work_);
    const double excess = finished ? 0 : log_excess(k, tol);
    if (excess <= 0) {
      const bool clear = computed_ == size_ || !nearly_coincide(k);
      return clear ? Outcome::converged : Outcome::unclear;
    }
    if (full) {
      return Outcome::unfinished;
    }
    // The residuals fall about geometrically: the next check comes when they should be small
    // enough.
    const double here = static_cast<double>(computed_);
    const double fall = (last_excess - excess) / (here - static_cast<double>(last_check));
    const double wait = fall > 0 ? excess / fall : 4 * here;
    if (2 * computed_ > capacity_ && here + wait > 2 * static_cast<double>(capacity_)) {
      return Outcome::unfinished;  // it will not get there
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
    const double gap = theta_[i] - theta_[i + 1];
    if (gap > kEqual * theta_[0] && gap < kApart * theta_[i]) {
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
  pending_ = orthonormalise(0, width, coordinates_, kNoise);
}

// Multiplies the pending vectors and makes what is new in their images the next block.
void GramLanczos::step() {
  double* image = vector(computed_ + pending_);
  gram_.multiply(vector(computed_), pending_, image);
  for (int64_t t = 0; t < pending_; ++t) {
    scale_ = std::max(scale_, norm(image + t * stride_));
  }
  std::fill(coordinates_, coordinates_ + 2 * row_, 0.0);
  // Most of an image lies along the last two blocks; after that one pass over all is enough.
  const int64_t recent = std::max<int64_t>(0, computed_ - last_width_);
  project_out(recent, computed_ + pending_, image, pending_, coordinates_);
  const int64_t first = computed_ + pending_;
  const int64_t found = orthonormalise(first, pending_, coordinates_, kNoise * scale_);
  for (int64_t t = 0; t < pending_; ++t) {
    for (int64_t f = 0; f < 2; ++f) {
      border_[2 * t + f] = f < found ? coordinates_[t * row_ + first + f] : 0;
    }
    // An image lies along the blocks before and after its own, of two vectors at most each; a
    // vector of the next block is what is new in the images so far.
    const int64_t i = computed_ + t;
    for (int64_t d = 0; d < kBand; ++d) {
      band_[kBand * i + d] = d <= i ? coordinates_[t * row_ + i - d] : 0;
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
  kernels_.inner_products(vector(from), count, stride_, block, width, product, row_);
  for (int64_t t = 0; t < width; ++t) {
    for (int64_t i = 0; i < count; ++i) {
      coordinates[t * row_ + from + i] += product[t * row_ + i];
      product[t * row_ + i] = -product[t * row_ + i];
    }
  }
  kernels_.combine(vector(from), count, stride_, product, row_, width, block);
}

double GramLanczos::norm(const double* x) const {
  double square = 0;
  kernels_.inner_products(x, 1, stride_, x, 1, &square, 1);
  return std::sqrt(square);
}

}  // namespace fullspectrum::spectrum
