#pragma once

#include <cstdint>

namespace fullspectrum {

// What some scores z say of f(v) = sum clip(z - v, 0, 1) between two bounds.
struct BracketSums {
  double at_low;
  double at_high;
  int64_t linear;  // scores that are z - v from bound to bound
  int64_t open;    // scores with a kink (z or z - 1) strictly between the bounds
};

// scalar_t is float or double; all arithmetic is in double, in the same order for every
// instruction set.
template <typename scalar_t>
struct ProjectionKernels {
  // Also writes the open ones, in order.
  BracketSums (*bracket)(
      const scalar_t* scores,  // [size]
      int64_t size,
      double low,  // at least 0
      double high,
      scalar_t* open  // [size + 8], of which the last ones may be written over
  );
  // z = clip(z - threshold, 0, 1)
  void (*project)(
      scalar_t* scores,  // [size]
      int64_t size,
      double threshold
  );
};

#define FULLSPECTRUM_DECLARE_PROJECTION(isa)        \
  namespace isa {                                   \
  template <typename scalar_t>                      \
  ProjectionKernels<scalar_t> projection_kernels(); \
  }
FULLSPECTRUM_DECLARE_PROJECTION(baseline)
FULLSPECTRUM_DECLARE_PROJECTION(avx2)
FULLSPECTRUM_DECLARE_PROJECTION(avx512)
#undef FULLSPECTRUM_DECLARE_PROJECTION

}  // namespace fullspectrum
