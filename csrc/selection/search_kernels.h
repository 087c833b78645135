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

// On scores; scalar_t is float or double. A NaN is never below or above anything, and nothing is
// below or above a NaN.
template <typename scalar_t>
struct ScoreKernels {
  // Writes the scores that are neither below `least` nor above `most`, in order, and the number of
  // those above. Returns how many are written.
  int64_t (*collect)(
      const scalar_t* scores,  // [size]
      int64_t size,
      scalar_t least,
      scalar_t most,
      scalar_t* found,  // [size]
      int64_t* above
  );
  // Writes the places of the scores that are not below `least`, in order. Returns how many.
  int64_t (*search)(
      const scalar_t* scores,  // [size]
      int64_t size,            // less than 2^32
      scalar_t least,
      uint32_t* place  // [size]
  );
  // Tells of each score whether it is not below `least`. Returns how many are not.
  int64_t (*mark)(
      const scalar_t* scores,  // [size]
      int64_t size,
      scalar_t least,
      bool* mask  // [size]
  );
};

#define FULLSPECTRUM_DECLARE_SEARCH(isa)  \
  namespace isa {                         \
  template <typename bits_t>              \
  SearchKernel<bits_t> search_kernel();   \
  template <typename scalar_t>            \
  ScoreKernels<scalar_t> score_kernels(); \
  }
FULLSPECTRUM_DECLARE_SEARCH(baseline)
FULLSPECTRUM_DECLARE_SEARCH(avx2)
FULLSPECTRUM_DECLARE_SEARCH(avx512)
#undef FULLSPECTRUM_DECLARE_SEARCH

}  // namespace fullspectrum
