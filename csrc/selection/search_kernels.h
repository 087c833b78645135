#pragma once

#include <cstdint>

namespace fullspectrum {

// Writes the places, counted from `base`, of the entries whose magnitude (all bits but the highest)
// is at least `least`, but for those with all bits set; in order. `found` has room for all entries.
// Returns how many there are. bits_t is uint32_t or uint64_t.
template <typename bits_t>
using SearchKernel = int64_t (*)(
    const bits_t* bits,  // [size]
    int64_t size,
    bits_t least,
    int64_t base,
    int64_t* found  // [size]
);

#define FULLSPECTRUM_DECLARE_SEARCH(isa) \
  namespace isa {                        \
  template <typename bits_t>             \
  SearchKernel<bits_t> search_kernel();  \
  }
FULLSPECTRUM_DECLARE_SEARCH(baseline)
FULLSPECTRUM_DECLARE_SEARCH(avx2)
FULLSPECTRUM_DECLARE_SEARCH(avx512)
#undef FULLSPECTRUM_DECLARE_SEARCH

}  // namespace fullspectrum
