#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "common/ceil_div.h"
#include "common/cpu_features.h"
#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "selection/order.h"
#include "selection/search_kernels.h"
#include "selection/topk_scores.h"

namespace fullspectrum {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Read at a time.
constexpr int64_t kChunk = int64_t{1} << 15;
// Below this all scores are compared with each other, without a sample.
constexpr int64_t kSmall = 2048;

template <typename scalar_t>
typename Rank<scalar_t>::type order_of_number(scalar_t number) {
  typename Rank<scalar_t>::type bits;
  std::memcpy(&bits, &number, sizeof bits);
  return order_of<scalar_t>(bits);
}

template <typename scalar_t>
scalar_t number_of_order(typename Rank<scalar_t>::type order) {
  const auto bits = bits_of_order<scalar_t>(order);
  scalar_t number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// A part of a tensor, and what was found in it.
template <typename scalar_t>
struct Chunk {
  int64_t tensor;          // its number in the group
  int64_t begin;           // flat position in the tensor
  const scalar_t* scores;  // [size]
  int64_t size;
  int64_t above = 0;                                       // scores above the upper bound
  std::vector<typename Rank<scalar_t>::type> orders = {};  // of those from bound to bound
  int64_t kept = 0;
  int64_t ties = 0;  // kept ones among those that equal the threshold
};

// Calls body(part, index) for every index below `count`, cut into as many parts as there are
// threads.
template <typename Body>
void for_each_in_parts(int64_t count, const Body& body) {
  const int64_t parts = thread_count();
  parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
        body(part, i);
      }
    }
  });
}

// Finds the threshold of the `count` largest scores of a group, after Floyd and Rivest (Expected
// Time Bounds for Selection, Communications of the ACM 18, 1975): a sample gives two bounds that
// are likely to have the threshold between them, one reading of the scores collects those that do
// lie there, and only these are compared with each other.
template <typename scalar_t>
class TopScores {
 public:
  using order_t = typename Rank<scalar_t>::type;

  TopScores() : buffer_(new scalar_t[thread_count() * kChunk]) {}

  // Returns the group in chunks that say how many scores of each are kept: those above the
  // threshold, and of those that equal it the first `ties`.
  std::vector<Chunk<scalar_t>> select(const ScoreGroup& group) {
    cut(group);
    const auto [low, high] = sampled_bounds(group);
    collect(low, high);
    if (!settle(low, high, group.count)) {  // the sample was not like the whole
      collect(0, kHighest);
      settle(0, kHighest, group.count);
    }
    return std::move(chunks_);
  }

  order_t threshold() const { return threshold_; }

 private:
  static constexpr order_t kHighest = ~order_t{0};  // no number has it
  static constexpr order_t kBuckets = 1024;

  void cut(const ScoreGroup& group) {
    chunks_.clear();
    for (size_t i = 0; i < group.scores.size(); ++i) {
      const int64_t size = group.scores[i].numel();
      const scalar_t* scores = group.scores[i].template const_data_ptr<scalar_t>();
      for (int64_t begin = 0; begin < size; begin += kChunk) {
        chunks_.push_back(
            {static_cast<int64_t>(i), begin, scores + begin, std::min(kChunk, size - begin)}
        );
      }
    }
  }

  // Counts the scores above the order `high` and keeps those from `low` to it.
  void collect(order_t low, order_t high) {
    const scalar_t least = number_of_order<scalar_t>(low), most = number_of_order<scalar_t>(high);
    for_each_in_parts(chunks_.size(), [&](int64_t part, int64_t c) {
      Chunk<scalar_t>& chunk = chunks_[c];
      scalar_t* found = buffer_.get() + part * kChunk;
      const int64_t number =
          kernels_.collect(chunk.scores, chunk.size, least, most, found, &chunk.above);
      chunk.orders.resize(number);
      std::transform(found, found + number, chunk.orders.begin(), order_of_number<scalar_t>);
      const auto is_nan = [&](order_t order) { return order < low; };  // found as well
      chunk.orders.erase(
          std::remove_if(chunk.orders.begin(), chunk.orders.end(), is_nan), chunk.orders.end()
      );
    });
  }

