#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fullspectrum {

// Memory of one thread, kept from call to call: pages fresh from the system cost more than the
// products themselves. Very large blocks go back.
class Scratch {
 public:
  template <typename T>
  T* reserve(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes > bytes_) {
      block_.reset();
      block_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
      bytes_ = bytes;
    }
    return reinterpret_cast<T*>(block_.get());
  }
  void release_if_large() {
    if (bytes_ > kLargeBytes) {
      block_.reset();
      bytes_ = 0;
    }
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kLargeBytes = size_t{16} << 20;
  struct Free {
    void operator()(std::byte* block) const { ::operator delete(block, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> block_;
  size_t bytes_ = 0;
};

}  // namespace fullspectrum
