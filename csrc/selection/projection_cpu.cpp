#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
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

double clip(double x) { return x > 0 ? std::min(x, 1.0) : 0; }

bool lies_between(double x, double low, double high) { return x > low && x < high; }

// Where the threshold lies.
struct Bounds {
  double low;
  double high;
};

// A sum clip(z - v, 0, 1) of scores without a kink between the bounds.
struct Line {
  double anchor;  // the lower bound
  double at_anchor;
  double slope;  // downwards

  double at(double v) const { return at_anchor - slope * (v - anchor); }
};

// The v within the bounds at which line(v) + sum clip(z - v, 0, 1) over `open` falls to the budget;
// a bound, where it does so outside. The bounds move to one of the kinks, and what then has none
// between them joins the line. Takes linear time, since the kink is about in the middle.
class Root {
 public:
  Root(Bounds bounds, Line line, double budget) : bounds_(bounds), line_(line), budget_(budget) {}

  double find(std::vector<double> open) {
    for (settle(open); !open.empty(); settle(open)) {
      const double kink = middle_kink(open);
      double sum = line_.at(kink);
      for (const double z : open) {
        sum += clip(z - kink);
      }
      (sum > budget_ ? bounds_.low : bounds_.high) = kink;
    }
    if (line_.slope == 0) {
      return line_.at_anchor > budget_ ? bounds_.high : bounds_.low;
    }
    const double root = line_.anchor + (line_.at_anchor - budget_) / line_.slope;
    return std::min(std::max(root, bounds_.low), bounds_.high);
  }

 private:
  bool is_inside(double kink) const { return lies_between(kink, bounds_.low, bounds_.high); }

  // The middle one of about a hundred kinks between the bounds.
  double middle_kink(const std::vector<double>& open) const {
    constexpr size_t kSample = 101;
    const size_t count = std::min(kSample, open.size());
    std::vector<double> kinks;
    for (size_t i = 0; i < count; ++i) {
      const double z = open[i * open.size() / count];
      kinks.push_back(is_inside(z) ? z : z - 1);
    }
    std::nth_element(kinks.begin(), kinks.begin() + count / 2, kinks.end());
    return kinks[count / 2];
  }

  // Moves the scores without a kink between the bounds to the line.
  void settle(std::vector<double>& open) {
    const auto is_settled = [&](double z) {
      if (is_inside(z) || is_inside(z - 1)) {
        return false;
      }
      if (z - 1 >= bounds_.high) {
        line_.at_anchor += 1;
      } else if (z >= bounds_.high) {
        line_.at_anchor += z - line_.anchor;
        line_.slope += 1;
      }
      return true;
    };
    // in place and in order: std::remove_if promises no order of the calls
    auto kept = open.begin();
    for (const double z : open) {
      if (!is_settled(z)) {
        *kept++ = z;
      }
    }
    open.erase(kept, open.end());
  }

  Bounds bounds_;
  Line line_;
  double budget_;
};

// Calls body(i, memory for kChunk + 8 scores) for every i below `count`, on as many threads as
// there are.
template <typename scalar_t, typename Body>
void for_each_in_parts(int64_t count, const Body& body) {
  const int64_t parts = thread_count();
  parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    const std::unique_ptr<scalar_t[]> memory(new scalar_t[kChunk + 8]);
    for (int64_t i = count * first / parts; i < count * last / parts; ++i) {
      body(i, memory.get());
    }
  });
}

// Some scores side by side, and what was found in them.
template <typename scalar_t>
struct Chunk {
  scalar_t* scores;  // [size]
  int64_t size;
  BracketSums sums = {};
  std::vector<scalar_t> open = {};
};

template <typename scalar_t>
void append_chunks(scalar_t* scores, int64_t size, std::vector<Chunk<scalar_t>>& chunks) {
  for (int64_t begin = 0; begin < size; begin += kChunk) {
    chunks.push_back({scores + begin, std::min(kChunk, size - begin)});
  }
}

// After Floyd and Rivest (see topk_scores_cpu.cpp): a sample gives two bounds that are likely to
// have the threshold between them, and one reading of the scores sums up all that have no kink
// there. With what is left the same is done again, until it is little. The first bounds may be far
// apart, since the sample's share of ones varies; the next ones are near each other, since only
// the difference of the sums between the bounds varies then.
template <typename scalar_t>
class Threshold {
 public:
  Threshold(std::vector<Chunk<scalar_t>> chunks, double budget)
      : chunks_(std::move(chunks)), budget_(budget) {}

  double find() {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    for (bool first = true; first || size() > kSmall; first = false) {
      const int64_t before = size();
      BracketSums sums;
      Bounds bounds = sampled_bounds();
      if (!narrow(bounds, &sums)) {  // the sample was not like the whole
        bounds = bounds_;
        narrow(bounds, &sums);
      }
      if (std::isnan(sums.at_low)) {
        return kNan;
      }
      if (line_.at(bounds.low) + sums.at_low <= budget_) {
        return bounds.low;  // 0, or the sums' rounding
      }
      settle(bounds, sums);
      if (size() > before / 2) {
        break;  // nothing is won, as with few different scores
      }
    }
    return Root(bounds_, line_, budget_).find({open_.begin(), open_.end()});
  }

 private:
  int64_t size() const {
    int64_t total = 0;
    for (const Chunk<scalar_t>& chunk : chunks_) {
      total += chunk.size;
    }
    return total;
  }

