#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "selection/rank.h"

namespace fullspectrum {

template <typename scalar_t>
class Candidates;

// Where the best of some entries end: all above this rank, and so many of this rank.
template <typename scalar_t>
struct Cut {
  typename Rank<scalar_t>::type rank;
  int64_t ties;
};

template <typename scalar_t>
Cut<scalar_t> find_cut(const std::vector<const Candidates<scalar_t>*>& parts, int64_t k);

// The k entries of largest rank among those offered so far, and some more: what an entry must
// exceed rises only each time there are 2 k. Entries come and stay in row-major order, so
// that of equal entries the first are kept without comparing positions.
template <typename scalar_t>
class Candidates {
 public:
  using rank_t = typename Rank<scalar_t>::type;

  // At most `most` entries are added between two calls of settle(). Only those of rank above
  // `threshold` need to be.
  Candidates(int64_t k, int64_t most, rank_t threshold = 0)
      : k_(k),
        threshold_(threshold),
        bits_(new rank_t[2 * k + most]),
        position_(new int64_t[2 * k + most]) {}

  // Only entries above it need to be added.
  rank_t threshold() const { return threshold_; }

  int64_t size() const { return size_; }
  rank_t rank(int64_t i) const { return rank_of<scalar_t>(bits_[i]); }

  void add(rank_t bits, int64_t position) {
    bits_[size_] = bits;
    position_[size_] = position;
    ++size_;
  }

  void add(const rank_t* bits, const int64_t* position, int64_t count) {
    std::copy_n(bits, count, bits_.get() + size_);
    std::copy_n(position, count, position_.get() + size_);
    size_ += count;
  }

  // Keeps the number of candidates below 2 k.
  void settle() {
    if (size_ >= 2 * k_) {
      reduce();
    }
  }

  // Leaves the k best, and raises the threshold to the last of them.
  void reduce() {
    if (size_ > k_) {
      const Cut<scalar_t> cut = find_cut<scalar_t>({this}, k_);
      threshold_ = cut.rank;
      keep(cut);
    }
  }

  // Leaves those above the cut, and of those at it the first.
  void keep(Cut<scalar_t> cut) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const bool tie = (rank(i) == cut.rank) & (cut.ties > 0);  // no branch: half the entries go
      const bool stays = (rank(i) > cut.rank) | tie;
      cut.ties -= tie;
      bits_[kept] = bits_[i];
      position_[kept] = position_[i];
      kept += stays;
    }
    size_ = kept;
  }

  void write(int64_t* position, rank_t* bits) const {
    std::copy_n(position_.get(), size_, position);
    std::copy_n(bits_.get(), size_, bits);
  }

 private:
  int64_t k_;
  int64_t size_ = 0;
  rank_t threshold_;
  std::unique_ptr<rank_t[]> bits_;  // pages that are never reached cost nothing
  std::unique_ptr<int64_t[]> position_;
};

// The cut for the k best of all parts together, which hold more. Ranks spread over many bins, and
// only one bin is looked at again.
template <typename scalar_t>
Cut<scalar_t> find_cut(const std::vector<const Candidates<scalar_t>*>& parts, int64_t k) {
  using rank_t = typename Rank<scalar_t>::type;
  constexpr int64_t kBins = 4096;
  struct Summary {
    rank_t least = ~rank_t{0}, most = 0;
    std::vector<int64_t> count;
  };
  std::vector<Summary> summary(parts.size());
  const auto for_parts = [&](const auto& body) {
    parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        body(*parts[part], summary[part]);
      }
    });
  };
  for_parts([](const Candidates<scalar_t>& part, Summary& own) {
    for (int64_t i = 0; i < part.size(); ++i) {
      own.least = std::min(own.least, part.rank(i));
      own.most = std::max(own.most, part.rank(i));
    }
  });
  rank_t least = ~rank_t{0}, most = 0;
  for (const Summary& own : summary) {
    least = std::min(least, own.least);
    most = std::max(most, own.most);
  }
  int shift = 0;
  while (static_cast<rank_t>(most - least) >> shift >= kBins) {
    ++shift;
  }
  for_parts([&](const Candidates<scalar_t>& part, Summary& own) {
    own.count.assign(kBins, 0);
    for (int64_t i = 0; i < part.size(); ++i) {
      ++own.count[(part.rank(i) - least) >> shift];
    }
  });
  Cut<scalar_t> cut{0, k};
  rank_t bin = kBins;
  for (int64_t within = 0; within < cut.ties;) {
    cut.ties -= within;
    --bin;
    within = 0;
    for (const Summary& own : summary) {
      within += own.count[bin];
    }
  }
  std::vector<rank_t> ranks;
  for (const Candidates<scalar_t>* part : parts) {
    for (int64_t i = 0; i < part->size(); ++i) {
      if ((part->rank(i) - least) >> shift == bin) {
        ranks.push_back(part->rank(i));
      }
    }
  }
  const auto last = ranks.begin() + (cut.ties - 1);
  std::nth_element(ranks.begin(), last, ranks.end(), std::greater<>());
  cut.rank = *last;
  cut.ties -= std::count_if(ranks.begin(), last, [&](rank_t rank) { return rank > cut.rank; });
  return cut;
}

// Writes the k best of all parts together, which hold as many or more, part after part.
template <typename scalar_t>
void write_best(
    std::vector<Candidates<scalar_t>>& parts,
    int64_t k,
    int64_t* position,                   // [k]
    typename Rank<scalar_t>::type* bits  // [k]
) {
  int64_t size = 0;
  std::vector<const Candidates<scalar_t>*> all;
  for (const auto& part : parts) {
    size += part.size();
    all.push_back(&part);
  }
  const auto number = static_cast<int64_t>(parts.size());
  std::vector<Cut<scalar_t>> cuts(parts.size(), Cut<scalar_t>{0, 0});
  if (size > k) {
    Cut<scalar_t> cut = find_cut<scalar_t>(all, k);
    for (int64_t part = 0; part < number; ++part) {
      cuts[part] = cut;
      int64_t ties = 0;
      for (int64_t i = 0; i < parts[part].size(); ++i) {
        ties += parts[part].rank(i) == cut.rank;
      }
      cut.ties -= std::min(ties, cut.ties);
    }
  }
  parallel_for(0, number, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      parts[part].keep(cuts[part]);
    }
  });
  std::vector<int64_t> start(parts.size() + 1);
  for (int64_t part = 0; part < number; ++part) {
    start[part + 1] = start[part] + parts[part].size();
  }
  parallel_for(0, number, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      parts[part].write(position + start[part], bits + start[part]);
    }
  });
}

}  // namespace fullspectrum
