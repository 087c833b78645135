#include <algorithm>

#include "spectrum/upload_cuda.h"

namespace fullspectrum::spectrum {
namespace {

constexpr int kThreads = 256;
// A kernel's arguments take at most 4096 bytes.
constexpr int64_t kWordsAtOnce = 496;

struct Words {
  int64_t word[kWordsAtOnce];
};

// Writes its argument to memory. Launch: one block of 256. Bound by the launch itself.
__global__ void __launch_bounds__(kThreads)
    upload_kernel(const __grid_constant__ Words words, int64_t count, int64_t* __restrict__ to) {
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    to[i] = words.word[i];
  }
}

}  // namespace

void upload_words(
    const DeviceScope& scope, const int64_t* words, int64_t count, int64_t* to  // on the device
) {
  for (int64_t first = 0; first < count; first += kWordsAtOnce) {
    Words some;
    const int64_t size = std::min(kWordsAtOnce, count - first);
    std::copy(words + first, words + first + size, some.word);
    launch(
        scope, {"upload_kernel", dim3(1), dim3(kThreads)}, upload_kernel, some, size, to + first
    );
  }
}

}  // namespace fullspectrum::spectrum