  // Finds the threshold if it is one of those collected, or right above them.
  bool settle(order_t low, order_t high, int64_t count) {
    int64_t wanted = count, collected = 0;
    for (const Chunk<scalar_t>& chunk : chunks_) {
      wanted -= chunk.above;
      collected += static_cast<int64_t>(chunk.orders.size());
    }
    if (wanted < 0 || wanted > collected) {
      return false;
    }
    threshold_ = wanted == 0 ? high : nth_collected(low, high, wanted);
    int64_t left = count;
    for (Chunk<scalar_t>& chunk : chunks_) {
      chunk.kept = chunk.above;
      chunk.ties = 0;
      for (const order_t order : chunk.orders) {
        chunk.kept += order > threshold_;
        chunk.ties += order == threshold_;
      }
      left -= chunk.kept;
    }
    for (Chunk<scalar_t>& chunk : chunks_) {
      chunk.ties = std::min(chunk.ties, left);
      chunk.kept += chunk.ties;
      left -= chunk.ties;
    }
    return true;
  }

  // The n-th largest of those collected: first its bucket among equally wide ones, then itself.
  order_t nth_collected(order_t low, order_t high, int64_t n) const {
    int shift = 0;
    while ((high - low) >> shift >= kBuckets) {
      ++shift;
    }
    std::vector<int64_t> number(kBuckets, 0);
    for (const Chunk<scalar_t>& chunk : chunks_) {
      for (const order_t order : chunk.orders) {
        ++number[(order - low) >> shift];
      }
    }
    order_t bucket = kBuckets - 1;
    for (; number[bucket] < n; --bucket) {
      n -= number[bucket];
    }
    std::vector<order_t> orders;
    for (const Chunk<scalar_t>& chunk : chunks_) {
      for (const order_t order : chunk.orders) {
        if ((order - low) >> shift == bucket) {
          orders.push_back(order);
        }
      }
    }
    return nth_largest(orders, n - 1);
  }

  // Two orders that the count-th largest is likely to lie between.
  std::pair<order_t, order_t> sampled_bounds(const ScoreGroup& group) const {
    if (group.size < kSmall) {
      return {0, kHighest};
    }
    // Of the order n^(2/3) the work on the sample equals that on what is left between the bounds.
    const int64_t size = static_cast<int64_t>(std::cbrt(group.size) * std::cbrt(group.size) / 2);
    std::vector<order_t> sample;
    sample.reserve(size);
    uint64_t random = 0;
    auto chunk = chunks_.begin();
    int64_t before = 0;  // scores before the chunk
    for (int64_t i = 0; i < size; ++i) {
      // one of each stretch, not always the same: rows and columns have a rhythm too
      random = random * 6364136223846793005u + 1442695040888963407u;
      const double shift = static_cast<double>(random >> 32) / 4294967296.0;
      const int64_t at =
          std::min(static_cast<int64_t>((i + shift) / size * group.size), group.size - 1);
      for (; at >= before + chunk->size; ++chunk) {
        before += chunk->size;
      }
      sample.push_back(order_of_number(chunk->scores[at - before]));
    }
    const double share = static_cast<double>(group.count) / group.size;
    const double spread = 3.5 * std::sqrt(share * (1 - share) * size) + 1;  // in sigmas
    const int64_t low = static_cast<int64_t>(share * size + spread);
    const int64_t high = static_cast<int64_t>(share * size - spread);
    order_t bounds[2] = {0, kHighest};
    if (low < size) {
      bounds[0] = nth_largest(sample, low);
      sample.resize(low + 1);  // those not below it
    }
    if (high >= 0) {
      // at least minus infinity: nothing is above a NaN
      const order_t lowest = order_of_number(-std::numeric_limits<scalar_t>::infinity());
      bounds[1] = std::max(nth_largest(sample, high), lowest);
    }
    return {bounds[0], bounds[1]};
  }

  // Brings it to its place and larger ones before it.
  static order_t nth_largest(std::vector<order_t>& orders, int64_t n) {
    std::nth_element(orders.begin(), orders.begin() + n, orders.end(), std::greater<order_t>());
    return orders[n];
  }

  const ScoreKernels<scalar_t> kernels_ = FULLSPECTRUM_ACTIVE(score_kernels<scalar_t>());
  std::unique_ptr<scalar_t[]> buffer_;  // [threads, kChunk]
  std::vector<Chunk<scalar_t>> chunks_;
  order_t threshold_ = 0;
};

