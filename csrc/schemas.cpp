#include <torch/csrc/stable/library.h>

#include "common/library.h"

// Every operator's schema: the table of contents. Kernels are bound at the end of <op>_cpu.cpp and
// <op>_cuda.cu; shape functions, derivatives and autocast rules in fullspectrum_ext/ops/.
FULLSPECTRUM_LIBRARY(m) {
  // pillar 1, masked matmul: y[..., out] = x[..., in] W^T + bias, W [out, in] in CSR form. The last
  // three arguments are W^T in CSR form (see CsrTranspose in ops/csr.py); only the derivatives use
  // them, and find them out themselves where they are not given.
  m.def(
      "sparse_linear(Tensor x, Tensor values, Tensor crow_indices, Tensor col_indices, "
      "SymInt out_features, Tensor? bias=None, Tensor? ccol_indices=None, Tensor? "
      "row_indices=None, "
      "Tensor? permutation=None) -> Tensor"
  );
  // its gradients: for x, D W, wherever values are given (which needs W^T), and for the values,
  // D^T x at the stored positions, wherever x is given; empty where not. D is grad.
  m.def(
      "sparse_linear_backward(Tensor grad, Tensor? x, Tensor? values, Tensor crow_indices, "
      "Tensor col_indices, SymInt in_features, Tensor? ccol_indices=None, Tensor? "
      "row_indices=None, Tensor? permutation=None) -> (Tensor, Tensor)"
  );
  // for layers that stay dense: x = x where mask, 0 elsewhere
  m.def("keep_masked_(Tensor(a!) x, Tensor mask) -> ()");
  // y = the 2-d convolution of x [batch, in channels, height, width] with W, plus bias; W [out
  // channels, in channels / groups * taps] in CSR form, its transpose as above
  m.def(
      "sparse_conv2d(Tensor x, Tensor values, Tensor crow_indices, Tensor col_indices, "
      "int[] kernel_size, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
      "Tensor? ccol_indices=None, Tensor? row_indices=None, Tensor? permutation=None) -> Tensor"
  );
  // its gradients for x and for the stored values, each an empty tensor where it is not needed;
  // both together cost little more than one
  m.def(
      "sparse_conv2d_backward(Tensor grad, Tensor x, Tensor values, Tensor crow_indices, "
      "Tensor col_indices, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
      "int groups, bool need_x, bool need_values, Tensor? ccol_indices=None, "
      "Tensor? row_indices=None, Tensor? permutation=None) -> (Tensor, Tensor)"
  );
  // the index of W^T: ccol_indices, row_indices, and where each of its entries stands in W
  m.def(
      "csr_transpose(Tensor crow_indices, Tensor col_indices, SymInt cols) "
      "-> (Tensor, Tensor, Tensor)"
  );
  // pillar 2, regular subgraphs: for each layer the input taps sorted by degree, beside each tap
  // its degree and the number of outputs that the taps of this degree touch; layers one after the
  // other
  m.def(
      "regular_subgraphs(Tensor[] crow_indices, Tensor[] col_indices, int[] cols) "
      "-> (Tensor, Tensor, Tensor)"
  );
  // pillar 3, eigenvalues: leading singular values [n, k] of n matrices and their error bounds;
  // values is empty where all entries are one; method numbers the ways (spectrum/method.h), 0 for
  // the cheapest
  m.def(
      "singular_values(Tensor[] crow_indices, Tensor[] col_indices, Tensor[] values, int[] cols, "
      "int k, float tol, int method=0) -> (Tensor, Tensor)"
  );
  // the same for groups of columns: taps lists each matrix's groups one after the other, subgraphs
  // their number, taps_of their lengths
  m.def(
      "subgraph_singular_values(Tensor[] crow_indices, Tensor[] col_indices, Tensor[] values, "
      "int[] cols, Tensor[] taps, int[] subgraphs, int[] taps_of, int k, float tol, "
      "int method=0) -> (Tensor, Tensor)"
  );
  // selection: which scores are the largest, bool masks of their shapes; counts says how many to
  // keep of each tensor, or, if it is one number, of all of them together. Of equal scores the
  // first are kept, tensor by tensor and in row-major order.
  m.def("topk_masks(Tensor[] scores, SymInt[] counts) -> Tensor[]");
  // the same for each of some matrices on its own, in CSR form: crow_indices and col_indices
  m.def("topk_topologies(Tensor[] scores, SymInt[] counts) -> (Tensor[], Tensor[])");
  // flat positions (rising) of the scores that topk_masks leaves: of equal ones the last
  m.def("bottomk_positions(Tensor scores, SymInt count) -> Tensor");
  // the Euclidean projection of all scores together on {0 <= s <= 1, sum s <= budget}, in place:
  // clip(s - v, 0, 1); returns v
  m.def("project_scores_(Tensor(a!)[] scores, float budget) -> Tensor");
  // flat positions (rising) and values of the k entries of the dense weight gradient
  // grad^T x outside the topology that are largest in magnitude, without that gradient in memory
  m.def(
      "dense_grad_topk(Tensor grad, Tensor x, Tensor crow_indices, Tensor col_indices, SymInt k) "
      "-> (Tensor, Tensor)"
  );
  // the same for a 2-d convolution; lists of two are height and width
  m.def(
      "conv2d_dense_grad_topk(Tensor grad, Tensor x, Tensor crow_indices, Tensor col_indices, "
      "SymInt k, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups) "
      "-> (Tensor, Tensor)"
  );
  // flat positions (rising) of `count` places where nothing is stored, each set of them as likely
  // as any other; the seed decides, on every device alike
  m.def(
      "random_places(Tensor crow_indices, Tensor col_indices, SymInt cols, SymInt count, int seed) "
      "-> Tensor"
  );
  // a topology without the stored entries `drop` (rising) and with the flat positions `grow`
  // (rising): crow_indices, col_indices, where each entry was stored before (-1 where it is new,
  // not where it is dropped and grown at once), and how many grown positions were there and stay,
  // and how many were not there, [2]
  m.def(
      "topology_update(Tensor crow_indices, Tensor col_indices, Tensor drop, Tensor grow, "
      "SymInt cols) -> (Tensor, Tensor, Tensor, Tensor)"
  );
}
