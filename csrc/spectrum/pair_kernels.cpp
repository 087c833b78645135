#include "spectrum/pair_kernels.h"

#include "spectrum/vectors.h"

// Compiled once for each instruction set, so: no header with inline functions of external linkage.
namespace fullspectrum::FULLSPECTRUM_ISA {
namespace {

// The two numbers of each pair change places.
Doubles exchanged(Doubles pairs) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(pairs, pairs, 1, 0, 3, 2, 5, 4, 7, 6);
#elif defined(__AVX__)
  return __builtin_shufflevector(pairs, pairs, 1, 0, 3, 2);
#else
  return __builtin_shufflevector(pairs, pairs, 1, 0);
#endif
}

// A factor as lanes: pairs times it is pairs * straight + exchanged(pairs) * crossed.
struct Factor {
  Doubles straight;
  Doubles crossed;

  explicit Factor(const double* factor) {
    double on[kLanes];
    double off[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      on[lane] = factor[lane % 2 * 3];
      off[lane] = factor[lane % 2 == 0 ? 2 : 1];
    }
    straight = load(on);
    crossed = load(off);
  }
  Doubles of(Doubles pairs) const { return pairs * straight + exchanged(pairs) * crossed; }
};

void add_products(
    int64_t count, const double* const* in, const double* factor, int64_t rows, double* x
) {
  for (int64_t i = 0; i < count; ++i) {
    const Factor by(factor + 4 * i);
    const double* from = in[i];
    for (int64_t e = 0; e < 2 * rows; e += kLanes) {
      store(x + e, load(x + e) + by.of(load(from + e)));
    }
  }
}

void transform(const double* factor, int64_t rows, double* x) {
  const Factor by(factor);
  for (int64_t e = 0; e < 2 * rows; e += kLanes) {
    store(x + e, by.of(load(x + e)));
  }
}

void inner_products(
    int64_t count, const double* const* in, const double* x, int64_t rows, double* out
) {
  for (int64_t i = 0; i < count; ++i) {
    const double* from = in[i];
    Doubles straight = {};
    Doubles crossed = {};
    for (int64_t e = 0; e < 2 * rows; e += kLanes) {
      const Doubles a = load(from + e);
      const Doubles b = load(x + e);
      straight += a * b;
      crossed += a * exchanged(b);
    }
    double on[kLanes];
    double off[kLanes];
    store(on, straight);
    store(off, crossed);
    double* product = out + 4 * i;
    for (int entry = 0; entry < 4; ++entry) {
      product[entry] = 0;
    }
    for (int lane = 0; lane < kLanes; lane += 2) {
      product[0] += on[lane];
      product[3] += on[lane + 1];
      product[1] += off[lane];
      product[2] += off[lane + 1];
    }
  }
}

}  // namespace

PairKernels pair_kernels() { return {add_products, transform, inner_products}; }

}  // namespace fullspectrum::FULLSPECTRUM_ISA
