"""One view on the layers whose topology changes: truly sparse ones, and dense ones with a mask."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fullspectrum_ext._layers import join
from fullspectrum_ext.dynamic.gradients import GradientTap
from fullspectrum_ext.nn._sparse_layer import SparseLayer
from fullspectrum_ext.nn.masked import Masked, MaskedConv2d, MaskedLinear
from fullspectrum_ext.nn.sparse_conv2d import SparseConv2d
from fullspectrum_ext.nn.topology import reset_state
from fullspectrum_ext.ops import (
    TopGradients,
    csr_from_dense,
    random_places,
    smallest_magnitudes,
    topology_update,
)


class DynamicLayer(ABC):
    """A weight matrix, one row an output, of which some entries are kept, and what is known of it.

    The kept weights come in row-major order, whichever way the layer stores them, so that a method
    does the same with both kinds of layers.

    Attributes:
        name: The weight's name in the dense model, ``"0.weight"``.
        module: The layer.
        weight: The parameter that holds them.
        weight_shape: Shape of the weight in the dense model.
        shape: Rows and columns of the matrix.
        tap: What has been seen of its inputs and of its output's gradients since the last step.
    """

    def __init__(
        self, name: str, module: nn.Module, weight: nn.Parameter, weight_shape: torch.Size
    ) -> None:
        self.name, self.module, self.weight = name, module, weight
        self.weight_shape = weight_shape
        self.shape = weight_shape[0], weight_shape[1:].numel()
        self.tap: GradientTap | None = None

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """The kept weights, detached, ``[nnz]``."""

    @property
    @abstractmethod
    def gradient(self) -> Tensor | None:
        """The gradient of the kept weights, ``[nnz]``; None where there is none."""

    @abstractmethod
    def add_to_gradient(self, more: Tensor) -> None:
        """Add to the gradient of the kept weights, ``[nnz]``."""

    @abstractmethod
    def put(self, positions: Tensor, values: Tensor) -> None:
        """Give kept weights other values.

        Args:
            positions: Their flat positions in the matrix, rising.
            values: What they get.
        """

    @property
    @abstractmethod
    def active(self) -> Tensor | None:
        """Which of the kept weights the layer computes with, bool, ``[nnz]``; None: with all."""

    @active.setter
    @abstractmethod
    def active(self, active: Tensor | None) -> None: ...

    @property
    @abstractmethod
    def topology(self) -> tuple[Tensor, Tensor]:
        """``crow_indices`` and ``col_indices`` of the kept weights."""

    @abstractmethod
    def change(self, drop: Tensor, grow: Tensor, optimizer: torch.optim.Optimizer | None) -> int:
        """Drop some of the kept weights and keep others, which begin at 0.

        Args:
            drop: Indices into :attr:`values`, rising.
            grow: Flat positions in the matrix, rising, none of them kept. A weight that is dropped
                and grown stays as it is.
            optimizer: The one that trains them, whose state follows; None where there is none.

        Returns:
            How many come that were not there.
        """

    @property
    def nnz(self) -> int:
        """Number of kept weights."""
        return self.topology[1].numel()

    @property
    def numel(self) -> int:
        """Number of weights, kept or not."""
        return self.shape[0] * self.shape[1]

    @property
    def positions(self) -> Tensor:
        """Flat positions of the kept weights in the matrix, rising; int64, ``[nnz]``."""
        crow_indices, col_indices = self.topology
        rows, columns = self.shape
        starts = torch.arange(rows, device=col_indices.device) * columns
        nnz = col_indices.numel()
        return starts.repeat_interleave(crow_indices.diff(), output_size=nnz).add_(col_indices)

    def staying(self, drop: Tensor) -> Tensor:
        """Return the flat positions of the kept weights that are not dropped, rising.

        Args:
            drop: Indices into :attr:`values`, rising.
        """
        kept = self.positions
        stays = torch.ones_like(kept, dtype=torch.bool)
        stays[drop] = False
        return kept[stays]

    def after_drop(self, drop: Tensor) -> tuple[Tensor, Tensor]:
        """Return the topology without some of the kept weights.

        Args:
            drop: Indices into :attr:`values`, rising.

        Returns:
            ``crow_indices`` and ``col_indices``.
        """
        nothing = drop.new_empty(0)
        update = topology_update(*self.topology, drop, nothing, self.shape[1])
        return update.crow_indices, update.col_indices

    def smallest(self, scores: Tensor, count: int) -> Tensor:
        """Return the kept weights of the smallest scores; of equal ones, the last.

        Args:
            scores: A score for each kept weight, not negative.
            count: How many.

        Returns:
            Indices into :attr:`values`, rising.
        """
        return smallest_magnitudes(scores, count)

    def random_places(
        self, drop: Tensor, count: int, generator: torch.Generator, *, again: bool = True
    ) -> Tensor:
        """Draw places where no weight is kept, each as likely as any other.

        Args:
            drop: The weights that are dropped first.
            count: How many.
            generator: What to draw from; on the CPU.
            again: Whether a weight that is dropped may be drawn.

        Returns:
            Flat positions, rising, exactly ``count``.
        """
        topology = self.after_drop(drop) if again else self.topology
        return random_places(*topology, self.shape[1], count, _seed(generator))

    def steepest_places(self, drop: Tensor, count: int) -> Tensor:
        """Return where the dense gradient is largest among the weights that are not kept.

        Args:
            drop: The weights that are dropped first; they may be found again.
            count: How many.

        Returns:
            Flat positions, rising, exactly ``count``; of equal gradients the first.
        """
        return self.steepest(drop, count).positions

    def steepest(self, drop: Tensor, count: int) -> TopGradients:
        """Return the largest of the dense gradient among the weights that are not kept.

        The gradient is never held: :func:`fullspectrum_ext.ops.dense_grad_topk` finds them.

        Args:
            drop: The weights that are dropped first; they may be found again.
            count: How many.

        Returns:
            Flat positions, rising, exactly ``count``, of equal gradients the first; and what the
            gradient is there.
        """
        assert self.tap is not None
        return self.tap.largest(*self.after_drop(drop), count)


class SparseDynamicLayer(DynamicLayer):
    """A truly sparse layer."""

    module: SparseLayer

    def __init__(self, name: str, module: SparseLayer) -> None:
        super().__init__(name, module, module.values, module.weight_shape)
        self.tap = GradientTap(module, isinstance(module, SparseConv2d), self.shape)

    @property
    def values(self) -> Tensor:
        """The kept weights."""
        return self.weight.detach()

    @property
    def gradient(self) -> Tensor | None:
        """Their gradient."""
        return self.weight.grad

    def add_to_gradient(self, more: Tensor) -> None:
        """Add to their gradient."""
        assert self.weight.grad is not None
        self.weight.grad.add_(more)

    def put(self, positions: Tensor, values: Tensor) -> None:
        """Give some of them other values."""
        self.values[torch.searchsorted(self.positions, positions)] = values

    @property
    def active(self) -> Tensor | None:
        """Which of them the layer computes with."""
        return self.module.active

    @active.setter
    def active(self, active: Tensor | None) -> None:
        self.module.active = None if active is None else active.clone()

    @property
    def topology(self) -> tuple[Tensor, Tensor]:
        """Where they stand."""
        return self.module.crow_indices, self.module.col_indices

    def change(self, drop: Tensor, grow: Tensor, optimizer: torch.optim.Optimizer | None) -> int:
        """Change the topology; values and the optimizer's state follow."""
        return self.module.update_topology(drop, grow, optimizer).added


