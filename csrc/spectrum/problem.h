#pragma once

#include <cstdint>

// Code shared by the CPU and the CUDA library: plain functions for the host compiler, device
// functions under nvcc.
#ifdef __CUDACC__
#define FULLSPECTRUM_DEVICE __device__
#define FULLSPECTRUM_HOST_DEVICE __host__ __device__
#else
#define FULLSPECTRUM_DEVICE
#define FULLSPECTRUM_HOST_DEVICE
#endif

namespace fullspectrum::spectrum {

// One side of a bipartite graph: for each of its nodes, the neighbours on the other side.
struct Lists {
  int64_t size;                   // nodes
  const int64_t* offset;          // [size + 1]
  const int32_t* index;           // neighbours, from offset[0] on
  const double* value;            // their weights, or null where all are one or kept in `single`
  const float* single = nullptr;  // the weights in single precision, or null; on the CPU only
};

// A matrix B without its zero rows and columns, or its transpose: whichever is at least as tall as
// wide, since both have the same singular values.
struct Problem {
  Lists tall;    // the longer side's lists, which index the shorter side
  Lists narrow;  // the shorter side's lists, the same entries

  FULLSPECTRUM_HOST_DEVICE Problem(const Lists& rows, const Lists& columns)
      : tall(rows.size >= columns.size ? rows : columns),
        narrow(rows.size >= columns.size ? columns : rows) {}
};

// The sizes that one problem's workspace follows from.
struct Sizes {
  // Problems whose shorter side has at most so many nodes are solved completely, so that every
  // multiplicity is exact. It is also the least basis that larger ones restart from.
  static constexpr int64_t kComplete = 64;

  int64_t tall;      // n
  int64_t narrow;    // m <= n
  int64_t k;         // singular values computed, at most m
  int64_t block;     // b: vectors of a step. k + 1 random ones see multiplicities up to k + 1
  int64_t capacity;  // c: vectors in the basis before a restart
  int64_t kept;      // vectors that a restart keeps

  FULLSPECTRUM_HOST_DEVICE Sizes(int64_t rows, int64_t columns, int64_t wanted)
      : tall(larger(rows, columns)), narrow(smaller(rows, columns)), k(smaller(wanted, narrow)) {
    block = smaller(k + 1, narrow);
    capacity = smaller(larger(6 * block, kComplete), narrow);
    kept = smaller(larger(2 * block, capacity / 3), capacity);
  }

  FULLSPECTRUM_HOST_DEVICE bool complete() const { return capacity == narrow; }

  // Length of a set of coordinates: basis and block.
  FULLSPECTRUM_HOST_DEVICE int64_t stride() const { return capacity + block; }

  // Doubles of workspace: right and left basis, a rotated basis, the projected matrix, its singular
  // value decomposition (see DenseSvd), two sets of coordinates.
  FULLSPECTRUM_HOST_DEVICE int64_t workspace() const {
    return stride() * (narrow + tall) + larger(kept, 2) * tall + 3 * capacity * capacity +
           7 * capacity + 2 + 2 * block * stride();
  }

  FULLSPECTRUM_HOST_DEVICE static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
  FULLSPECTRUM_HOST_DEVICE static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
};

}  // namespace fullspectrum::spectrum
