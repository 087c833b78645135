#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "common/cpu_features.h"
#include "common/library.h"
#include "common/parallel.h"
#include "selection/projection.h"
#include "selection/projection_kernels.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Summed at a time, and then in order: the sums do not depend on the number of threads.
constexpr int64_t kChunk = int64_t{1} << 15;
// Below this all kinks are looked at, without a sample.
constexpr int64_t kSmall = 2048;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename scalar_t>
ProjectionKernels<scalar_t> active_kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return avx512::projection_kernels<scalar_t>();
    case Isa::avx2:
      return avx2::projection_kernels<scalar_t>();
    default:
      break;
  }
#endif
  return baseline::projection_kernels<scalar_t>();
}

double clip(double x) { return x > 0 ? std::min(x, 1.0) : 0; }

bool lies_between(double x, double low, double high) { return x > low && x < high; }

// The root of f(v) = sum clip(z - v, 0, 1) = budget in [low, high], where f(low) > budget >=
// f(high).
class Root {
 public:
  Root(double low, double high, double budget)
      : anchor_(low), low_(low), high_(high), budget_(budget) {}

  // Adds scores without a kink between the bounds: their sum at the lower one, and how many of
  // them fall with v.
  void add_line(double at_low, int64_t slope) {
    at_anchor_ += at_low;
    slope_ += slope;
  }

  // Adds the other scores and finds the root: the bounds move to one of the kinks, and what then
  // has none between them joins the line. Takes linear time, since the kink is in the middle.
  double find(std::vector<double>& open) {
    while (!open.empty()) {
      const double kink = middle_kink(open);
      double sum = line_at(kink);
      for (const double z : open) {
        sum += clip(z - kink);
      }
      (sum > budget_ ? low_ : high_) = kink;
      open.erase(
          std::remove_if(open.begin(), open.end(), [&](double z) { return settle(z); }), open.end()
      );
    }
    const double root = anchor_ + (at_anchor_ - budget_) / static_cast<double>(slope_);
    return slope_ == 0 ? high_ : std::min(std::max(root, low_), high_);
  }

 private:
  double line_at(double v) const {
    return at_anchor_ - static_cast<double>(slope_) * (v - anchor_);
  }

  // A kink about the middle of those between the bounds, each score giving one.
  double middle_kink(const std::vector<double>& open) const {
    constexpr size_t kSample = 101;
    const size_t count = std::min(kSample, open.size());
    std::vector<double> kinks;
    for (size_t i = 0; i < count; ++i) {
      const double z = open[i * open.size() / count];
      kinks.push_back(lies_between(z, low_, high_) ? z : z - 1);
    }
    std::nth_element(kinks.begin(), kinks.begin() + count / 2, kinks.end());
    return kinks[count / 2];
  }

  // Adds a score to the line if it has no kink between the bounds.
  bool settle(double z) {
    if (lies_between(z, low_, high_) || lies_between(z - 1, low_, high_)) {
      return false;
    }
    if (z - 1 >= high_) {
      at_anchor_ += 1;
    } else if (z >= high_) {
      at_anchor_ += z - anchor_;
      ++slope_;
    }
    return true;
  }

  double anchor_;         // the line's sum is known here,
  double at_anchor_ = 0;  // and is this,
  int64_t slope_ = 0;     // and falls by this times v - anchor
  double low_, high_, budget_;
};

// max(0, the root) for few finite scores.
double threshold_of_few(const std::vector<double>& scores, double budget) {
  double at_zero = 0;
  for (const double z : scores) {
    at_zero += clip(z);
  }
  if (at_zero <= budget) {
    return 0;
  }
  std::vector<double> open;
  std::copy_if(scores.begin(), scores.end(), std::back_inserter(open), [](double z) {
    return z > 0;
  });
  return Root(0, kInfinity, budget).find(open);
}

// A part of a tensor, and what was found in it.
template <typename scalar_t>
struct Chunk {
  scalar_t* scores;  // [size]
  int64_t size;
  BracketSums sums = {};
  std::vector<scalar_t> open = {};
};

// As in topk_scores_cpu.cpp, after Floyd and Rivest: a sample gives two bounds that are likely to
// have the threshold between them, one reading of the scores collects those that have a kink there
// and sums up all others, and only the kinks found are looked at one by one.
template <typename scalar_t>
class Projection {
 public:
  Projection(const std::vector<Tensor>& scores, int64_t size, double budget)
      : size_(size), budget_(budget) {
    for (const Tensor& tensor : scores) {
      scalar_t* data = static_cast<scalar_t*>(tensor.data_ptr());
      for (int64_t begin = 0; begin < tensor.numel(); begin += kChunk) {
        chunks_.push_back({data + begin, std::min(kChunk, tensor.numel() - begin)});
      }
    }
  }

