#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>
#include <vector>

#include "common/dispatch.h"
#include "common/library.h"
#include "common/parallel.h"
#include "regular_subgraphs/group_taps.h"
#include "regular_subgraphs/regular_subgraphs.h"

namespace fullspectrum {
namespace {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> regular_subgraphs_cpu(
    std::vector<Tensor> crow_indices, std::vector<Tensor> col_indices, std::vector<int64_t> cols
) {
  constexpr const char* kOp = "regular_subgraphs";
  const std::vector<int64_t> first = check_regular_subgraphs(crow_indices, col_indices, cols);
  const auto new_column = [&] {
    return torch::stable::new_empty(
        crow_indices[0], {first.back()}, torch::headeronly::ScalarType::Long
    );
  };
  Tensor taps = new_column();
  Tensor degrees = new_column();
  Tensor live_outputs = new_column();
  int64_t* tap = taps.mutable_data_ptr<int64_t>();
  int64_t* degree = degrees.mutable_data_ptr<int64_t>();
  int64_t* live = live_outputs.mutable_data_ptr<int64_t>();
  const int64_t layers = static_cast<int64_t>(cols.size());
  std::vector<std::string> faults(layers);  // an exception would not cross parallel_for whole
  parallel_for(0, layers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      dispatch_index(crow_indices[i].scalar_type(), kOp, [&](auto index_tag) {
        using index_t = typename decltype(index_tag)::type;
        const CsrView<index_t> csr{
            crow_indices[i].numel() - 1,
            cols[i],
            col_indices[i].numel(),
            crow_indices[i].const_data_ptr<index_t>(),
            col_indices[i].const_data_ptr<index_t>()
        };
        faults[i] = csr_fault(csr);
        if (faults[i].empty()) {
          group_taps(csr, tap + first[i], degree + first[i], live + first[i]);
        }
      });
    }
  });
  for (const std::string& fault : faults) {
    STD_TORCH_CHECK(fault.empty(), kOp, ": ", fault);
  }
  return {taps, degrees, live_outputs};
}

}  // namespace

FULLSPECTRUM_CPU_KERNELS(m) { m.impl("regular_subgraphs", TORCH_BOX(&regular_subgraphs_cpu)); }

}  // namespace fullspectrum
