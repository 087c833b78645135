#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "common/cuda_launch.h"
#include "common/library.h"
#include "spectrum/block_lanczos.h"
#include "spectrum/compress_cuda.h"
#include "spectrum/cuda_team.h"
#include "spectrum/gram_cuda.h"
#include "spectrum/gram_lanczos_cuda.h"
#include "spectrum/method.h"
#include "spectrum/singular_values.h"
#include "spectrum/upload_cuda.h"

namespace fullspectrum {
namespace {

using spectrum::CudaGram;
using spectrum::CudaGramLanczos;
using spectrum::DeviceMatrices;
using spectrum::DeviceProblems;
using spectrum::GramLayout;
using spectrum::GramProblems;
using spectrum::Method;
using spectrum::Plan;
using spectrum::Problem;
using spectrum::Sizes;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
// Workspace of the problems that are solved at the same time; one larger problem alone may take
// more. Small on the emulator, so that its tests see several rounds.
#ifdef FULLSPECTRUM_EMULATION
constexpr int64_t kWorkspaceBytes = int64_t{4} << 20;
#else
constexpr int64_t kWorkspaceBytes = int64_t{1} << 30;
#endif

// Solves one problem a block by the iteration on its Gram matrix, see gram_lanczos_cuda.h. Leaves
// solved[p] zero where that cannot reach the tolerance.
//
// Rows of the matrix are read coalesced, a warp eight of them; basis vectors are contiguous, so
// inner products (a warp each) and updates (a thread an element) are coalesced too; products with
// the lists gather, a thread a list. Launch: grid problems, block 64 to 256. Slow when one problem
// is much larger than the others, or alone.
__global__ void __launch_bounds__(kThreads) gram_lanczos_kernel(
    GramProblems problems,
    int64_t first_problem,
    bool automatic,  // whether a closed form may answer
    double tol,
    double* __restrict__ sigma,   // [problems, k], zeros
    double* __restrict__ bound,   // [problems, k], zeros
    int64_t* __restrict__ solved  // [problems], zeros
) {
  __shared__ int flags[kThreads / kWarp];
  const int64_t p = first_problem + blockIdx.x;
  const Problem problem = problems.problem(p);
  const int64_t size = problem.narrow.size;
  if (size == 0) {
    return;
  }
  const int64_t entries = problem.narrow.offset[size] - problem.narrow.offset[0];
  if (automatic && !problem.narrow.value && problems.repeated[p] == 0 &&
      entries == size * problem.tall.size) {  // complete: one value that is not zero
    if (threadIdx.x == 0) {
      sigma[p * problems.k] = std::sqrt(static_cast<double>(entries));
      bound[p * problems.k] = spectrum::kEpsilon * sigma[p * problems.k];
      solved[p] = 1;
    }
    return;
  }
  const Method method = problems.plan[p].method;
  const bool small = size <= CudaGramLanczos::kComplete;
  if (method == Method::golub_kahan || !problems.wants(p, problem, method) ||
      (small && method == Method::matrix_free)) {
    return;
  }
  double* memory = problems.memory(p);
  CudaGram gram;
  if (method == Method::sparse_gram && small) {
    gram.sums = memory;
  } else if (method != Method::matrix_free) {
    gram.rounded = reinterpret_cast<const float*>(memory);
    gram.exact = method == Method::bit_gram;
  }
  spectrum::CudaTeam team(flags);
  const GramLayout layout{size, problem.tall.size, method};
  const int64_t k = Sizes::smaller(problems.k, size);
  CudaGramLanczos lanczos(team, problem, gram, k, memory + layout.iteration());
  const bool done = lanczos.run(tol, sigma + p * problems.k, bound + p * problems.k);
  if (threadIdx.x == 0) {
    solved[p] = done;
  }
}

// Solves one problem a block without its Gram matrix, see block_lanczos.h: those that are not
// solved yet. Memory and launch as above.
__global__ void __launch_bounds__(kThreads) block_lanczos_kernel(
    GramProblems problems,
    int64_t first_problem,
    double tol,
    const int64_t* __restrict__ solved,  // [problems]
    double* __restrict__ sigma,          // [problems, k], zeros
    double* __restrict__ bound           // [problems, k], zeros
) {
  __shared__ int flags[kThreads / kWarp];
  const int64_t p = first_problem + blockIdx.x;
  const Problem problem = problems.problem(p);
  const Sizes sizes(problem.tall.size, problem.narrow.size, problems.k);
  if (sizes.narrow == 0 || solved[p] != 0) {
    return;
  }
  spectrum::CudaTeam team(flags);
  spectrum::BlockLanczos<spectrum::CudaTeam> lanczos(team, problem, sizes, problems.memory(p));
  lanczos.run(tol, sigma + p * problems.k, bound + p * problems.k);
}

// What the host knows of a problem: at most so many rows, columns and entries are not zero.
struct Shape {
  int64_t rows;
  int64_t columns;
  int64_t entries;

