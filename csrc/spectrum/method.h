#pragma once

#include <cstdint>

namespace fullspectrum::spectrum {

// How a problem is solved; the numbers are the operators' argument `method`. The three that work
// with the Gram matrix give a problem back to golub_kahan where squaring costs too much accuracy,
// where more than two values of more than 64 are wanted, and where entries are stored twice.
enum class Method : int64_t {
  automatic = 0,    // the cheapest of the others, by a model of their cost
  golub_kahan = 1,  // block Golub-Kahan-Lanczos on the matrix itself
  bit_gram = 2,     // the Gram matrix counted from rows of bits; with weights as sparse_gram
  sparse_gram = 3,  // the Gram matrix as a sum over the entries of A
  matrix_free = 4,  // two sparse products a step
};

}  // namespace fullspectrum::spectrum
