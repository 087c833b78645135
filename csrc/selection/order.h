#pragma once

#include <cstdint>

#include "selection/rank.h"

namespace fullspectrum {

// Floating-point numbers as integers of the same order, read from the bits: exact, and the same on
// every device. Both zeros are one; every NaN is 0, below minus infinity.
template <typename scalar_t>
constexpr typename Rank<scalar_t>::type order_of(typename Rank<scalar_t>::type bits) {
  using rank_t = typename Rank<scalar_t>::type;
  constexpr rank_t kSign = Rank<scalar_t>::kSign;
  const rank_t magnitude = bits & ~kSign;
  const rank_t order = bits == kSign ? kSign : (bits & kSign) != 0 ? ~bits : bits | kSign;
  return magnitude > Rank<scalar_t>::kInfinity ? 0 : order;
}

// The bits of the number with this order; of 0, a NaN.
template <typename scalar_t>
constexpr typename Rank<scalar_t>::type bits_of_order(typename Rank<scalar_t>::type order) {
  constexpr auto kSign = Rank<scalar_t>::kSign;
  return (order & kSign) != 0 ? order ^ kSign : ~order;
}

}  // namespace fullspectrum
