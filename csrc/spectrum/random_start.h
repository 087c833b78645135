#pragma once

#include <cstdint>

#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

// A number in [-1/2, 1/2) that depends on `index` alone (splitmix64, Steele et al. 2014).
FULLSPECTRUM_DEVICE inline double random_start(int64_t index) {
  uint64_t bits = static_cast<uint64_t>(index + 1) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  bits ^= bits >> 31;
  return static_cast<double>(bits >> 11) * 0x1p-53 - 0.5;
}

}  // namespace fullspectrum::spectrum
