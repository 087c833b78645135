#pragma once

#include <cstdint>

namespace fullspectrum {

// word[i] = word[i] where flag[i] is 1, 0 where it is 0.
template <typename word_t>
using KeepKernel = void (*)(word_t* word, const uint8_t* flag, int64_t count);

namespace baseline {
template <typename word_t>
KeepKernel<word_t> keep_kernel();
}
namespace avx2 {
template <typename word_t>
KeepKernel<word_t> keep_kernel();
}
namespace avx512 {
template <typename word_t>
KeepKernel<word_t> keep_kernel();
}

}  // namespace fullspectrum