// Whether each of a chunk's scores is kept; asked in order.
template <typename scalar_t>
class IsKept {
 public:
  IsKept(const Chunk<scalar_t>& chunk, typename Rank<scalar_t>::type threshold)
      : ties_(chunk.ties), threshold_(threshold) {}

  bool operator()(scalar_t score) {
    const auto order = order_of_number(score);
    const bool tie = order == threshold_ && ties_ > 0;
    ties_ -= tie;
    return tie || order > threshold_;
  }

 private:
  int64_t ties_;
  typename Rank<scalar_t>::type threshold_;
};

// Tells of each of a chunk's scores whether it is kept.
template <typename scalar_t>
void mark_kept(const Chunk<scalar_t>& chunk, typename Rank<scalar_t>::type threshold, bool* mask) {
  const ScoreKernels<scalar_t> kernels = FULLSPECTRUM_ACTIVE(score_kernels<scalar_t>());
  const scalar_t least = number_of_order<scalar_t>(threshold);
  if (kernels.mark(chunk.scores, chunk.size, least, mask) > chunk.kept) {
    // some that equal the threshold must go, and NaNs
    IsKept<scalar_t> is_kept(chunk, threshold);
    std::transform(chunk.scores, chunk.scores + chunk.size, mask, is_kept);
  }
}

template <typename scalar_t>
void write_masks(const std::vector<ScoreGroup>& groups, const std::vector<bool*>& masks) {
  TopScores<scalar_t> top;
  size_t first = 0;  // tensor of the group
  for (const ScoreGroup& group : groups) {
    const std::vector<Chunk<scalar_t>> chunks = top.select(group);
    for_each_in_parts(chunks.size(), [&](int64_t, int64_t c) {
      const Chunk<scalar_t>& chunk = chunks[c];
      mark_kept(chunk, top.threshold(), masks[first + chunk.tensor] + chunk.begin);
    });
    first += group.scores.size();
  }
}

std::vector<Tensor> topk_masks_cpu(std::vector<Tensor> scores, std::vector<int64_t> counts) {
  const std::vector<ScoreGroup> groups = check_topk_masks(scores, counts);
  std::vector<Tensor> masks;
  std::vector<bool*> mask_data;
  for (const Tensor& tensor : scores) {
    masks.push_back(torch::stable::new_empty(tensor, tensor.sizes(), ScalarType::Bool));
    mask_data.push_back(masks.back().mutable_data_ptr<bool>());
  }
  const bool is_double = scores[0].scalar_type() == ScalarType::Double;
  is_double ? write_masks<double>(groups, mask_data) : write_masks<float>(groups, mask_data);
  return masks;
}

// Writes where the scores of a single tensor are that are not kept.
template <typename scalar_t>
void write_others(
    const ScoreGroup& group,
    int64_t* positions  // [size - count]
) {
  TopScores<scalar_t> top;
  const std::vector<Chunk<scalar_t>> chunks = top.select(group);
  std::vector<int64_t> before{0};
  for (const Chunk<scalar_t>& chunk : chunks) {
    before.push_back(before.back() + chunk.size - chunk.kept);
  }
  const std::unique_ptr<bool[]> masks(new bool[thread_count() * kChunk]);
  const std::unique_ptr<int64_t[]> places(new int64_t[thread_count() * kChunk]);
  for_each_in_parts(chunks.size(), [&](int64_t part, int64_t c) {
    bool* mask = masks.get() + part * kChunk;
    int64_t* place = places.get() + part * kChunk;
    mark_kept(chunks[c], top.threshold(), mask);
    int64_t number = 0;
    for (int64_t i = 0; i < chunks[c].size; ++i) {  // without a branch
      place[number] = chunks[c].begin + i;
      number += !mask[i];
    }
    std::copy_n(place, number, positions + before[c]);
  });
}

Tensor bottomk_positions_cpu(Tensor scores, int64_t count) {
  const ScoreGroup group = check_bottomk_positions(scores, count);
  Tensor positions = torch::stable::new_empty(scores, {count}, ScalarType::Long);
  int64_t* data = positions.mutable_data_ptr<int64_t>();
  const bool is_double = scores.scalar_type() == ScalarType::Double;
  is_double ? write_others<double>(group, data) : write_others<float>(group, data);
  return positions;
}

