#include "selection/topk_scores.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>

#include "common/checks.h"
#include "common/compute_dtype.h"

namespace fullspectrum {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// The scores in the dtype they are compared in.
std::vector<Tensor> check_scores(const char* op, const std::vector<Tensor>& scores) {
  std::vector<Tensor> wide;
  for (const Tensor& tensor : scores) {
    check_floating(op, "scores", tensor);
    check_same_dtype(op, "scores", scores[0], "scores", tensor);
    check_same_device(op, "scores", scores[0], "scores", tensor);
    STD_TORCH_CHECK(tensor.is_contiguous(), op, ": scores must be contiguous");
    wide.push_back(in_compute_dtype(tensor));
  }
  return wide;
}

ScoreGroup group_of(const char* op, std::vector<Tensor> scores, int64_t count) {
  int64_t size = 0;
  for (const Tensor& tensor : scores) {
    size += tensor.numel();
  }
  STD_TORCH_CHECK(
      count >= 0 && count <= size,
      op,
      ": a count must lie between 0 and the number of scores, ",
      size,
      ", got ",
      count
  );
  return {std::move(scores), size, count};
}

std::vector<ScoreGroup> one_by_one(
    const char* op, const std::vector<Tensor>& scores, const std::vector<int64_t>& counts
) {
  STD_TORCH_CHECK(
      counts.size() == scores.size(),
      op,
      ": expected a count for each of the ",
      scores.size(),
      " tensors, got ",
      counts.size()
  );
  std::vector<ScoreGroup> groups;
  for (size_t i = 0; i < scores.size(); ++i) {
    groups.push_back(group_of(op, {scores[i]}, counts[i]));
  }
  return groups;
}

}  // namespace

std::vector<ScoreGroup> check_topk_masks(
    const std::vector<Tensor>& scores, const std::vector<int64_t>& counts
) {
  constexpr const char* kOp = "topk_masks";
  std::vector<Tensor> wide = check_scores(kOp, scores);
  if (counts.size() == 1) {
    return {group_of(kOp, std::move(wide), counts[0])};
  }
  return one_by_one(kOp, wide, counts);
}

std::vector<ScoreGroup> check_topk_topologies(
    const std::vector<Tensor>& scores, const std::vector<int64_t>& counts
) {
  constexpr const char* kOp = "topk_topologies";
  const std::vector<Tensor> wide = check_scores(kOp, scores);
  for (const Tensor& tensor : scores) {
    STD_TORCH_CHECK(
        tensor.dim() == 2, kOp, ": scores must be matrices, got ", tensor.dim(), " dimensions"
    );
  }
  return one_by_one(kOp, wide, counts);
}

ScoreGroup check_bottomk_positions(const Tensor& scores, int64_t count) {
  constexpr const char* kOp = "bottomk_positions";
  STD_TORCH_CHECK(
      count >= 0 && count <= scores.numel(),
      kOp,
      ": count must lie between 0 and the number of scores, ",
      scores.numel(),
      ", got ",
      count
  );
  return group_of(kOp, check_scores(kOp, {scores}), scores.numel() - count);
}

Topology new_topology(const Tensor& scores, int64_t count) {
  const bool fits =
      std::max({scores.size(0), scores.size(1), count}) <= std::numeric_limits<int32_t>::max();
  const ScalarType dtype = fits ? ScalarType::Int : ScalarType::Long;
  return {
      torch::stable::new_empty(scores, {scores.size(0) + 1}, dtype),
      torch::stable::new_empty(scores, {count}, dtype)
  };
}

}  // namespace fullspectrum
