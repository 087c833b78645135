#pragma once

#include <cstdint>

namespace fullspectrum {

// The memory of float16 and bfloat16 numbers, for the sources that are compiled once for each
// instruction set: torch's own types bring inline functions along.
struct Float16Bits {
  uint16_t bits;
};
struct BFloat16Bits {
  uint16_t bits;
};

// The type in which numbers of a storage type are computed.
template <typename storage_t>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <typename storage_t>
using compute_t = typename Compute<storage_t>::type;

}  // namespace fullspectrum
