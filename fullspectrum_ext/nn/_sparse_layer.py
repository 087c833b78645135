"""What the truly sparse layers share: a weight matrix in CSR form as parameter and buffers."""

from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks
from fullspectrum_ext.nn.active import active_only, room_for_active
from fullspectrum_ext.nn.topology import carry_state, carry_values, set_values
from fullspectrum_ext.ops import (
    CsrTranspose,
    TopologyUpdate,
    carry,
    csr_to_dense,
    csr_transpose,
    topology_update,
)

# state_dict holds the first two beside `values`; the others follow from them.
_TOPOLOGY = ("crow_indices", "col_indices")
_TRANSPOSED = ("ccol_indices", "row_indices", "permutation")


class SparseLayer(nn.Module):
    """A layer whose weight, as a matrix with one row an output, is stored in CSR form.

    ``values`` is an ordinary parameter with one element a stored weight. The topology is two
    buffers, saved in ``state_dict``; the index of the transposed matrix is kept beside them and is
    computed anew only when the topology changes.

    All five are integers that must not be averaged: ``AveragedModel`` leaves them alone as long as
    its ``use_buffers`` is False, which is its default. The statistics of batch normalisation come
    from ``torch.optim.swa_utils.update_bn`` then. Whoever writes to them, with other numbers than
    they hold, makes the layer's next call a RuntimeError; :meth:`update_topology` is the way to
    change them.

    Where the buffer ``active`` is set (Top-KAST does), the layer computes with those stored weights
    only that it marks, and the others are trained all the same.

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

    values: nn.Parameter
    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    permutation: Tensor
    active: Tensor | None
    _written: tuple[int, ...]

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
        self.register_buffer("active", None)
        self._set_topology(crow_indices, col_indices)

    @property
    def used_values(self) -> Tensor:
        """The stored weights, zero where they are not active. Differentiable, straight through."""
        return active_only(self.values, self.active)

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
        self._check_unchanged()
        return CsrTranspose(self.ccol_indices, self.row_indices, self.permutation)

    def to_dense(self) -> Tensor:
        """Return the weight that the layer computes with, of ``weight_shape``. Differentiable."""
        values = self.used_values
        dense = csr_to_dense(self.crow_indices, self.col_indices, values, self._matrix)
        return dense.view(self.weight_shape)

    def update_topology(
        self, drop: Tensor, grow: Tensor, optimizer: torch.optim.Optimizer | None = None
    ) -> TopologyUpdate:
        """Drop some stored weights and store others, which begin at 0.

        Kept weights keep their values and, in ``optimizer``, all state that is held by weight
        (momenta, second moments, averages); new ones get the state of a new parameter. The
        parameter stays the same object, its gradient is set to None, and nothing else changes.
        Where as many weights come as go, all is done in the same memory; a graph that was recorded
        before can then not be run backward any more, which torch says.

        Copies of the layer (an average of its weights, the replicas of data parallel training)
        are updated by the same call with the same arguments.

        Args:
            drop: Indices into ``values`` of the weights to drop, rising; int64. See
                :func:`fullspectrum_ext.ops.smallest_magnitudes`.
            grow: Flat positions ``row * columns + column`` in the weight matrix, rising; int64. See
                :func:`fullspectrum_ext.ops.dense_grad_topk`. A position may be among the dropped
                ones: that weight stays as it is then.
            optimizer: The one that trains ``values``.

        Returns:
            The update, with which :func:`fullspectrum_ext.ops.carry` moves what else is held by
            weight.

        Raises:
            TypeError: If an argument has a wrong type or dtype.
            ValueError: If indices are out of range, do not rise, or a grown position is stored
                already; or if ``optimizer`` does not train ``values``, or holds state that cannot
                be told apart by weight (LBFGS). Nothing has changed then.

        Example:
            >>> import torch
            >>> from fullspectrum_ext.nn import SparseLinear
            >>> weight = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]])
            >>> layer = SparseLinear.from_dense(weight, weight != 0)
            >>> _ = layer.update_topology(drop=torch.tensor([0]), grow=torch.tensor([4]))
            >>> layer.col_indices.tolist(), layer.values.tolist()
            ([0, 1, 2], [3.0, 0.0, 4.0])
        """
        values = self.values
        update = topology_update(self.crow_indices, self.col_indices, drop, grow, self.columns)
        if optimizer is not None:
            carry_state(values, optimizer, update.source)
        self._set_topology(update.crow_indices, update.col_indices)
        if self.active is not None:
            self.active = carry(self.active, update.source, 1.0)
        carry_values(values, update.source)
        return update

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

    def _check_unchanged(self) -> None:
        """Refuse to go on where somebody has written other numbers into the topology.

        torch counts what writes to a tensor. Only where the count has moved are the numbers looked
        at: data parallel training writes to buffers what they hold already.

        Raises:
            RuntimeError: If the indices do not agree with each other any more.
        """
        if torch.compiler.is_compiling():
            return
        written = self._count_writes()
        if written == self._written or torch._C._are_functorch_transforms_active():
            return
        crow_indices, col_indices = self.crow_indices, self.col_indices
        try:
            _checks.check_csr(crow_indices, col_indices, self._matrix, self.values, validate=True)
            again = csr_transpose(crow_indices, col_indices, self.columns)
            pairs = zip(map(self.get_buffer, _TRANSPOSED), again, strict=True)
            agree = all(torch.equal(held, new) for held, new in pairs)
        except ValueError:
            agree = False
        if not agree:
            raise RuntimeError(
                f"{type(self).__name__}: something has written to its indices, and they are no "
                "topology any more. AveragedModel(use_buffers=True) averages indices: leave "
                "use_buffers False. To change a topology call update_topology"
            )
        self._written = written

    def _count_writes(self) -> tuple[int, ...]:
        """Say which tensors the indices are, and how often they were written to."""
        col_indices, permutation = self.col_indices, self.permutation
        if col_indices.is_inference():  # those are not counted
            return id(col_indices), id(permutation)
        return id(col_indices), col_indices._version, id(permutation), permutation._version

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin to count anew in a copy."""
        super().__setstate__(state)
        self._written = self._count_writes()

    def _apply(self, *args: Any, **kwargs: Any) -> "SparseLayer":
        super()._apply(*args, **kwargs)
        self._written = self._count_writes()
        return self

    def _set_topology(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        transpose = csr_transpose(crow_indices, col_indices, self.columns)
        fields = (crow_indices, col_indices, *transpose)
        for name, new in zip((*_TOPOLOGY, *_TRANSPOSED), fields, strict=True):
            old = getattr(self, name)
            if old is not None and _kind(old) == _kind(new):
                old.copy_(new)  # the same memory
            else:
                setattr(self, name, new.detach().clone())
        self._written = self._count_writes()

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
            self.active = room_for_active(state_dict.get(prefix + "active"), self.values)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        self._written = self._count_writes()


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())