  // Sums up the scores at both bounds, and collects those that are open. Returns whether the
  // threshold lies between them.
  bool narrow(const Bounds& bounds, BracketSums* total) {
    const auto kernels = FULLSPECTRUM_ACTIVE(projection_kernels<scalar_t>());
    for_each_in_parts<scalar_t>(chunks_.size(), [&](int64_t i, scalar_t* memory) {
      Chunk<scalar_t>& chunk = chunks_[i];
      chunk.sums = kernels.bracket(chunk.scores, chunk.size, bounds.low, bounds.high, memory);
      chunk.open.assign(memory, memory + chunk.sums.open);
    });
    *total = {};
    for (const Chunk<scalar_t>& chunk : chunks_) {
      total->at_low += chunk.sums.at_low;
      total->at_high += chunk.sums.at_high;
      total->linear += chunk.sums.linear;
    }
    return (bounds.low == bounds_.low || line_.at(bounds.low) + total->at_low > budget_) &&
           (bounds.high == bounds_.high || line_.at(bounds.high) + total->at_high <= budget_);
  }

  // Takes over these bounds; the open scores are all that is looked at from now on.
  void settle(const Bounds& bounds, const BracketSums& sums) {
    std::vector<scalar_t> open;
    for (const Chunk<scalar_t>& chunk : chunks_) {
      open.insert(open.end(), chunk.open.begin(), chunk.open.end());
    }
    open_at_low_ = 0;
    for (const scalar_t z : open) {
      open_at_low_ += clip(static_cast<double>(z) - bounds.low);
    }
    line_ = {
        bounds.low,
        line_.at(bounds.low) + (sums.at_low - open_at_low_),
        line_.slope + static_cast<double>(sums.linear)
    };
    bounds_ = bounds;
    open_ = std::move(open);
    chunks_.clear();
    append_chunks(open_.data(), static_cast<int64_t>(open_.size()), chunks_);
  }

  // Bounds that the threshold is likely to lie between.
  Bounds sampled_bounds() const {
    const int64_t size = this->size();
    if (size <= kSmall) {
      return bounds_;
    }
    const std::vector<double> sample = drawn_sample(size);
    const double share = static_cast<double>(sample.size()) / static_cast<double>(size);
    Line line{line_.anchor, line_.at_anchor * share, line_.slope * share};
    double most = 1, mean = std::min(budget_ / static_cast<double>(size), 0.5);
    if (bounds_.high < kInfinity) {
      // The sum at the lower bound is known: the sample only says how much of it goes from there.
      line.at_anchor += open_at_low_ * share;
      for (const double z : sample) {
        line.at_anchor -= clip(z - bounds_.low);
      }
      most = std::min(bounds_.high - bounds_.low, 1.0);
      mean = most / 2;
    }
    // of numbers between 0 and `most` with this mean, the variance is at most mean (most - mean)
    const double sigma = std::sqrt(mean * (most - mean) * static_cast<double>(sample.size()));
    const double spread = 3.5 * sigma + most;
    return {
        Root(bounds_, line, budget_ * share + spread).find(sample),
        Root(bounds_, line, budget_ * share - spread).find(sample)
    };
  }

  // Of the order n^(2/3), the work on the sample equals that on what is left between the bounds.
  std::vector<double> drawn_sample(int64_t size) const {
    const int64_t count = static_cast<int64_t>(std::cbrt(size) * std::cbrt(size));
    std::vector<double> sample;
    sample.reserve(count);
    uint64_t random = 0;
    auto chunk = chunks_.begin();
    int64_t before = 0;  // scores before the chunk
    for (int64_t i = 0; i < count; ++i) {
      // one of each stretch, not always the same: rows and columns have a rhythm too
      random = random * 6364136223846793005u + 1442695040888963407u;
      const double shift = static_cast<double>(random >> 32) / 4294967296.0;
      const double place = (static_cast<double>(i) + shift) / static_cast<double>(count);
      const int64_t at =
          std::min(static_cast<int64_t>(place * static_cast<double>(size)), size - 1);
      for (; at >= before + chunk->size; ++chunk) {
        before += chunk->size;
      }
      const double z = chunk->scores[at - before];
      if (std::isfinite(z)) {
        sample.push_back(z);
      }
    }
    return sample;
  }

  std::vector<Chunk<scalar_t>> chunks_;
  std::vector<scalar_t> open_;  // what the chunks are of, after the first time
  double open_at_low_ = 0;      // their sum at the lower bound
  double budget_;
  Bounds bounds_{0, kInfinity};
  Line line_{0, 0, 0};  // of all scores that are no longer looked at
};

template <typename scalar_t>
double project(const std::vector<Tensor>& scores, double budget) {
  std::vector<Chunk<scalar_t>> chunks;
  for (const Tensor& tensor : scores) {
    append_chunks(static_cast<scalar_t*>(tensor.data_ptr()), tensor.numel(), chunks);
  }
  const double threshold = Threshold<scalar_t>(chunks, budget).find();
  const auto kernels = FULLSPECTRUM_ACTIVE(projection_kernels<scalar_t>());
  for_each_in_parts<scalar_t>(chunks.size(), [&](int64_t i, scalar_t*) {
    kernels.project(chunks[i].scores, chunks[i].size, threshold);
  });
  return threshold;
}

Tensor project_scores_cpu(std::vector<Tensor> scores, double budget) {
  check_project_scores(scores, budget);
  const double threshold = scores[0].scalar_type() == ScalarType::Double
                               ? project<double>(scores, budget)
                               : project<float>(scores, budget);
  Tensor result = torch::stable::new_empty(scores[0], {}, ScalarType::Double);
  *result.mutable_data_ptr<double>() = threshold;
  return result;
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("project_scores_", TORCH_BOX(&project_scores_cpu)); }

}  // namespace fullspectrum
