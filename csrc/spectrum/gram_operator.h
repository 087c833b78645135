#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <vector>

#include "spectrum/gram_kernels.h"
#include "spectrum/problem.h"

namespace fullspectrum::spectrum {

// Memory that begins where a cache line does, so that no vector lies across two.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  AlignedAllocator() = default;
  template <typename Other>
  AlignedAllocator(const AlignedAllocator<Other>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  bool operator==(const AlignedAllocator&) const { return true; }
  bool operator!=(const AlignedAllocator&) const { return false; }
};
template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

// Calls job(i) for i < count, in any order and perhaps side by side.
using RunJobs = std::function<void(int64_t count, const std::function<void(int64_t)>& job)>;

// Memory to use again from problem to problem, and who does the work of a large one.
struct GramScratch {
  RunJobs run_jobs = [](int64_t count, const std::function<void(int64_t)>& job) {
    for (int64_t i = 0; i < count; ++i) {
      job(i);
    }
  };
  int64_t products = 0;  // with Gram matrices so far, of one or two vectors each
  AlignedVector<uint64_t> bits;
  AlignedVector<float> counts;
  AlignedVector<double> sums;
  AlignedVector<int64_t> part;
  AlignedVector<double> panel;
  AlignedVector<double> pairs;
  AlignedVector<double> basis;
  AlignedVector<double> band;
  AlignedVector<double> small;
  AlignedVector<double> two_pass;
  AlignedVector<double> golub_kahan;
};

// Room for `count` elements; what is there is not cleared.
template <typename T>
T* room(AlignedVector<T>& memory, int64_t count) {
  if (static_cast<int64_t>(memory.size()) < count) {
    memory.resize(count);
  }
  return memory.data();
}

inline int64_t padded(int64_t count) {
  return (count + kGramPadding - 1) / kGramPadding * kGramPadding;
}

// The kernels for the instruction set in use.
const GramKernels& gram_kernels();

// G = A^T A for the shorter side of a problem: dense, or as two sparse products. Its eigenvalues
// are the squares of the singular values of A.
class GramOperator {
 public:
  // G counted exactly, from one row of bits a node of the shorter side. All entries are one and no
  // entry is stored twice. `lists` are one side's, `of_narrow` says which.
  static GramOperator from_bits(
      const Lists& lists, bool of_narrow, int64_t size, int64_t length, GramScratch& scratch
  );
  // G summed from the lists of the shorter side, whose indices rise and are below `length`.
  static GramOperator from_lists(const Lists& narrow, int64_t length, GramScratch& scratch);
  // G as two sparse products.
  static GramOperator matrix_free(const Lists& tall, int64_t size, GramScratch& scratch);

  int64_t size() const { return size_; }
  int64_t stride() const { return stride_; }
  // y = G x for one or two vectors, both [width, stride]; the padding of y becomes zero.
  void multiply(const double* x, int64_t width, double* y) const;
  bool is_matrix_free() const { return !counts_ && !sums_; }
  int64_t entries() const { return tall_.offset[tall_.size]; }  // of A, where it is matrix-free
  // The same without forming G, for two vectors that come element by element: x, y [size, 2].
  void multiply_pairs(const double* x, double* y) const;
  // G as doubles, both triangles, [size, stride].
  void to_dense(double* h) const;

 private:
  GramOperator(int64_t size, GramScratch& scratch);

  int64_t size_;
  int64_t stride_;
  GramScratch* scratch_;
  const float* counts_ = nullptr;  // the lower triangle as of GramKernels, [size, stride], or
  const double* sums_ = nullptr;   // the same, or neither
  Lists tall_{};
  std::vector<int64_t> slab_;  // where the parts of tall_ begin that are summed by themselves
};

}  // namespace fullspectrum::spectrum
