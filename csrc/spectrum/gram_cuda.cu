#include "spectrum/gram_cuda.h"

namespace fullspectrum::spectrum {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;         // rows and columns of the Gram matrix that a block counts
constexpr int kTileThreads = 64;  // each counts 4 by 4 of them
constexpr int kTileWords = 32;    // words of each row in shared memory at a time
constexpr int kEach = 4;

// Writes each narrow node's row of bits: bit t says whether t is a neighbour.
//
// A warp owns a row, clears it and sets its bits by integer atomics, whose order does not matter:
// coalesced reads of the list, scattered writes within the row. Launch: grid (ceil(narrow / 8),
// problems), block 256. Slow when few rows hold most entries.
__global__ void __launch_bounds__(kThreads)
    pack_bits_kernel(GramProblems problems, int64_t first_problem) {
  const int64_t p = first_problem + blockIdx.y;
  const Problem problem = problems.problem(p);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= problem.narrow.size || !problems.wants(p, problem, Method::bit_gram)) {
    return;
  }
  const GramLayout layout{problem.narrow.size, problem.tall.size, Method::bit_gram};
  uint32_t* bits =
      reinterpret_cast<uint32_t*>(problems.memory(p) + layout.bits()) + row * layout.words();
  for (int64_t word = threadIdx.x % kWarp; word < layout.words(); word += kWarp) {
    bits[word] = 0;
  }
  __syncwarp();
  const int64_t end = problem.narrow.offset[row + 1];
  for (int64_t i = problem.narrow.offset[row] + static_cast<int64_t>(threadIdx.x % kWarp); i < end;
       i += kWarp) {
    const int32_t node = problem.narrow.index[i];
    atomicOr(&bits[node / 32], 1u << (node % 32));
  }
}

// Counts the bits that each two rows share: G = A^T A of a 0/1 matrix, exactly.
//
// A block owns a tile of 32 by 32 counts on or above the diagonal and mirrors it; a thread counts
// four rows against four columns, from words in shared memory (coalesced reads; the 33rd word of a
// row keeps the banks apart). Launch: grid (tiles, problems), block 64. Bound by the population
// counts, 16 a clock and multiprocessor; slow when the problems' sizes differ much, as blocks
// without a tile still start.
__global__ void __launch_bounds__(kTileThreads)
    bit_gram_kernel(GramProblems problems, int64_t first_problem) {
  __shared__ uint32_t row_words[kTile][kTileWords + 1];
  __shared__ uint32_t column_words[kTile][kTileWords + 1];
  const int64_t p = first_problem + blockIdx.y;
  const Problem problem = problems.problem(p);
  const int64_t size = problem.narrow.size;
  int64_t row_tile = 0;  // tile (i, j) with i <= j is number j (j + 1) / 2 + i
  int64_t column_tile = 0;
  for (int64_t tile = blockIdx.x; tile > column_tile; tile -= column_tile) {
    ++column_tile;
    row_tile = tile - column_tile;
  }
  if (column_tile * kTile >= size || !problems.wants(p, problem, Method::bit_gram)) {
    return;
  }
  const GramLayout layout{size, problem.tall.size, Method::bit_gram};
  const uint32_t* bits = reinterpret_cast<const uint32_t*>(problems.memory(p) + layout.bits());
  const int64_t words = layout.words();
  const int row = threadIdx.x / (kTile / kEach);
  const int column = threadIdx.x % (kTile / kEach);
  int count[kEach][kEach] = {};
  for (int64_t first = 0; first < words; first += kTileWords) {
    for (int at = threadIdx.x; at < kTile * kTileWords; at += kTileThreads) {
      const int line = at / kTileWords;
      const int64_t word = first + at % kTileWords;
      const int64_t i = row_tile * kTile + line;
      const int64_t j = column_tile * kTile + line;
      row_words[line][at % kTileWords] = i < size && word < words ? bits[i * words + word] : 0;
      column_words[line][at % kTileWords] = j < size && word < words ? bits[j * words + word] : 0;
    }
    __syncthreads();
    for (int word = 0; word < kTileWords; ++word) {
      uint32_t mine[kEach];
      uint32_t theirs[kEach];
      for (int e = 0; e < kEach; ++e) {
        mine[e] = row_words[row + e * (kTile / kEach)][word];
        theirs[e] = column_words[column + e * (kTile / kEach)][word];
      }
      for (int a = 0; a < kEach; ++a) {
        for (int b = 0; b < kEach; ++b) {
          count[a][b] += __popc(mine[a] & theirs[b]);
        }
      }
    }
    __syncthreads();
  }
  float* gram = reinterpret_cast<float*>(problems.memory(p));
  for (int a = 0; a < kEach; ++a) {
    for (int b = 0; b < kEach; ++b) {
      const int64_t i = row_tile * kTile + row + a * (kTile / kEach);
      const int64_t j = column_tile * kTile + column + b * (kTile / kEach);
      if (i < size && j < size) {
        gram[i * size + j] = static_cast<float>(count[a][b]);
        gram[j * size + i] = static_cast<float>(count[a][b]);
      }
    }
  }
}

