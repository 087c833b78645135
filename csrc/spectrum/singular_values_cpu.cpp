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
#include "spectrum/cpu_problems.h"
#include "spectrum/singular_values.h"

namespace fullspectrum {
namespace {

using spectrum::OwnedProblem;
using torch::stable::Tensor;

// Each layer's groups: group_of [cols], and how many there are.
struct Grouping {
  std::vector<int32_t> group_of;
  int64_t groups;
};

// Calls job(i) for i < count on torch's threads. A thread takes the next job when it is free: the
// jobs differ much in size, and none depends on which thread runs it.
void parallel_jobs(int64_t count, const std::function<void(int64_t)>& job) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) {
      job(i);
    }
  });
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
    if (values == nullptr) {
      const double* ones = nullptr;
      return spectrum::split_columns(csr, ones, grouping.group_of, grouping.groups);
    }
    return dispatch_floating(values->scalar_type(), op, [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      const scalar_t* data = values->const_data_ptr<scalar_t>();
      return spectrum::split_columns(csr, data, grouping.group_of, grouping.groups);
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
  std::vector<std::vector<OwnedProblem>> split(matrices);
  std::vector<std::string> faults(matrices);  // an exception would not cross parallel_for whole
  parallel_jobs(matrices, [&](int64_t i) {
    split[i] = split_matrix(
        op,
        crow_indices[i],
        col_indices[i],
        values.empty() ? nullptr : &values[i],
        cols[i],
        groupings[i],
        faults[i]
    );
  });
  for (const std::string& fault : faults) {
    STD_TORCH_CHECK(fault.empty(), op, ": ", fault);
  }
  std::vector<OwnedProblem*> problems;
  for (std::vector<OwnedProblem>& of_matrix : split) {
    for (OwnedProblem& problem : of_matrix) {
      problems.push_back(&problem);
    }
  }
  const int64_t count = static_cast<int64_t>(problems.size());
  using torch::headeronly::ScalarType;
  Tensor sigma = torch::stable::new_empty(crow_indices[0], {count, k}, ScalarType::Double);
  Tensor bound = torch::stable::new_empty(crow_indices[0], {count, k}, ScalarType::Double);
  double* sigmas = sigma.mutable_data_ptr<double>();
  double* bounds = bound.mutable_data_ptr<double>();
  std::vector<int64_t> order(count);  // the largest first, so that the threads end together
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return problems[a]->nnz() > problems[b]->nnz();
  });
  parallel_jobs(count, [&](int64_t job) {
    thread_local spectrum::GramScratch scratch;
    const int64_t i = order[job];
    const auto how = static_cast<spectrum::Method>(method);
    spectrum::solve(*problems[i], k, tol, how, scratch, sigmas + i * k, bounds + i * k);
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
  std::vector<Grouping> groupings;
  for (const int64_t count : cols) {
    groupings.push_back({std::vector<int32_t>(count, 0), 1});
  }
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
    Grouping grouping{std::vector<int32_t>(cols[i], -1), subgraphs[i]};
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
