#pragma once

#include <cstdint>

#include "common/cuda_launch.h"

namespace fullspectrum {

// Where the first entry of list[begin, end) stands that is not below `value`, or end. The entries
// never fall.
template <typename T>
__device__ int64_t first_not_below(const T* list, int64_t begin, int64_t end, int64_t value) {
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (list[middle] < value) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

}  // namespace fullspectrum
