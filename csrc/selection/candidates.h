#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "selection/rank.h"

namespace fullspectrum {

// The k entries of largest rank among those offered so far, and some more: what an entry must
// exceed rises only each time there are 2 k. Entries come and stay in row-major order, so
// that of equal entries the first are kept without comparing positions.
template <typename scalar_t>
class Candidates {
 public:
  using rank_t = typename Rank<scalar_t>::type;

  // At most `most` entries are added between two calls of settle(). Those of rank `threshold` and
  // below are left out; if more than that is asked too much, fewer than k are left in the end.
  Candidates(int64_t k, int64_t most, rank_t threshold = 0)
      : k_(k),
        threshold_(threshold),
        bits_(new rank_t[2 * k + most]),
        position_(new int64_t[2 * k + most]) {}

  // Only entries above it need to be added.
  rank_t threshold() const { return threshold_; }

  int64_t size() const { return size_; }

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
    if (size_ <= k_) {
      return;
    }
    int64_t ties = k_;
    threshold_ = last_kept(ties);
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const rank_t rank = rank_of<scalar_t>(bits_[i]);
      const bool tie = (rank == threshold_) & (ties > 0);  // no branch: half the entries go
      ties -= tie;
      bits_[kept] = bits_[i];
      position_[kept] = position_[i];
      kept += (rank > threshold_) | tie;
    }
    size_ = kept;
  }

  void write(int64_t* position, rank_t* bits) const {
    std::copy_n(position_.get(), size_, position);
    std::copy_n(bits_.get(), size_, bits);
  }

 private:
  static constexpr int64_t kBins = 4096;

  // The rank of the wanted-th largest entry; leaves in `wanted` how many entries of this very rank
  // belong to the k best. Ranks spread over many bins, and only one bin is looked at again.
  rank_t last_kept(int64_t& wanted) const {
    rank_t least = ~rank_t{0}, most = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const rank_t rank = rank_of<scalar_t>(bits_[i]);
      least = std::min(least, rank);
      most = std::max(most, rank);
    }
    int shift = 0;
    while (static_cast<rank_t>(most - least) >> shift >= kBins) {
      ++shift;
    }
    const auto bin_of = [&](int64_t i) {
      return static_cast<int64_t>((rank_of<scalar_t>(bits_[i]) - least) >> shift);
    };
    std::vector<int64_t> count(kBins);
    for (int64_t i = 0; i < size_; ++i) {
      ++count[bin_of(i)];
    }
    int64_t bin = kBins - 1;
    for (; count[bin] < wanted; --bin) {
      wanted -= count[bin];
    }
    std::vector<rank_t> ranks;
    ranks.reserve(count[bin]);
    for (int64_t i = 0; i < size_; ++i) {
      if (bin_of(i) == bin) {
        ranks.push_back(rank_of<scalar_t>(bits_[i]));
      }
    }
    const auto last = ranks.begin() + (wanted - 1);
    std::nth_element(ranks.begin(), last, ranks.end(), std::greater<>());
    wanted -= std::count_if(ranks.begin(), last, [&](rank_t rank) { return rank > *last; });
    return *last;
  }

  int64_t k_;
  int64_t size_ = 0;
  rank_t threshold_;
  std::unique_ptr<rank_t[]> bits_;  // pages that are never reached cost nothing
  std::unique_ptr<int64_t[]> position_;
};

}  // namespace fullspectrum
