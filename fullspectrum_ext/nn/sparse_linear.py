"""The truly sparse linear layer."""

from torch import Tensor

from fullspectrum_ext.nn._sparse_layer import SparseLayer
from fullspectrum_ext.ops import csr_from_dense, sparse_linear


class SparseLinear(SparseLayer):
    r"""A linear layer :math:`y = x W^\top + b` whose weight matrix is stored in CSR form.

    Memory and time follow the number of stored weights, forward, backward and in the optimizer:
    ``values`` is an ordinary parameter with one element a stored weight. The topology is two
    buffers, saved in ``state_dict``; the index of the transposed matrix is kept beside them and is
    computed anew only when the topology changes.

    Args:
        in_features: Columns of :math:`W`.
        out_features: Rows of :math:`W`.
        crow_indices: Start of each row, int32 or int64, ``[out_features + 1]``.
        col_indices: Column of each stored weight, rising within each row, ``[nnz]``.
        values: Stored weights, ``[nnz]``. A Parameter is used as it is.
        bias: ``[out_features]``, or None. A Parameter is used as it is.

    Raises:
        TypeError: If an argument has a wrong type or dtype.
        ValueError: If the fields are not a CSR matrix of this shape, or ``bias`` does not fit.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]])
        >>> layer = SparseLinear.from_dense(weight, weight != 0)
        >>> layer
        SparseLinear(in_features=3, out_features=2, nnz=3, density=0.5, bias=False)
        >>> layer(torch.ones(3)).tolist()
        [2.0, 7.0]
    """  # noqa: DOC502

    def __init__(
        self,
        in_features: int,
        out_features: int,
        crow_indices: Tensor,
        col_indices: Tensor,
        values: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__((out_features, in_features), crow_indices, col_indices, values, bias)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> "SparseLinear":
        """Store the entries of ``weight`` under ``mask``, zeros among them included.

        Args:
            weight: Dense weight, ``[out_features, in_features]``; it is copied.
            mask: Bool tensor of the same shape.
            bias: ``[out_features]``, or None. A Parameter is used as it is.

        Returns:
            The layer, on the device of ``weight``.
        """
        crow_indices, col_indices, values = csr_from_dense(weight.detach(), mask)
        rows, cols = weight.shape
        return cls(cols, rows, crow_indices, col_indices, values, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[..., in_features]``."""
        return sparse_linear(
            x,
            self.used_values,
            self.crow_indices,
            self.col_indices,
            self.out_features,
            self.bias,
            transpose=self.transpose,
        )

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.density:.4g}, bias={self.bias is not None}"
        )

    def _size_entry(self) -> tuple[str, int]:
        return "in_features", self.in_features