  int64_t narrow() const { return std::min(rows, columns); }
  int64_t tall() const { return std::max(rows, columns); }
};

// Whether a method's memory and its numbers stay within bounds.
bool feasible(const Shape& shape, Method method) {
  constexpr int64_t kLargestGram = 4096;
  constexpr int64_t kMostBits = int64_t{1} << 32;
  constexpr int64_t kMostCounted = int64_t{1} << 24;  // float32 holds counts up to it exactly
  constexpr int64_t kLargestBasis = 65536;            // 192 vectors of it are 100 MB
  switch (method) {
    case Method::bit_gram:
      return shape.narrow() <= kLargestGram && shape.tall() < kMostCounted &&
             shape.narrow() * shape.tall() <= kMostBits;
    case Method::sparse_gram:
      return shape.narrow() <= kLargestGram;
    default:
      return shape.narrow() <= kLargestBasis;
  }
}

// The method for a problem. A step reads the Gram matrix once, in order; without it, every entry
// twice and scattered, which takes about four times as long each.
Method choose(const Shape& shape, bool weighted, Method asked) {
  const Method dense = weighted ? Method::sparse_gram : Method::bit_gram;
  if (asked == Method::automatic) {
    const bool scarce = shape.narrow() > CudaGramLanczos::kComplete &&
                        8 * shape.entries < shape.narrow() * shape.narrow();
    asked = scarce || !feasible(shape, dense) ? Method::matrix_free : dense;
  }
  if (asked == Method::bit_gram) {
    asked = dense;
  }
  return feasible(shape, asked) ? asked : Method::golub_kahan;
}

int64_t workspace(const Shape& shape, Method method, int64_t k) {
  const int64_t without = Sizes(shape.rows, shape.columns, k).workspace();
  if (method == Method::golub_kahan) {
    return without;
  }
  const GramLayout layout{shape.narrow(), shape.tall(), method};
  return std::max(
      without, layout.iteration() + CudaGramLanczos::workspace(shape.narrow(), shape.tall(), k)
  );
}

// Problems whose workspaces exist at the same time.
struct Round {
  int64_t begin;
  int64_t end;
  int64_t tall = 0;     // the largest longer side
  int64_t gram = 0;     // the largest shorter side of those solved by their Gram matrix, 0 for none
  int64_t counted = 0;  // of those whose Gram matrix is counted from bits
  int64_t summed = 0;   // of those whose Gram matrix is summed
};

// Plans every problem and splits them into rounds that keep the bound. `doubles` receives the
// largest round's workspace.
std::vector<Round> plan_rounds(
    const std::vector<Shape>& shapes,
    bool weighted,
    Method asked,
    int64_t k,
    std::vector<Plan>& plans,
    int64_t& doubles
) {
  constexpr int64_t kMost = kWorkspaceBytes / static_cast<int64_t>(sizeof(double));
  std::vector<Round> rounds;
  int64_t used = 0;
  doubles = 0;
  for (int64_t p = 0; p < static_cast<int64_t>(shapes.size()); ++p) {
    const Method method = choose(shapes[p], weighted, asked);
    const int64_t needed = workspace(shapes[p], method, k);
    if (rounds.empty() || used + needed > kMost || p - rounds.back().begin == kMaxGridY) {
      rounds.push_back({p, p});
      used = 0;
    }
    plans.push_back({method, used});
    used += needed;
    doubles = std::max(doubles, used);
    Round& round = rounds.back();
    round.end = p + 1;
    round.tall = std::max(round.tall, shapes[p].tall());
    if (method != Method::golub_kahan) {
      round.gram = std::max(round.gram, shapes[p].narrow());
    }
    if (method == Method::bit_gram) {
      round.counted = std::max(round.counted, shapes[p].narrow());
    }
    if (method == Method::sparse_gram) {
      round.summed = std::max(round.summed, shapes[p].narrow());
    }
  }
  return rounds;
}

dim3 block_for(int64_t nodes) {
  return dim3(std::clamp<int64_t>(ceil_div(nodes, kWarp) * kWarp, 64, kThreads));
}

// Everything is launched without waiting for the device: sizes that only it knows are bounded by
// the shapes, and what depends on them is decided there.
std::tuple<Tensor, Tensor> solve_all(
    const DeviceMatrices& all,
    const std::vector<int64_t>& taps_of,  // of no use where all.taps is empty
    const std::vector<Shape>& shapes,     // [problems]
    int64_t k,
    double tol,
    int64_t method
) {
  const int64_t problems = static_cast<int64_t>(shapes.size());
  Tensor sigma = torch::stable::new_zeros(all.like(), {problems, k}, ScalarType::Double);
  Tensor bound = torch::stable::new_zeros(all.like(), {problems, k}, ScalarType::Double);
  const bool empty = std::all_of(shapes.begin(), shapes.end(), [](const Shape& shape) {
    return shape.entries == 0;
  });
  if (empty) {
    return {sigma, bound};
  }
  const DeviceScope scope(all.like());
  const DeviceProblems on_device = spectrum::compress(scope, all, taps_of, problems);
  const auto asked = static_cast<Method>(method);
  std::vector<Plan> plans;
  int64_t doubles = 0;
  const std::vector<Round> rounds =
      plan_rounds(shapes, !all.values.empty(), asked, k, plans, doubles);
  const Tensor plan = spectrum::upload(scope, all.like(), plans);
  Tensor memory = torch::stable::new_empty(all.like(), {doubles}, ScalarType::Double);
  Tensor solved = torch::stable::new_zeros(all.like(), {problems}, ScalarType::Long);
  const GramProblems view{
      on_device.rows,
      on_device.columns,
      on_device.repeated,
      reinterpret_cast<const Plan*>(plan.const_data_ptr<int64_t>()),
      memory.mutable_data_ptr<double>(),
      k
  };
  double* sigmas = sigma.mutable_data_ptr<double>();
  double* bounds = bound.mutable_data_ptr<double>();
  int64_t* is_solved = solved.mutable_data_ptr<int64_t>();
  for (const Round& round : rounds) {
    const dim3 grid(round.end - round.begin);
    if (round.counted > 0) {
      spectrum::launch_bit_gram(scope, view, round.begin, round.end, round.counted);
    }
    if (round.summed > 0) {
      spectrum::launch_sparse_gram(scope, view, round.begin, round.end, round.summed);
    }
    if (round.gram > 0) {
      launch(
          scope,
          {"gram_lanczos_kernel", grid, block_for(round.gram)},
          gram_lanczos_kernel,
          view,
          round.begin,
          asked == Method::automatic,
          tol,
          sigmas,
          bounds,
          is_solved
      );
    }
    launch(
        scope,
        {"block_lanczos_kernel", grid, block_for(round.tall)},
        block_lanczos_kernel,
        view,
        round.begin,
        tol,
        is_solved,
        sigmas,
        bounds
    );
  }
  return {sigma, bound};
}

DeviceMatrices gather(
    const char* op,
    std::vector<Tensor>& crow_indices,
    std::vector<Tensor>& col_indices,
    std::vector<Tensor>& values,
    const std::vector<int64_t>& cols
) {
  DeviceMatrices all;
  all.rows = check_matrices(op, crow_indices, col_indices, values, cols);
  all.cols = cols;
  all.crow_indices = std::move(crow_indices);
  all.col_indices = std::move(col_indices);
  all.values = std::move(values);
  return all;
}

Shape shape_of(const DeviceMatrices& all, size_t i, int64_t columns) {
  const int64_t entries = all.col_indices[i].numel();
  return {std::min(all.rows[i], entries), std::min(columns, entries), entries};
}

std::tuple<Tensor, Tensor> singular_values_cuda(
    std::vector<Tensor> crow_indices,
    std::vector<Tensor> col_indices,
    std::vector<Tensor> values,
    std::vector<int64_t> cols,
    int64_t k,
    double tol,
    int64_t method
) {
  constexpr const char* kOp = "singular_values";
  const DeviceMatrices all = gather(kOp, crow_indices, col_indices, values, cols);
  check_accuracy(kOp, k, tol, method);
  std::vector<Shape> shapes;
  for (size_t i = 0; i < cols.size(); ++i) {
    shapes.push_back(shape_of(all, i, cols[i]));
  }
  return solve_all(all, {}, shapes, k, tol, method);
}

std::tuple<Tensor, Tensor> subgraph_singular_values_cuda(
    std::vector<Tensor> crow_indices,
    std::vector<Tensor> col_indices,
    std::vector<Tensor> values,
    std::vector<int64_t> cols,
    std::vector<Tensor> taps,
    std::vector<int64_t> subgraphs,
    std::vector<int64_t> taps_of,
    int64_t k,
    double tol,
    int64_t method
) {
  constexpr const char* kOp = "subgraph_singular_values";
  DeviceMatrices all = gather(kOp, crow_indices, col_indices, values, cols);
  check_subgraphs(kOp, all.crow_indices, taps, subgraphs, taps_of);
  check_accuracy(kOp, k, tol, method);
  std::vector<Shape> shapes;
  for (size_t i = 0; i < cols.size(); ++i) {
    for (int64_t s = 0; s < subgraphs[i]; ++s) {
      shapes.push_back(shape_of(all, i, taps_of[shapes.size()]));
    }
  }
  all.taps = std::move(taps);
  return solve_all(all, taps_of, shapes, k, tol, method);
}

}  // namespace

FULLSPECTRUM_CUDA_KERNELS(m) {
  m.impl("singular_values", TORCH_BOX(&singular_values_cuda));
  m.impl("subgraph_singular_values", TORCH_BOX(&subgraph_singular_values_cuda));
}

}  // namespace fullspectrum
