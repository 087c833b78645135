#pragma once

#include <cstdint>

namespace fullspectrum {

// From a mask's bytes to bits, and from bits to the numbers of the ones; compiled once for each
// instruction set. A row's bits are padded with zeros to whole words of 64.
struct MaskKernels {
  // The lowest bit of each byte, and how many are set. Each word is joined to that of `seen`, too.
  int64_t (*pack)(
      const uint8_t* cells,  // [count]
      int64_t count,
      uint64_t* bits,  // [ceil(count / 64)]
      uint64_t* seen   // the same
  );
  // The numbers of the ones, rising, from `to` on. What lies between the last one and `end` may be
  // overwritten. Returns where the last one's successor goes.
  int32_t* (*list_ones)(const uint64_t* bits, int64_t words, int32_t* to, int32_t* end);
  int64_t* (*list_ones_long)(const uint64_t* bits, int64_t words, int64_t* to, int64_t* end);
};

namespace baseline {
MaskKernels mask_kernels();
}
namespace avx2 {
MaskKernels mask_kernels();
}
namespace avx512 {
MaskKernels mask_kernels();
}

}  // namespace fullspectrum
