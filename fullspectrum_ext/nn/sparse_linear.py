"""The truly sparse linear layer."""

from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks
from fullspectrum_ext.nn.topology import UpdatesTopology, set_values
from fullspectrum_ext.ops import (
    CsrTranspose,
    csr_from_dense,
    csr_to_dense,
    csr_transpose,
    sparse_linear,
)

# state_dict holds the first two beside `values`; the others follow from them.
_TOPOLOGY = ("crow_indices", "col_indices")
_TRANSPOSED = ("ccol_indices", "row_indices", "permutation")


class SparseLinear(UpdatesTopology):
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
    """

    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    permutation: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        crow_indices: Tensor,
        col_indices: Tensor,
        values: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        shape = (out_features, in_features)
        _checks.check_csr(crow_indices, col_indices, shape, values, validate=True)
        if bias is not None:
            _checks.check_tensor("bias", bias)
            _checks.check_same("bias", bias, "values", values)
            if bias.shape != (out_features,):
                raise ValueError(f"bias: expected shape ({out_features},), got {tuple(bias.shape)}")
        self.in_features = in_features
        self.out_features = out_features
        self.values = _parameter(values)
        self.bias = None if bias is None else _parameter(bias)
        for name in (*_TOPOLOGY, *_TRANSPOSED):
            self.register_buffer(name, None, persistent=name in _TOPOLOGY)
        self._set_topology(crow_indices, col_indices)

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

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return self.values.numel()

    @property
    def transpose(self) -> CsrTranspose:
        """The index of the transposed weight matrix."""
        return CsrTranspose(self.ccol_indices, self.row_indices, self.permutation)

    @property
    def columns(self) -> int:
        """Number of columns of the weight matrix."""
        return self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[..., in_features]``."""
        return sparse_linear(
            x,
            self.values,
            self.crow_indices,
            self.col_indices,
            self.out_features,
            self.bias,
            transpose=self.transpose,
        )

    def to_dense(self) -> Tensor:
        """Return the weight as a dense matrix, ``[out_features, in_features]``. Differentiable."""
        shape = (self.out_features, self.in_features)
        return csr_to_dense(self.crow_indices, self.col_indices, self.values, shape)

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        positions = self.in_features * self.out_features
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.nnz / max(positions, 1):.4g}, bias={self.bias is not None}"
        )

    def _set_topology(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        transpose = csr_transpose(crow_indices, col_indices, self.in_features)
        fields = (crow_indices, col_indices, *transpose)
        for name, new in zip((*_TOPOLOGY, *_TRANSPOSED), fields, strict=True):
            old = getattr(self, name)
            if old is not None and (old.shape, old.dtype) == (new.shape, new.dtype):
                old.copy_(new)  # the same memory
            else:
                setattr(self, name, new.detach().clone())

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save the number of columns too: the CSR fields do not tell it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "in_features"] = torch.tensor(self.in_features, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load, taking over the topology of ``state_dict`` with its number of weights."""
        state_dict = dict(state_dict)
        columns = int(state_dict.pop(prefix + "in_features", self.in_features))
        if columns != self.in_features:
            error_msgs.append(f"{prefix}in_features: expected {self.in_features}, got {columns}")
            return
        names = [prefix + name for name in (*_TOPOLOGY, "values")]
        if all(name in state_dict for name in names):
            crow_indices, col_indices, values = (state_dict[name] for name in names)
            shape = (self.out_features, self.in_features)
            try:
                _checks.check_csr(crow_indices, col_indices, shape, values, validate=True)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix.rstrip('.') or 'SparseLinear'}: {error}")
                return
            device = self.values.device
            self._set_topology(crow_indices.to(device), col_indices.to(device))
            if values.shape != self.values.shape:
                set_values(self.values, self.values.new_empty(values.shape))
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())
