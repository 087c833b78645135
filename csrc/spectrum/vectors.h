#pragma once

#include <cstdint>

// Vectors as wide as the instruction set's, for sources that are compiled once for each of them
// (FULLSPECTRUM_ISA names the namespace). Nothing here has external linkage: the linker would keep
// one copy, and it could be one that the running processor cannot execute.
namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif
constexpr double kEpsilon = 2.220446049250313e-16;

typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef uint64_t Words __attribute__((vector_size(8 * kLanes)));
typedef double UnalignedDoubles
    __attribute__((vector_size(8 * kLanes), aligned(alignof(double)), may_alias));
typedef float UnalignedFloats
    __attribute__((vector_size(4 * kLanes), aligned(alignof(float)), may_alias));
typedef uint64_t UnalignedWords
    __attribute__((vector_size(8 * kLanes), aligned(alignof(uint64_t)), may_alias));

inline Doubles load(const double* from) { return *reinterpret_cast<const UnalignedDoubles*>(from); }
inline Doubles load(const float* from) {
  return __builtin_convertvector(*reinterpret_cast<const UnalignedFloats*>(from), Doubles);
}
inline Words load(const uint64_t* from) { return *reinterpret_cast<const UnalignedWords*>(from); }
inline void store(double* to, Doubles vector) { *reinterpret_cast<UnalignedDoubles*>(to) = vector; }

// The sum of the lanes, by halves.
inline double sum(Doubles vector) {
#if defined(__AVX512F__)
  vector += __builtin_shufflevector(vector, vector, 4, 5, 6, 7, 0, 1, 2, 3);
  vector += __builtin_shufflevector(vector, vector, 2, 3, 0, 1, 6, 7, 4, 5);
#elif defined(__AVX__)
  vector += __builtin_shufflevector(vector, vector, 2, 3, 0, 1);
#endif
  return vector[0] + vector[1];
}

inline double absolute(double x) { return __builtin_fabs(x); }
inline double larger(double a, double b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace fullspectrum::FULLSPECTRUM_ISA
