#include "selection/search_kernels.h"

// Compiled once for each instruction set, so: no other header.

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

constexpr int kBlock = 64;

// Few entries are found, so whole blocks are tested without a branch, by the compiler's vectors,
// and the answers walked through eight at a time.
template <typename bits_t>
int64_t search(const bits_t* bits, int64_t size, bits_t least, int64_t base, int64_t* found) {
  constexpr bits_t kMagnitude = ~bits_t{0} >> 1;
  int64_t number = 0;
  int64_t at = 0;
  for (; at + kBlock <= size; at += kBlock) {
    alignas(kBlock) unsigned char hit[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      const bits_t entry = bits[at + i];
      hit[i] = ((entry & kMagnitude) >= least) & (entry != ~bits_t{0});
    }
    for (int i = 0; i < kBlock; i += 8) {
      uint64_t eight;
      __builtin_memcpy(&eight, hit + i, 8);
      for (; eight != 0; eight &= eight - 1) {
        found[number++] = base + at + i + __builtin_ctzll(eight) / 8;
      }
    }
  }
  for (; at < size; ++at) {
    found[number] = base + at;
    number += ((bits[at] & kMagnitude) >= least) & (bits[at] != ~bits_t{0});
  }
  return number;
}

}  // namespace

template <typename bits_t>
SearchKernel<bits_t> search_kernel() {
  return search<bits_t>;
}

template SearchKernel<uint32_t> search_kernel();
template SearchKernel<uint64_t> search_kernel();

}  // namespace fullspectrum::FULLSPECTRUM_ISA
