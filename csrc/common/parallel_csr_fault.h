#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "common/csr.h"
#include "common/parallel.h"

namespace fullspectrum {

// csr_fault, on all threads.
template <typename index_t>
std::string parallel_csr_fault(const CsrView<index_t>& csr) {
  constexpr int64_t kGrain = int64_t{1} << 16;
  const std::string fault = crow_fault(csr);
  if (!fault.empty()) {
    return fault;
  }
  std::atomic<bool> is_sound{true};
  parallel_for(0, csr.nnz, kGrain, [&](int64_t begin, int64_t end) {
    if (!col_fault(csr.col_indices + begin, end - begin, csr.cols).empty()) {
      is_sound = false;
    }
  });
  return is_sound ? "" : csr_fault(csr);
}

}  // namespace fullspectrum
