"""The native operators, with their derivatives."""

from fullspectrum_ext import _library  # first: it registers the operators
from fullspectrum_ext.ops.csr import (
    CsrTranspose,
    csr_from_dense,
    csr_row_indices,
    csr_to_dense,
    csr_transpose,
)
from fullspectrum_ext.ops.dense_grad_topk import (
    TopGradients,
    conv2d_dense_grad_topk,
    dense_grad_topk,
)
from fullspectrum_ext.ops.keep_masked import keep_masked_
from fullspectrum_ext.ops.projection import project_scores_
from fullspectrum_ext.ops.random_places import random_places
from fullspectrum_ext.ops.regular_subgraphs import RegularSubgraph, regular_subgraphs
from fullspectrum_ext.ops.singular_values import (
    SingularValues,
    singular_values,
    subgraph_singular_values,
)
from fullspectrum_ext.ops.sparse_conv2d import sparse_conv2d
from fullspectrum_ext.ops.sparse_linear import sparse_linear
from fullspectrum_ext.ops.topk_scores import Topology, topk_masks, topk_topologies
from fullspectrum_ext.ops.topology_update import (
    TopologyUpdate,
    carry,
    smallest_magnitudes,
    topology_update,
)