// Writes a chunk's kept scores, of which `out` come before, and the starts of the rows in it.
template <typename index_t>
void write_chunk(
    const uint32_t* kept,  // [number], places from the chunk's beginning
    int64_t number,
    int64_t begin,  // of the chunk
    int64_t end,
    int64_t cols,
    int64_t out,
    index_t* crow,  // [rows + 1]
    index_t* col    // [count]
) {
  const uint32_t* kept_end = kept + number;
  for (int64_t row = begin / cols; row * cols < end; ++row) {
    const int64_t start = row * cols - begin;  // before the chunk's beginning in the first row
    if (start >= 0) {
      crow[row] = static_cast<index_t>(out);
    }
    for (; kept < kept_end && *kept < start + cols; ++kept) {
      col[out++] = static_cast<index_t>(*kept - start);
    }
  }
}

template <typename scalar_t, typename index_t>
void write_topology(
    const TopScores<scalar_t>& top,
    const std::vector<Chunk<scalar_t>>& chunks,
    int64_t rows,
    int64_t cols,
    uint32_t* buffer,  // [threads, kChunk]
    index_t* crow,     // [rows + 1]
    index_t* col       // [count]
) {
  const ScoreKernels<scalar_t> kernels = FULLSPECTRUM_ACTIVE(score_kernels<scalar_t>());
  const scalar_t least = number_of_order<scalar_t>(top.threshold());
  std::vector<int64_t> before{0};
  for (const Chunk<scalar_t>& chunk : chunks) {
    before.push_back(before.back() + chunk.kept);
  }
  if (chunks.empty()) {
    std::fill(crow, crow + rows, index_t{0});
  }
  crow[rows] = static_cast<index_t>(before.back());
  for_each_in_parts(chunks.size(), [&](int64_t part, int64_t c) {
    const Chunk<scalar_t>& chunk = chunks[c];
    uint32_t* place = buffer + part * kChunk;
    int64_t number = kernels.search(chunk.scores, chunk.size, least, place);
    if (number > chunk.kept) {  // some that equal the threshold must go, and NaNs
      IsKept<scalar_t> is_kept(chunk, top.threshold());
      const auto goes = [&](uint32_t at) { return !is_kept(chunk.scores[at]); };
      number = std::remove_if(place, place + number, std::ref(goes)) - place;
    }
    write_chunk(place, number, chunk.begin, chunk.begin + chunk.size, cols, before[c], crow, col);
  });
}

template <typename scalar_t>
void write_topologies(
    const std::vector<ScoreGroup>& groups, std::vector<Topology>& topologies, const char* op
) {
  TopScores<scalar_t> top;
  const std::unique_ptr<uint32_t[]> buffer(new uint32_t[thread_count() * kChunk]);
  for (size_t i = 0; i < groups.size(); ++i) {
    const Tensor& scores = groups[i].scores[0];
    const std::vector<Chunk<scalar_t>> chunks = top.select(groups[i]);
    Topology& topology = topologies[i];
    dispatch_index(topology.col_indices.scalar_type(), op, [&](auto index_tag) {
      using index_t = typename decltype(index_tag)::type;
      write_topology(
          top,
          chunks,
          scores.size(0),
          scores.size(1),
          buffer.get(),
          topology.crow_indices.template mutable_data_ptr<index_t>(),
          topology.col_indices.template mutable_data_ptr<index_t>()
      );
    });
  }
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> topk_topologies_cpu(
    std::vector<Tensor> scores, std::vector<int64_t> counts
) {
  constexpr const char* kOp = "topk_topologies";
  const std::vector<ScoreGroup> groups = check_topk_topologies(scores, counts);
  std::vector<Topology> topologies;
  for (size_t i = 0; i < scores.size(); ++i) {
    topologies.push_back(new_topology(scores[i], counts[i]));
  }
  const bool is_double = scores[0].scalar_type() == ScalarType::Double;
  is_double ? write_topologies<double>(groups, topologies, kOp)
            : write_topologies<float>(groups, topologies, kOp);
  std::vector<Tensor> crow_indices, col_indices;
  for (const Topology& topology : topologies) {
    crow_indices.push_back(topology.crow_indices);
    col_indices.push_back(topology.col_indices);
  }
  return {crow_indices, col_indices};
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) {
  m.impl("bottomk_positions", TORCH_BOX(&bottomk_positions_cpu));
  m.impl("topk_masks", TORCH_BOX(&topk_masks_cpu));
  m.impl("topk_topologies", TORCH_BOX(&topk_topologies_cpu));
}

}  // namespace fullspectrum
