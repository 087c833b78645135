#include "spectrum/two_pass_lanczos.h"

#include <algorithm>
#include <cmath>

#include "common/cpu_features.h"
#include "spectrum/leading_pairs.h"
#include "spectrum/random_start.h"

namespace fullspectrum::spectrum {
namespace {

constexpr int64_t kRowsOfBlock = 2048;  // of sums: fixed, so that they do not depend on the threads
constexpr int64_t kBlocksToShare = 32;  // fewer are done before other threads have begun
constexpr int64_t kMostSteps = 4096;
constexpr int kMostRuns = 8;
constexpr int64_t kMostParts = 3;
constexpr int64_t kBand = 3;  // entries of a row of the projected matrix up to the diagonal
// A second vector of a block whose new part is a smaller one of it cannot be told from the first.
constexpr double kIndependent = 1e-14;  // its square
// A residual at which an eigenvector has begun to spoil the orthogonality.
constexpr double kConverged = 1e-9;

const PairKernels& pair_kernels() {
  static const PairKernels kernels = FULLSPECTRUM_ACTIVE(pair_kernels());
  return kernels;
}

void negate(const double* from, double* to) {
  for (int i = 0; i < 4; ++i) {
    to[i] = -from[i];
  }
}

// Upper triangular R with R^T R = square, and its inverse; false where a column depends on the
// other.
bool factorise(const double* square, double* upper, double* inverse) {
  const double first = std::sqrt(square[0]);
  const double beside = square[1] / first;
  const double rest = square[3] - beside * beside;
  const bool independent = square[0] > 0 && rest > kIndependent * square[3];
  const double second = independent ? std::sqrt(rest) : 0;
  upper[0] = first;
  upper[1] = square[0] > 0 ? beside : 0;
  upper[2] = 0;
  upper[3] = second;
  if (independent) {
    inverse[0] = 1 / first;
    inverse[1] = -beside / (first * second);
    inverse[2] = 0;
    inverse[3] = 1 / second;
  }
  return independent;
}

}  // namespace

TwoPassLanczos::TwoPassLanczos(const GramOperator& gram, double rounding, GramScratch& scratch)
    : kernels_(pair_kernels()),
      gram_(gram),
      rounding_(rounding),
      scratch_(scratch),
      rows_((gram.size() + kPairPadding - 1) / kPairPadding * kPairPadding) {
  const int64_t pair = kWidth * rows_;
  previous_ = room(scratch.two_pass, 5 * pair);
  current_ = previous_ + pair;
  next_ = current_ + pair;
  locked_ = next_ + pair;
  leading_ = locked_ + pair;
  std::fill(previous_, leading_ + pair, 0.0);
}

void TwoPassLanczos::run(int64_t k, double tol, double* y) {
  for (int64_t t = 0; t < k; ++t) {
    for (int64_t i = 0; i < gram_.size(); ++i) {
      leading_[kWidth * i + t] = y[t * gram_.stride() + i];
    }
  }
  bool second = k == kWidth;  // whether there is a second vector to start with
  for (int run = 0; run < kMostRuns; ++run) {
    make_start(second);
    assess();
    const int64_t wanted = k - locks_;
    bool done = true;
    for (int64_t i = 0; i < wanted; ++i) {
      done &= residual_[i] <= wanted_residual(theta_[i], 1.9 * tol);
    }
    if (done || run + 1 == kMostRuns) {
      break;
    }
    // What is left of the first one disturbs the second by as much.
    if (wanted == kWidth && residual_[0] <= 0.3 * tol * theta_[1]) {
      lock_first();
      make_start(false);
    }
    const bool grew = iterate(k - locks_, 1.8 * tol);
    collect();
    second = grew;
    if (static_cast<int64_t>(steps_.size()) >= kMostSteps) {
      make_start(second);
      break;
    }
  }
  for (int64_t t = 0; t < k; ++t) {
    const double* from = t < locks_ ? locked_ + t : leading_ + t - locks_;
    for (int64_t i = 0; i < gram_.size(); ++i) {
      y[t * gram_.stride() + i] = from[kWidth * i];
    }
  }
}

// The residual that is worth tol / 2 of a singular value, or as much as rounding hides.
double TwoPassLanczos::wanted_residual(double theta, double tol) const {
  return std::max(tol * theta - rounding_, rounding_);
}

// Makes `leading_` an orthonormal pair, orthogonal to what is locked, its second vector drawn at
// random unless there is one.
void TwoPassLanczos::make_start(bool second) {
  for (int attempt = 0; attempt < 3; ++attempt) {
    if (!second) {
      for (int64_t i = 0; i < gram_.size(); ++i) {
        leading_[kWidth * i + 1] = random_start((attempt + 1) * gram_.size() + i);
      }
    }
    bool independent = true;
    for (int pass = 0; pass < 2 && independent; ++pass) {
      double product[4];
      double upper[4];
      double inverse[4];
      subtract(leading_, {}, {locked_}, product);
      subtract(leading_, {{locked_, product}}, {leading_}, product);
      independent = factorise(product, upper, inverse);
      if (independent) {
        transform(leading_, inverse);
      }
    }
    if (independent) {
      return;
    }
    second = false;
  }
}

// The Rayleigh quotients of `leading_` and the norms of their residuals.
void TwoPassLanczos::assess() {
  gram_.multiply_pairs(leading_, next_);
  double product[4];
  double square[4];
  subtract(next_, {}, {leading_}, product);
  const double quotients[4] = {product[0], 0, 0, product[3]};
  subtract(next_, {{leading_, quotients}}, {next_}, square);
  for (int t = 0; t < kWidth; ++t) {
    theta_[t] = product[3 * t];
    residual_[t] = std::sqrt(square[3 * t]);
  }
}

void TwoPassLanczos::lock_first() {
  for (int64_t i = 0; i < gram_.size(); ++i) {
    locked_[kWidth * i] = leading_[kWidth * i];
    leading_[kWidth * i] = leading_[kWidth * i + 1];
  }
  locks_ = 1;
}

// Computes the projected matrix from `leading_` on, until the wanted eigenvectors have converged or
// the first one disturbs the others. False where the next block has no two new vectors.
bool TwoPassLanczos::iterate(int64_t wanted, double tol) {
  begin();
  steps_.clear();
  int64_t next_check = 12;
  int64_t last_check = 0;
  double last_excess = -std::log(tol);
  while (true) {
    Step step{};
    if (!steps_.empty()) {  // A_j and R_j are what G is between the blocks
      const double* next = steps_.back().next;
      const double transposed[4] = {next[0], next[2], next[1], next[3]};
      std::copy(transposed, transposed + 4, step.before);
    }
    const bool grew = advance(step, false);
    steps_.push_back(step);
    const int64_t count = static_cast<int64_t>(steps_.size());
    if (grew && count < next_check && count < kMostSteps) {
      continue;
    }
    find_leading();
    const double excess = log_excess(wanted, tol);
    const bool disturbed = wanted == kWidth && residual(0) <= kConverged * theta_[0];
    if (!grew || excess <= 0 || disturbed || count >= kMostSteps) {
      return grew;
    }
    // The residuals fall about geometrically, as in GramLanczos.
    const double here = static_cast<double>(count);
    const double fall = (last_excess - excess) / (here - static_cast<double>(last_check));
    const double wait = fall > 0 ? excess / fall : 4 * here;
    last_check = count;
    last_excess = excess;
    next_check =
        count + std::max<int64_t>(4, static_cast<int64_t>(std::min(0.9 * wait, 0.6 * here)));
  }
}

// The two leading eigenvectors of the projected matrix.
void TwoPassLanczos::find_leading() {
  const int64_t size = kWidth * static_cast<int64_t>(steps_.size());
  ritz_stride_ = padded(size);
  band_.resize(kBand * size);
  ritz_.resize(kWidth * ritz_stride_);
  work_.resize(leading_pairs_workspace(ritz_stride_));
  for (size_t j = 0; j < steps_.size(); ++j) {
    const Step& step = steps_[j];
    double along[4];
    for (int i = 0; i < 4; ++i) {
      along[i] = step.along[i] + step.along_again[i];
    }
    double* row = band_.data() + kBand * kWidth * j;
    const double none[4] = {};
    const double* before = j > 0 ? steps_[j - 1].next : none;
    row[0] = along[0];
    row[1] = before[1];
    row[2] = before[0];
    row[3] = along[3];
    row[4] = (along[1] + along[2]) / 2;
    row[5] = before[3];
  }
  leading_pairs_of_band(
      band_.data(), size, ritz_stride_, kWidth, theta_, ritz_.data(), work_.data()
  );
}

// What the i-th eigenvector leaves of itself outside of the space, estimated.
double TwoPassLanczos::residual(int64_t i) const {
  const double* last = ritz_.data() + i * ritz_stride_ + kWidth * (steps_.size() - 1);
  const double* next = steps_.back().next;
  return std::hypot(next[0] * last[0] + next[1] * last[1], next[3] * last[1]);
}

double TwoPassLanczos::log_excess(int64_t wanted, double tol) const {
  double worst = 0;
  for (int64_t i = 0; i < wanted; ++i) {
    worst = std::max(worst, residual(i) / wanted_residual(theta_[i], tol));
  }
  return std::log(worst);
}

// One step; false where there is no next block. The second pass knows the coefficients. What is
// left along the last two blocks is taken out again: it would grow from step to step.
bool TwoPassLanczos::advance(Step& step, bool known) {
  gram_.multiply_pairs(current_, next_);
  using Pairs = std::vector<const double*>;
  const Pairs none;
  double sums[12];
  subtract(next_, {{previous_, step.before}}, known ? none : Pairs{current_}, sums);
  if (!known) {
    std::copy(sums, sums + 4, step.along);
  }
  subtract(
      next_, {{current_, step.along}}, known ? none : Pairs{previous_, current_, locked_}, sums
  );
  if (!known) {
    std::copy(sums, sums + 4, step.before_again);
    std::copy(sums + 4, sums + 8, step.along_again);
    std::copy(sums + 8, sums + 12, step.locked);
  }
  subtract(
      next_,
      {{previous_, step.before_again}, {current_, step.along_again}, {locked_, step.locked}},
      known ? none : Pairs{next_},
      sums
  );
  if (!known && !factorise(sums, step.next, step.inverse)) {
    return false;
  }
  transform(next_, step.inverse);
  std::swap(previous_, current_);
  std::swap(current_, next_);
  return true;
}

// The second pass: the eigenvectors, in `leading_`.
void TwoPassLanczos::collect() {
  begin();
  std::fill(leading_, leading_ + kWidth * rows_, 0.0);
  for (size_t j = 0; j < steps_.size(); ++j) {
    const double* first_vector = ritz_.data() + kWidth * j;
    const double* second_vector = first_vector + ritz_stride_;
    const double part[4] = {first_vector[0], second_vector[0], first_vector[1], second_vector[1]};
    for_each_block([&](int64_t first, int64_t rows) {
      const double* in = current_ + first;
      kernels_.add_products(1, &in, part, rows, leading_ + first);
    });
    if (j + 1 < steps_.size()) {
      advance(steps_[j], true);
    }
  }
}

void TwoPassLanczos::begin() {
  std::copy(leading_, leading_ + kWidth * rows_, current_);
  std::fill(previous_, previous_ + kWidth * rows_, 0.0);
}

// x -= sum_i pairs_i factor_i, then sums_i = measured_i^T x.
void TwoPassLanczos::subtract(
    double* x,
    const std::vector<Part>& parts,
    const std::vector<const double*>& measured,
    double* sums
) {
  constexpr size_t kMost = kMostParts;
  double factor[4 * kMost];
  for (size_t i = 0; i < parts.size(); ++i) {
    negate(parts[i].factor, factor + 4 * i);
  }
  partial_.resize(4 * kMost * blocks());
  for_each_block([&](int64_t first, int64_t rows) {
    const double* in[kMost];
    for (size_t i = 0; i < parts.size(); ++i) {
      in[i] = parts[i].pairs + first;
    }
    kernels_.add_products(static_cast<int64_t>(parts.size()), in, factor, rows, x + first);
    for (size_t i = 0; i < measured.size(); ++i) {
      in[i] = measured[i] + first;
    }
    double* out = partial_.data() + first / (kWidth * kRowsOfBlock) * 4 * kMost;
    kernels_.inner_products(static_cast<int64_t>(measured.size()), in, x + first, rows, out);
  });
  sum_blocks(static_cast<int64_t>(measured.size()), sums);
}

int64_t TwoPassLanczos::blocks() const { return (rows_ + kRowsOfBlock - 1) / kRowsOfBlock; }

// Calls body for blocks of rows; `first` counts numbers, two a row.
void TwoPassLanczos::for_each_block(const std::function<void(int64_t first, int64_t rows)>& body) {
  const auto job = [&](int64_t block) {
    const int64_t first = block * kRowsOfBlock;
    body(kWidth * first, std::min(kRowsOfBlock, rows_ - first));
  };
  if (blocks() >= kBlocksToShare) {
    scratch_.run_jobs(blocks(), job);
    return;
  }
  for (int64_t block = 0; block < blocks(); ++block) {
    job(block);
  }
}

void TwoPassLanczos::transform(double* x, const double* factor) {
  for_each_block([&](int64_t first, int64_t rows) { kernels_.transform(factor, rows, x + first); });
}

// Sums over blocks in their order.
void TwoPassLanczos::sum_blocks(int64_t count, double* sums) const {
  std::fill(sums, sums + 4 * count, 0.0);
  for (int64_t block = 0; block < blocks(); ++block) {
    for (int64_t i = 0; i < 4 * count; ++i) {
      sums[i] += partial_[4 * kMostParts * block + i];
    }
  }
}

}  // namespace fullspectrum::spectrum
