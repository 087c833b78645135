#pragma once

#include <cstdint>

namespace fullspectrum {

// Magnitudes of floating-point numbers as integers of the same order, read from the bits: exact,
// and the same on every device. Infinity ranks above all numbers and NaN above infinity, whatever
// its sign and payload; so does torch.topk.
template <typename scalar_t>
struct Rank;

template <>
struct Rank<float> {
  using type = uint32_t;
  static constexpr type kSign = 0x80000000u;
  static constexpr type kInfinity = 0x7f800000u;
};

template <>
struct Rank<double> {
  using type = uint64_t;
  static constexpr type kSign = 0x8000000000000000u;
  static constexpr type kInfinity = 0x7ff0000000000000u;
};

// Written over an entry that must not be selected: a NaN that no arithmetic gives. It ranks lowest.
template <typename scalar_t>
constexpr typename Rank<scalar_t>::type kTaken = ~typename Rank<scalar_t>::type{0};

// 0 for a taken entry, 1 for zero, and more for more.
template <typename scalar_t>
constexpr typename Rank<scalar_t>::type rank_of(typename Rank<scalar_t>::type bits) {
  using rank_t = typename Rank<scalar_t>::type;
  constexpr rank_t kNan = Rank<scalar_t>::kInfinity + 1;
  const rank_t magnitude = bits & ~Rank<scalar_t>::kSign;
  const rank_t capped = magnitude < kNan ? magnitude : kNan;
  return bits == kTaken<scalar_t> ? 0 : capped + 1;
}

}  // namespace fullspectrum
