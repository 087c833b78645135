#pragma once

#include <cstdint>
#include <vector>

namespace fullspectrum {

// How the weight of a 2-d convolution meets its input, as operators are given it; lists are height
// and width.
struct Conv2dGeometry {
  std::vector<int64_t> kernel_size;
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;
  std::vector<int64_t> dilation;
  int64_t groups;
};

}  // namespace fullspectrum
