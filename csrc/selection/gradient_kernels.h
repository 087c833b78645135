#pragma once

#include <cstdint>

namespace fullspectrum {

// One operand of a linear layer's weight gradient, the lines of which are multiplied with those of
// the other: the gradients for the outputs, a line a row of the weight, or the inputs, a line a
// column. A line holds an entry for each of the batch, and zeros up to `width`, a multiple of 16.
//
// Beside the numbers stand small integers, scale times which are the numbers up to a known error,
// for a product that needs a fraction of the time. They lie in groups of lines: [lines / group,
// width / entries, group] words of some `entries` integers each. Lines are made up to whole groups.
struct Lines {
  float* value;   // [lines, width]
  int32_t* word;  // the integers
  float* scale;   // [lines]; 0 where the integers are
  float* norm;    // [lines], no less than the Euclidean norm; infinite where that is no number
  float* error;   // [lines], no less than the norm of what the integers leave out
  int32_t* sum;   // [lines], of the integers
};

// How the integers are arranged.
struct ProductShape {
  int64_t rows;     // gradients of a group
  int64_t columns;  // inputs of a group, at most 64
  int64_t entries;  // integers of a word
};

struct GradientKernels {
  ProductShape shape;
  // Fills lines [first, end), first a multiple of `group`, with the columns of a row-major matrix.
  void (*pack)(
      const float* from,  // [batch, count]
      int64_t batch,
      int64_t count,
      int64_t first,
      int64_t end,
      int64_t group,
      bool biased,  // whether the integers are those of the inputs
      int64_t width,
      const Lines& to
  );
  // Sets the bit of every product that may be at least `least` in magnitude, or no number. `margin`
  // times both norms is how far a product in float32 may be from the true one. hits[row, group]
  // has a bit for each column of the group.
  void (*filter)(
      const Lines& grad,
      int64_t first,  // of the rows, both multiples of shape.rows
      int64_t end,
      const Lines& x,
      int64_t groups,  // of columns
      int64_t width,
      float margin,
      float least,
      uint64_t* hits  // [end - first, groups]
  );
  // Writes the columns of a row's hits but those to skip, in order. Returns how many they are.
  int64_t (*list)(
      const uint64_t* hits,  // [groups]
      int64_t groups,
      const unsigned char* skip,  // [groups * shape.columns]
      int32_t* column             // room for all, and for four more
  );
  // out[i] = the product of a line of the gradients and column[i] of the inputs, in float32. The
  // order of its terms is fixed by the width alone.
  void (*multiply)(
      const float* grad,      // [width]
      const float* x,         // [columns, width]
      int64_t width,          // a multiple of 16
      const int32_t* column,  // [count]
      int64_t count,
      float* out  // [count]
  );
};

#define FULLSPECTRUM_DECLARE_GRADIENT(isa) \
  namespace isa {                          \
  GradientKernels gradient_kernels();      \
  }
FULLSPECTRUM_DECLARE_GRADIENT(baseline)
FULLSPECTRUM_DECLARE_GRADIENT(avx2)
FULLSPECTRUM_DECLARE_GRADIENT(avx512)
FULLSPECTRUM_DECLARE_GRADIENT(avx512_vnni)
#undef FULLSPECTRUM_DECLARE_GRADIENT

}  // namespace fullspectrum
