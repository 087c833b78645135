#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "spectrum/cpu_problems.h"
#include "spectrum/singular_values.h"

namespace fullspectrum {
namespace {

using spectrum::OwnedProblem;
using torch::stable::Tensor;

// Each layer's groups of columns and how many there are.
struct Grouping {
  bool whole;                     // the layer itself is its one group
  std::vector<int32_t> group_of;  // else [cols], -1 for none
  int64_t groups;
};

// Calls job(i) for i < count on torch's threads. A thread takes the next job when it is free: the
// jobs differ much in size, and none depends on which thread runs it.
void parallel_jobs(int64_t count, const std::function<void(int64_t)>& job) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, thread_count());
  parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) {
      job(i);
    }
  });
}

// Jobs in the order of falling size, so that the threads end together.
std::vector<int64_t> largest_first(int64_t count, const std::function<int64_t(int64_t)>& size) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return size(a) > size(b);
  });
  return order;
}

// One problem a group; where the indices cannot be read safely, `fault` says why.
std::vector<OwnedProblem> split_matrix(
    const char* op,
    const Tensor& crow_indices,
    const Tensor& col_indices,
    const Tensor* values,
    int64_t cols,
    const Grouping& grouping,
    std::string& fault
) {
  return dispatch_index(crow_indices.scalar_type(), op, [&](auto index_tag) {
    using index_t = typename decltype(index_tag)::type;
    const CsrView<index_t> csr{
        crow_indices.numel() - 1,
        cols,
        col_indices.numel(),
        crow_indices.const_data_ptr<index_t>(),
        col_indices.const_data_ptr<index_t>()
    };
    fault = csr_fault(csr);
    if (!fault.empty()) {
      return std::vector<OwnedProblem>();
    }
    const auto split = [&](const auto* data) {
      std::vector<OwnedProblem> problems;
      if (grouping.whole) {
        problems.push_back(spectrum::whole_matrix(csr, data));
      } else {
        problems = spectrum::split_columns(csr, data, grouping.group_of, grouping.groups);
      }
      return problems;
    };
    if (values == nullptr) {
      return split(static_cast<const double*>(nullptr));
    }
    return dispatch_floating(values->scalar_type(), op, [&](auto tag) {
      return split(values->const_data_ptr<typename decltype(tag)::type>());
    });
  });
}

std::tuple<Tensor, Tensor> solve_all(
    const char* op,
    const std::vector<Tensor>& crow_indices,
    const std::vector<Tensor>& col_indices,
    const std::vector<Tensor>& values,
    const std::vector<int64_t>& cols,
    const std::vector<Grouping>& groupings,
    int64_t k,
    double tol,
    int64_t method
) {
  const int64_t matrices = static_cast<int64_t>(crow_indices.size());
  std::vector<int64_t> first(matrices + 1, 0);  // each matrix's first problem
  for (int64_t i = 0; i < matrices; ++i) {
    first[i + 1] = first[i] + groupings[i].groups;
  }
  using torch::headeronly::ScalarType;
  const std::vector<int64_t> shape{first[matrices], k};
  Tensor sigma = torch::stable::new_empty(crow_indices[0], shape, ScalarType::Double);
  Tensor bound = torch::stable::new_empty(crow_indices[0], shape, ScalarType::Double);
  double* sigmas = sigma.mutable_data_ptr<double>();
  double* bounds = bound.mutable_data_ptr<double>();
  const auto solve = [&](OwnedProblem& problem, int64_t at) {
    thread_local spectrum::GramScratch scratch;
    scratch.run_jobs = parallel_jobs;
    const auto how = static_cast<spectrum::Method>(method);
    spectrum::solve(problem, k, tol, how, scratch, sigmas + at * k, bounds + at * k);
  };
  std::vector<std::vector<OwnedProblem>> split(matrices);
  std::vector<std::string> faults(matrices);  // an exception would not cross parallel_for whole
  const std::vector<int64_t> by_size =
      largest_first(matrices, [&](int64_t i) { return col_indices[i].numel(); });
  parallel_jobs(matrices, [&](int64_t job) {
    const int64_t i = by_size[job];
    const Tensor* data = values.empty() ? nullptr : &values[i];
    split[i] =
        split_matrix(op, crow_indices[i], col_indices[i], data, cols[i], groupings[i], faults[i]);
    if (split[i].size() == 1) {  // nothing to share out: solved at once, the memory free again
      solve(split[i][0], first[i]);
      split[i].clear();
    }
  });
  for (const std::string& fault : faults) {
    STD_TORCH_CHECK(fault.empty(), op, ": ", fault);
  }
  std::vector<OwnedProblem*> problems;
  std::vector<int64_t> at;
  for (int64_t i = 0; i < matrices; ++i) {
    for (size_t group = 0; group < split[i].size(); ++group) {
      problems.push_back(&split[i][group]);
      at.push_back(first[i] + static_cast<int64_t>(group));
    }
  }
  const int64_t count = static_cast<int64_t>(problems.size());
  const std::vector<int64_t> order =
      largest_first(count, [&](int64_t i) { return problems[i]->nnz(); });
  parallel_jobs(count, [&](int64_t job) {
    OwnedProblem& problem = *problems[order[job]];
    solve(problem, at[order[job]]);
    problem = {};  // its memory is free for the others
  });
  return {sigma, bound};
}

std::tuple<Tensor, Tensor> singular_values_cpu(
    std::vector<Tensor> crow_indices,
    std::vector<Tensor> col_indices,
    std::vector<Tensor> values,
    std::vector<int64_t> cols,
    int64_t k,
    double tol,
    int64_t method
) {
  constexpr const char* kOp = "singular_values";
  check_matrices(kOp, crow_indices, col_indices, values, cols);
  check_accuracy(kOp, k, tol, method);
  const std::vector<Grouping> groupings(cols.size(), Grouping{true, {}, 1});
  return solve_all(kOp, crow_indices, col_indices, values, cols, groupings, k, tol, method);
}

std::tuple<Tensor, Tensor> subgraph_singular_values_cpu(
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
  check_matrices(kOp, crow_indices, col_indices, values, cols);
  check_subgraphs(kOp, crow_indices, taps, subgraphs, taps_of);
  check_accuracy(kOp, k, tol, method);
  std::vector<Grouping> groupings;
  size_t next = 0;
  for (size_t i = 0; i < taps.size(); ++i) {
    Grouping grouping{false, std::vector<int32_t>(cols[i], -1), subgraphs[i]};
    const int64_t* tap = taps[i].const_data_ptr<int64_t>();
    for (int64_t group = 0; group < subgraphs[i]; ++group) {
      for (const int64_t* end = tap + taps_of[next]; tap != end; ++tap) {
        STD_TORCH_CHECK(
            *tap >= 0 && *tap < cols[i] && grouping.group_of[*tap] < 0,
            kOp,
            ": taps must lie in [0, ",
            cols[i],
            ") and in one subgraph each, got ",
            *tap
        );
        grouping.group_of[*tap] = static_cast<int32_t>(group);
      }
      ++next;
    }
    groupings.push_back(std::move(grouping));
  }
  return solve_all(kOp, crow_indices, col_indices, values, cols, groupings, k, tol, method);
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) {
  m.impl("singular_values", TORCH_BOX(&singular_values_cpu));
  m.impl("subgraph_singular_values", TORCH_BOX(&subgraph_singular_values_cpu));
}

}  // namespace fullspectrum
