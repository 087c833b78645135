"""The native operators, with their derivatives."""

from fullspectrum_ext.ops.regular_subgraphs import RegularSubgraph, regular_subgraphs
from fullspectrum_ext.ops.singular_values import (
    SingularValues,
    singular_values,
    subgraph_singular_values,
)
