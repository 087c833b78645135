"""What the truly sparse layers share: a weight matrix in CSR form as parameter and buffers."""

from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks
from fullspectrum_ext.nn.topology import UpdatesTopology, set_values
from fullspectrum_ext.ops import CsrTranspose, csr_to_dense, csr_transpose

# state_dict holds the first two beside `values`; the others follow from them.
_TOPOLOGY = ("crow_indices", "col_indices")
_TRANSPOSED = ("ccol_indices", "row_indices", "permutation")


class SparseLayer(UpdatesTopology):
    """A layer whose weight, as a matrix with one row an output, is stored in CSR form.

    ``values`` is an ordinary parameter with one element a stored weight. The topology is two
    buffers, saved in ``state_dict``; the index of the transposed matrix is kept beside them and is
    computed anew only when the topology changes.

    All five are integers that must not be averaged: ``AveragedModel`` leaves them alone as long as
    its ``use_buffers`` is False, which is its default. The statistics of batch normalisation come
    from ``torch.optim.swa_utils.update_bn`` then.

    Args:
        weight_shape: Shape of the dense weight, outputs first.
        crow_indices: Start of each row, int32 or int64, ``[outputs + 1]``.
        col_indices: Column of each stored weight, rising within each row, ``[nnz]``.
        values: Stored weights, ``[nnz]``. A Parameter is used as it is.
        bias: ``[outputs]``, or None. A Parameter is used as it is.

    Raises:
        TypeError: If an argument has a wrong type or dtype.
        ValueError: If the fields are not a CSR matrix of this shape, or ``bias`` does not fit.
    """

    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    permutation: Tensor

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        crow_indices: Tensor,
        col_indices: Tensor,
        values: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight_shape = torch.Size(weight_shape)
        _checks.check_csr(crow_indices, col_indices, self._matrix, values, validate=True)
        if bias is not None:
            _checks.check_tensor("bias", bias)
            _checks.check_same("bias", bias, "values", values)
            if bias.shape != weight_shape[:1]:
                raise ValueError(
                    f"bias: expected shape ({weight_shape[0]},), got {tuple(bias.shape)}"
                )
        self.values = _parameter(values)
        self.bias = None if bias is None else _parameter(bias)
        for name in (*_TOPOLOGY, *_TRANSPOSED):
            self.register_buffer(name, None, persistent=name in _TOPOLOGY)
        self._set_topology(crow_indices, col_indices)

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """Share of the dense weight that is stored."""
        return self.nnz / max(self.weight_shape.numel(), 1)

    @property
    def transpose(self) -> CsrTranspose:
        """The index of the transposed weight matrix."""
        return CsrTranspose(self.ccol_indices, self.row_indices, self.permutation)

    def to_dense(self) -> Tensor:
        """Return the weight as a dense tensor of ``weight_shape``. Differentiable."""
        dense = csr_to_dense(self.crow_indices, self.col_indices, self.values, self._matrix)
        return dense.view(self.weight_shape)

    @property
    def columns(self) -> int:
        """Number of columns of the weight matrix."""
        return self.weight_shape[1:].numel()

    @property
    def _matrix(self) -> tuple[int, int]:
        return self.weight_shape[0], self.columns

    def _size_entry(self) -> tuple[str, int | list[int]]:
        """Return the name and the content of state_dict's entry for what the CSR fields leave open.

        Subclasses say it: the number of columns, or the whole shape.
        """
        raise NotImplementedError

    def _set_topology(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        transpose = csr_transpose(crow_indices, col_indices, self.columns)
        fields = (crow_indices, col_indices, *transpose)
        for name, new in zip((*_TOPOLOGY, *_TRANSPOSED), fields, strict=True):
            old = getattr(self, name)
            if old is not None and _kind(old) == _kind(new):
                old.copy_(new)  # the same memory
            else:
                setattr(self, name, new.detach().clone())

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save the size too: the CSR fields do not tell it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        name, size = self._size_entry()
        destination[prefix + name] = torch.tensor(size, device="cpu")

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
        name, size = self._size_entry()
        found = state_dict.pop(prefix + name, None)
        if found is not None and found.tolist() != size:
            error_msgs.append(f"{prefix}{name}: expected {size}, got {found.tolist()}")
            return
        names = [prefix + name for name in (*_TOPOLOGY, "values")]
        missing = [name for name in names if name not in state_dict]
        if missing and any(prefix + name in state_dict for name in _TOPOLOGY):
            # even where strict is False: half a topology with the other half of another is no CSR
            missing_keys.extend(missing)
            error_msgs.append(f"{', '.join(names)} go together, missing: {', '.join(missing)}")
            return
        if not missing:
            crow_indices, col_indices, values = (state_dict[name] for name in names)
            try:
                _checks.check_csr(crow_indices, col_indices, self._matrix, values, validate=True)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
                return
            assigned = local_metadata.get("assign_to_params_buffers", False)
            device = (values if assigned else self.values).device
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


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())
