#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#include "common/ceil_div.h"
#endif

namespace fullspectrum {

// The threads that parallel_for may use.
inline int64_t thread_count() { return torch::stable::get_num_threads(); }

// Calls body(from, to) for consecutive ranges that make up [begin, end), each at least `grain` long
// but for the last, on torch's threads.
//
// ThreadSanitizer takes no notice of the barriers of an OpenMP runtime that it did not compile and
// would report every hand-over as a race. Under it the same ranges go to threads that it knows.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
#if defined(__SANITIZE_THREAD__)
  if (begin >= end) {
    return;
  }
  const int64_t count = end - begin;
  const int64_t most = std::min(thread_count(), ceil_div(count, std::max<int64_t>(grain, 1)));
  const int64_t chunk = ceil_div(count, most);
  std::vector<std::exception_ptr> faults(ceil_div(count, chunk));
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < static_cast<int64_t>(faults.size()); ++i) {
    threads.emplace_back([&, i] {
      try {
        body(begin + i * chunk, std::min(end, begin + (i + 1) * chunk));
      } catch (...) {
        faults[i] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const std::exception_ptr& fault : faults) {
    if (fault) {
      std::rethrow_exception(fault);
    }
  }
#else
  torch::stable::parallel_for(begin, end, grain, body);
#endif
}

}  // namespace fullspectrum
