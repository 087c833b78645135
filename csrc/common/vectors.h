#pragma once

// Vectors for the sources that are compiled once for each instruction set: the compiler's own (GCC
// and Clang), as wide as the instruction set's registers.
//
// Everything lies in that instruction set's namespace and, within it, in an unnamed one. So each of
// these sources keeps its own copy: the linker never picks one of another instruction set, which
// the running processor might not know.

#include "common/narrow_floats.h"

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

// ---- float16 and bfloat16 in memory, float32 in registers ---------------------------------------

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef int32_t SignedWords __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords
    __attribute__((vector_size(kVectorBytes / 2), aligned(alignof(uint16_t)), may_alias));

template <typename T>
Words load_words(const T* from) {
  return __builtin_convertvector(*reinterpret_cast<const HalfWords*>(from), Words);
}
template <typename T>
void store_words(T* to, Words words) {
  *reinterpret_cast<HalfWords*>(to) = __builtin_convertvector(words, HalfWords);
}

template <typename T>
vector_t<float> load_floats(const T* from) {
  const Words bits = load_words(from);
  if constexpr (__is_same(T, BFloat16Bits)) {
    return reinterpret_cast<vector_t<float>>(bits << 16);
  } else {
    const Words magnitude = bits & 0x7fffu;
    const Words sign = (bits & 0x8000u) << 16;
    // exponents count from -15 in float16 and from -127 in float32; the largest stays the largest
    const Words bias = (magnitude >= 0x7c00u) ? Words{} + (224u << 23) : Words{} + (112u << 23);
    // below the least exponent a float16 is an integer times 2^-24
    const Words tiny = reinterpret_cast<Words>(
        __builtin_convertvector(reinterpret_cast<SignedWords>(magnitude), vector_t<float>) *
        0x1p-24f
    );
    const Words value = (magnitude < 0x400u) ? tiny : (magnitude << 13) + bias;
    return reinterpret_cast<vector_t<float>>(sign | value);
  }
}

// Rounds to the nearest, to the even one of two.
template <typename T>
void store_floats(T* to, vector_t<float> vector) {
  const Words bits = reinterpret_cast<Words>(vector);
  const Words magnitude = bits & 0x7fffffffu;
  const Words sign = (bits & 0x80000000u) >> 16;
  Words value;
  if constexpr (__is_same(T, BFloat16Bits)) {
    const Words rounded = (magnitude + 0x7fffu + ((magnitude >> 16) & 1u)) >> 16;
    value = (magnitude > 0x7f800000u) ? Words{} + 0x7fc0u : rounded;
  } else {
    const Words rounded = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // the last place of a number in [0.5, 1) is 2^-24, the unit of the float16 below 2^-14
    const vector_t<float> shifted = reinterpret_cast<vector_t<float>>(magnitude) + 0.5f;
    const Words tiny = reinterpret_cast<Words>(shifted) - 0x3f000000u;
    value = (magnitude < (113u << 23)) ? tiny : rounded;
    value = (magnitude >= 0x47800000u) ? Words{} + 0x7c00u : value;  // 65536: infinite
    value = (magnitude > 0x7f800000u) ? Words{} + 0x7e00u : value;
  }
  store_words(to, sign | value);
}

// A vector of the numbers at an address, in the type of the computation, whatever they are stored
// as.
template <typename T>
vector_t<compute_t<T>> load_computed(const T* from) {
  if constexpr (__is_same(T, compute_t<T>)) {
    return load(from);
  } else {
    return load_floats(from);
  }
}
template <typename T>
void store_computed(T* to, vector_t<compute_t<T>> vector) {
  if constexpr (__is_same(T, compute_t<T>)) {
    store(to, vector);
  } else {
    store_floats(to, vector);
  }
}

// ---- lanes --------------------------------------------------------------------------------------

// The same in a register, for values used more than once: the compiler may else read the memory
// again for each use, and the loads are what bounds the loops here.
template <typename T>
vector_t<T> load_once(const T* from) {
  vector_t<T> vector = load(from);
#if defined(__AVX512F__)
  __asm__("" : "+v"(vector));
#elif defined(__SSE2__)
  __asm__("" : "+x"(vector));
#elif defined(__aarch64__)
  __asm__("" : "+w"(vector));
#endif
  return vector;
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

// The sums of a transposed addition within each group of four lanes: of a and b, a0 + a2, b0 + b2,
// a1 + a3, b1 + b3; of two such results ab and cd, a, b, c, d.
template <typename T, int... lane>
vector_t<T> add_pairs(vector_t<T> a, vector_t<T> b, Lanes<lane...>) {
  constexpr int n = kLanes<T>;
  return __builtin_shufflevector(a, b, (lane % 2 * n + lane / 4 * 4 + lane % 4 / 2)...) +
         __builtin_shufflevector(a, b, (lane % 2 * n + lane / 4 * 4 + lane % 4 / 2 + 2)...);
}
template <typename T, int... lane>
vector_t<T> add_quads(vector_t<T> ab, vector_t<T> cd, Lanes<lane...>) {
  constexpr int n = kLanes<T>;
  return __builtin_shufflevector(ab, cd, (lane % 4 / 2 * n + lane / 4 * 4 + lane % 2)...) +
         __builtin_shufflevector(ab, cd, (lane % 4 / 2 * n + lane / 4 * 4 + lane % 2 + 2)...);
}

// The sum of the groups of four lanes.
template <typename V, int... lane>
auto add_halves(V vector, Lanes<lane...>) {
  constexpr int half = sizeof...(lane);
  auto sum = __builtin_shufflevector(vector, vector, lane...) +
             __builtin_shufflevector(vector, vector, (lane + half)...);
  if constexpr (half > 4) {
    return add_halves(sum, typename CountLanes<half / 2>::type{});
  } else {
    return sum;
  }
}

// out[q] (= or +=) the sum of the lanes of t[q], q < 4.
template <typename T>
void add_up_four(const vector_t<T>* t, bool accumulate, T* out) {
  constexpr int n = kLanes<T>;
  if constexpr (n == 2) {
    FULLSPECTRUM_UNROLL
    for (int q = 0; q < 4; ++q) {
      out[q] = t[q][0] + t[q][1] + (accumulate ? out[q] : T{0});
    }
  } else {
    typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), may_alias));
    const vector_t<T> all = add_quads<T>(
        add_pairs<T>(t[0], t[1], lanes_t<T>{}), add_pairs<T>(t[2], t[3], lanes_t<T>{}), lanes_t<T>{}
    );
    Four& to = *reinterpret_cast<Four*>(out);
    if constexpr (n == 4) {
      to = accumulate ? to + all : all;
    } else {
      const auto sums = add_halves(all, typename CountLanes<n / 2>::type{});
      to = accumulate ? to + sums : sums;
    }
  }
}

}  // namespace
}  // namespace fullspectrum::FULLSPECTRUM_ISA
