"""Changing which weights a sparse layer stores, while it is being trained."""

from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext import ops
from fullspectrum_ext.ops import TopologyUpdate, carry

# Where an optimizer's state does not begin at 0: the option of its parameter group that says so.
_INITIAL_STATE = {"sum": "initial_accumulator_value", "step_size": "lr"}  # Adagrad, Rprop


class UpdatesTopology(nn.Module):
    """A layer whose weight is a CSR matrix: ``values``, ``crow_indices`` and ``col_indices``.

    A subclass says how many columns the matrix has, and takes over a new topology.
    """

    values: nn.Parameter
    crow_indices: Tensor
    col_indices: Tensor

    @property
    def columns(self) -> int:
        """Number of columns of the weight matrix."""
        raise NotImplementedError

    def _set_topology(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        raise NotImplementedError

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
                ones: it is stored anew then.
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
        group = None if optimizer is None else _group_of(values, optimizer)
        update = ops.topology_update(self.crow_indices, self.col_indices, drop, grow, self.columns)
        if optimizer is not None and group is not None:
            state = optimizer.state.get(values, {})
            for name, held in state.items():
                if isinstance(held, Tensor) and held.shape == values.shape:
                    fill = float(group.get(_INITIAL_STATE.get(name, name), 0.0))
                    state[name] = _replaced(held, carry(held, update.source, fill))
        self._set_topology(update.crow_indices, update.col_indices)
        set_values(values, carry(values.detach(), update.source))
        return update


def set_values(values: nn.Parameter, new: Tensor) -> None:
    """Give a parameter other values, perhaps of another number, and no gradient.

    Args:
        values: Stays the same object, and in the same memory where the number stays the same.
        new: The values, of the same dtype and device.
    """
    values.grad = None
    if values.shape == new.shape:
        with torch.no_grad():
            values.copy_(new)
        return
    # A graph that is still alive, like that of the last loss, holds torch's record of how long the
    # gradient is. torch drops the record only where the dtype changes.
    other = torch.float32 if values.dtype == torch.float64 else torch.float64
    values.data = torch.empty(0, dtype=other, device=values.device)
    values.data = new


def _group_of(values: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer: expected one that holds its state by weight, got LBFGS")
    for group in optimizer.param_groups:
        if any(parameter is values for parameter in group["params"]):
            return group
    raise ValueError("optimizer: expected one that trains the layer's values, this one does not")


def _replaced(old: Tensor, new: Tensor) -> Tensor:
    return old.copy_(new) if old.shape == new.shape else new
