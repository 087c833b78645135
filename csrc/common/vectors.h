#pragma once

// Vectors for the sources that are compiled once for each instruction set: the compiler's own (GCC
// and Clang), as wide as the instruction set's registers.
//
// Everything lies in that instruction set's namespace and, within it, in an unnamed one. So each of
// these sources keeps its own copy: the linker never picks one of another instruction set, which
// the running processor might not know.

#define FULLSPECTRUM_UNROLL _Pragma("GCC unroll 16")

namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  // The same for any address.
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <typename T>
using vector_t = typename Vector<T>::type;

template <typename T>
vector_t<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(from);
}
template <typename T>
void store(T* to, vector_t<T> vector) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(to) = vector;
}

// Lanes<0, 1, ..., n - 1>, to write shuffles for every register width at once.
template <int... lane>
struct Lanes {};
template <int n, int... lane>
struct CountLanes : CountLanes<n - 1, n - 1, lane...> {};
template <int... lane>
struct CountLanes<0, lane...> {
  using type = Lanes<lane...>;
};
template <typename T>
using lanes_t = typename CountLanes<kLanes<T>>::type;

// Asks for the `bytes` bytes at `from`, a line at a time. The address need not be readable.
template <int bytes>
void prefetch(const void* from) {
  for (int byte = 0; byte < bytes; byte += 64) {
    __builtin_prefetch(static_cast<const char*>(from) + byte);
  }
}

// a0 b0 a1 b1 ... of the lower (kUpper = 0) or upper (1) halves of a and b.
template <int kUpper, typename T, int... lane>
vector_t<T> interleave(vector_t<T> a, vector_t<T> b, Lanes<lane...>) {
  constexpr int n = kLanes<T>;
  return __builtin_shufflevector(a, b, (lane % 2 * n + kUpper * n / 2 + lane / 2)...);
}

// Transposes the square matrix whose rows are the vectors r: log2(n) perfect shuffles.
template <typename T>
void transpose(vector_t<T>* r) {
  constexpr int n = kLanes<T>;
  for (int stage = 1; stage < n; stage *= 2) {
    vector_t<T> t[n];
    FULLSPECTRUM_UNROLL
    for (int i = 0; i < n / 2; ++i) {
      t[2 * i] = interleave<0, T>(r[i], r[i + n / 2], lanes_t<T>{});
      t[2 * i + 1] = interleave<1, T>(r[i], r[i + n / 2], lanes_t<T>{});
    }
    FULLSPECTRUM_UNROLL
    for (int i = 0; i < n; ++i) {
      r[i] = t[i];
    }
  }
}

// Adds neighbours: a and b, each kBlocks blocks of partial sums, become one vector of 2 kBlocks
// blocks half as long, a's before b's.
template <int kBlocks, typename T, int... lane>
vector_t<T> fold(vector_t<T> a, vector_t<T> b, Lanes<lane...>) {
  constexpr int n = kLanes<T>;
  constexpr int size = n / kBlocks;
  constexpr int half = size / 2;
  // lane / half is the new block: (vector, block) = (new / kBlocks, new % kBlocks)
  return __builtin_shufflevector(
             a, b, (lane / half / kBlocks * n + lane / half % kBlocks * size + lane % half)...
         ) +
         __builtin_shufflevector(
             a,
             b,
             (lane / half / kBlocks * n + lane / half % kBlocks * size + half + lane % half)...
         );
}

template <int kDistance, typename T, int... lane>
vector_t<T> add_across(vector_t<T> a, Lanes<lane...>) {
  return a + __builtin_shufflevector(a, a, (lane ^ kDistance)...);
}

// out[q] (= or +=) the sum of the lanes of t[q], q < 4.
template <typename T>
void add_up_four(const vector_t<T>* t, bool accumulate, T* out) {
  constexpr int n = kLanes<T>;
  vector_t<T> first = fold<1, T>(t[0], t[1], lanes_t<T>{});
  vector_t<T> second = fold<1, T>(t[2], t[3], lanes_t<T>{});
  T sums[4];
  if constexpr (n == 2) {
    store(sums, first);
    store(sums + 2, second);
  } else {
    constexpr int block = n / 4;
    vector_t<T> all = fold<2, T>(first, second, lanes_t<T>{});
    if constexpr (block >= 4) {
      all = add_across<2, T>(all, lanes_t<T>{});
    }
    if constexpr (block >= 2) {
      all = add_across<1, T>(all, lanes_t<T>{});
    }
    auto four = __builtin_shufflevector(all, all, 0, block, 2 * block, 3 * block);
    __builtin_memcpy(sums, &four, sizeof(sums));
  }
  FULLSPECTRUM_UNROLL
  for (int q = 0; q < 4; ++q) {
    out[q] = accumulate ? out[q] + sums[q] : sums[q];
  }
}

}  // namespace
}  // namespace fullspectrum::FULLSPECTRUM_ISA