// Row i of G = A^T A: the sum over i's neighbours t of a_ti times the list of t, in float64; stored
// as float32 where the problem is not small (see CudaGram).
//
// A warp owns a row and adds the lists one after the other, a lane an entry: no two lanes meet, and
// the order is fixed. Sums stay in shared memory; reads of the lists are coalesced. Launch: grid
// (narrow, problems), block 32, shared memory 8 bytes a narrow node. Slow where the lists of the
// taller side are much shorter than 32 entries.
__global__ void __launch_bounds__(kWarp)
    sparse_gram_kernel(GramProblems problems, int64_t first_problem) {
  FULLSPECTRUM_DYNAMIC_SHARED(double, sum);
  const int64_t p = first_problem + blockIdx.y;
  const int64_t row = blockIdx.x;
  const Problem problem = problems.problem(p);
  const int64_t size = problem.narrow.size;
  if (row >= size || !problems.wants(p, problem, Method::sparse_gram)) {
    return;
  }
  for (int64_t j = threadIdx.x; j < size; j += kWarp) {
    sum[j] = 0;
  }
  __syncwarp();
  const Lists& tall = problem.tall;
  const Lists& narrow = problem.narrow;
  for (int64_t i = narrow.offset[row]; i < narrow.offset[row + 1]; ++i) {
    const int64_t node = narrow.index[i];
    const double weight = narrow.value ? narrow.value[i] : 1;
    const int64_t end = tall.offset[node + 1];
    for (int64_t at = tall.offset[node] + static_cast<int64_t>(threadIdx.x); at < end;
         at += kWarp) {
      sum[tall.index[at]] += tall.value ? weight * tall.value[at] : weight;
    }
    __syncwarp();
  }
  double* gram = problems.memory(p);
  for (int64_t j = threadIdx.x; j < size; j += kWarp) {
    if (size <= CudaGramLanczos::kComplete) {
      gram[row * size + j] = sum[j];
    } else {
      reinterpret_cast<float*>(gram)[row * size + j] = static_cast<float>(sum[j]);
    }
  }
}

}  // namespace

void launch_bit_gram(
    const DeviceScope& scope,
    const GramProblems& problems,
    int64_t begin,
    int64_t end,
    int64_t narrow
) {
  const int64_t tiles = ceil_div(narrow, kTile);
  launch(
      scope,
      {"pack_bits_kernel", dim3(ceil_div(narrow, kThreads / kWarp), end - begin), dim3(kThreads)},
      pack_bits_kernel,
      problems,
      begin
  );
  launch(
      scope,
      {"bit_gram_kernel", dim3(tiles * (tiles + 1) / 2, end - begin), dim3(kTileThreads)},
      bit_gram_kernel,
      problems,
      begin
  );
}

void launch_sparse_gram(
    const DeviceScope& scope,
    const GramProblems& problems,
    int64_t begin,
    int64_t end,
    int64_t narrow
) {
  launch(
      scope,
      {"sparse_gram_kernel",
       dim3(narrow, end - begin),
       dim3(kWarp),
       static_cast<size_t>(narrow) * sizeof(double)},
      sparse_gram_kernel,
      problems,
      begin
  );
}

}  // namespace fullspectrum::spectrum