  // Projects the scores and returns the threshold.
  double run() {
    const double threshold = find();
    for_each_chunk([&](Chunk<scalar_t>& chunk, scalar_t*) {
      kernels_.project(chunk.scores, chunk.size, threshold);
    });
    return threshold;
  }

 private:
  double find() {
    auto [low, high] = sampled_bounds();
    BracketSums sums = bracket(low, high);
    const bool met = sums.at_low > budget_ ? sums.at_high <= budget_ : low == 0;
    if (!met && !std::isnan(sums.at_low)) {  // the sample was not like the whole
      low = 0;
      high = kInfinity;
      sums = bracket(low, high);
    }
    if (!(sums.at_low > budget_)) {
      return std::isnan(sums.at_low) ? sums.at_low : 0;
    }
    std::vector<double> open;
    open.reserve(sums.open);
    for (const Chunk<scalar_t>& chunk : chunks_) {
      open.insert(open.end(), chunk.open.begin(), chunk.open.end());
    }
    double of_open = 0;
    for (const double z : open) {
      of_open += clip(z - low);
    }
    Root root(low, high, budget_);
    root.add_line(sums.at_low - of_open, sums.linear);
    return root.find(open);
  }

  BracketSums bracket(double low, double high) {
    for_each_chunk([&](Chunk<scalar_t>& chunk, scalar_t* open) {
      chunk.sums = kernels_.bracket(chunk.scores, chunk.size, low, high, open);
      chunk.open.assign(open, open + chunk.sums.open);
    });
    BracketSums total{};
    for (const Chunk<scalar_t>& chunk : chunks_) {
      total.at_low += chunk.sums.at_low;
      total.at_high += chunk.sums.at_high;
      total.linear += chunk.sums.linear;
      total.open += chunk.sums.open;
    }
    return total;
  }

  // Calls body(chunk, memory for as many scores) on as many threads as there are.
  template <typename Body>
  void for_each_chunk(const Body& body) {
    const int64_t parts = thread_count(), count = static_cast<int64_t>(chunks_.size());
    parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      const std::unique_ptr<scalar_t[]> memory(new scalar_t[kChunk]);
      for (int64_t i = count * first / parts; i < count * last / parts; ++i) {
        body(chunks_[i], memory.get());
      }
    });
  }

  // Two bounds that the threshold is likely to lie between.
  std::pair<double, double> sampled_bounds() const {
    if (size_ < kSmall) {
      return {0, kInfinity};
    }
    // of the order n^(2/3) the work on the sample equals that on what is left between the bounds
    const int64_t size = static_cast<int64_t>(std::cbrt(size_) * std::cbrt(size_));
    std::vector<double> sample;
    sample.reserve(size);
    uint64_t random = 0;
    auto chunk = chunks_.begin();
    int64_t before = 0;  // scores before the chunk
    for (int64_t i = 0; i < size; ++i) {
      // one of each stretch, not always the same: rows and columns have a rhythm too
      random = random * 6364136223846793005u + 1442695040888963407u;
      const double shift = static_cast<double>(random >> 32) / 4294967296.0;
      const double place = (static_cast<double>(i) + shift) / static_cast<double>(size);
      const int64_t at =
          std::min(static_cast<int64_t>(place * static_cast<double>(size_)), size_ - 1);
      for (; at >= before + chunk->size; ++chunk) {
        before += chunk->size;
      }
      const double z = chunk->scores[at - before];
      if (std::isfinite(z)) {
        sample.push_back(z);
      }
    }
    const double share = std::min(budget_ / static_cast<double>(size_), 1.0);
    const double in_sample = share * static_cast<double>(size);
    const double spread = 3.5 * std::sqrt((1 - share) * in_sample) + 1;  // in sigmas, at most
    return {
        threshold_of_few(sample, in_sample + spread),
        spread < in_sample ? threshold_of_few(sample, in_sample - spread) : kInfinity
    };
  }

  const ProjectionKernels<scalar_t> kernels_ = active_kernels<scalar_t>();
  std::vector<Chunk<scalar_t>> chunks_;
  int64_t size_;
  double budget_;
};

Tensor project_scores_cpu(std::vector<Tensor> scores, double budget) {
  const int64_t size = check_project_scores(scores, budget);
  const double threshold = scores[0].scalar_type() == ScalarType::Double
                               ? Projection<double>(scores, size, budget).run()
                               : Projection<float>(scores, size, budget).run();
  Tensor result = torch::stable::new_empty(scores[0], {}, ScalarType::Double);
  *result.mutable_data_ptr<double>() = threshold;
  return result;
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("project_scores_", TORCH_BOX(&project_scores_cpu)); }

}  // namespace fullspectrum