class MaskedDynamicLayer(DynamicLayer):
    """A dense weight under a mask."""

    module: Masked

    def __init__(self, name: str, module: Masked, weight: nn.Parameter, mask: Tensor) -> None:
        super().__init__(name, module, weight, weight.shape)
        self.module, self.mask = module, mask
        self.parameter = name.rpartition(".")[2]
        if isinstance(module, (MaskedLinear, MaskedConv2d)):
            self.tap = GradientTap(module, isinstance(module, MaskedConv2d), self.shape)

    @property
    def values(self) -> Tensor:
        """The kept weights."""
        return self.weight.detach()[self.mask]

    @property
    def gradient(self) -> Tensor | None:
        """Their gradient."""
        return None if self.weight.grad is None else self.weight.grad[self.mask]

    def add_to_gradient(self, more: Tensor) -> None:
        """Add to their gradient."""
        assert self.weight.grad is not None
        self.weight.grad[self.mask] += more

    def put(self, positions: Tensor, values: Tensor) -> None:
        """Give some of them other values."""
        self.weight.detach().view(-1)[positions] = values

    @property
    def active(self) -> Tensor | None:
        """Which of them the layer computes with."""
        active = self.module.active_of(self.parameter)
        return None if active is None else active[self.mask]

    @active.setter
    def active(self, active: Tensor | None) -> None:
        if active is not None:
            active = torch.zeros_like(self.mask).masked_scatter_(self.mask, active)
        self.module.set_active(active, self.parameter)

    @property
    def nnz(self) -> int:
        """Number of kept weights."""
        return int(self.mask.count_nonzero())

    @property
    def topology(self) -> tuple[Tensor, Tensor]:
        """Where they stand."""
        matrix = self.mask.view(self.shape)
        return csr_from_dense(matrix, matrix)[:2]

    def change(self, drop: Tensor, grow: Tensor, optimizer: torch.optim.Optimizer | None) -> int:
        """Change the mask; what is dropped is zero, and what is grown begins anew."""
        where = torch.zeros_like(self.mask)
        flat = where.view(-1)
        flat[self.positions[drop]] = True
        flat[grow] = flat[grow].logical_not_()  # what comes again stays as it is
        if optimizer is not None:
            reset_state(self.weight, optimizer, where)
        grown = int((where & ~self.mask).count_nonzero())
        self.mask.logical_xor_(where)
        with torch.no_grad():
            self.weight.masked_fill_(where, 0)
        self.weight.grad = None
        return grown


def dynamic_layers(model: nn.Module) -> dict[str, DynamicLayer]:
    """Find the layers of a model whose topology can change.

    Args:
        model: A model that :func:`fullspectrum_ext.sparsify` has made sparse.

    Returns:
        The weights' names in the dense model and the layers, in the model's order.
    """
    layers: dict[str, DynamicLayer] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, SparseLayer):
            name = join(prefix, "weight")
            layers[name] = SparseDynamicLayer(name, module)
        elif isinstance(module, Masked):
            for parameter, mask in module.masks.items():
                name, weight = join(prefix, parameter), module.get_parameter(parameter)
                layers[name] = MaskedDynamicLayer(name, module, weight, mask)
    return layers


def distinct(below: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` different numbers in ``[0, below)``.

    Args:
        below: How many numbers there are.
        count: How many to draw, at most as many.
        generator: What to draw from.

    Returns:
        The numbers, rising; every set of them is as likely as any other.
    """
    nothing = torch.zeros(2, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    return random_places(*nothing, below, count, _seed(generator))


def _seed(generator: torch.Generator) -> int:
    """Draw one number, whatever is then made of it: all layers draw alike."""
    return int(torch.randint(2**63 - 1, (), generator=generator))
