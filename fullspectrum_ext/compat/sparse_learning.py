"""``Masking`` as the sparse learning library has it, where ITOP's and GraNet's come from.

Written anew after its interface, https://github.com/TimDettmers/sparse_learning.
"""

import argparse

from torch import nn, optim

from fullspectrum_ext._layers import Patterns, prunable_weights
from fullspectrum_ext.compat.exploration import (
    NEVER,
    REDISTRIBUTIONS,
    Exploration,
    MomentumExploration,
    Scheduled,
)
from fullspectrum_ext.compat.masking import CosineDecay, Decay, MaskingBase
from fullspectrum_ext.compat.modes import check_mode, momentum_of

__all__ = ["CosineDecay", "LinearDecay", "Masking", "add_sparse_args"]

_INITS = {"constant": "uniform", "linear": "erk", "resume": "nonzero"}
_INSTEAD = {
    "global_magnitude": "fullspectrum_ext.DynamicSparsity(..., 'dsr') drops over all layers",
    "momentum_neuron": "'momentum' looks at the same momentum",
    "global_momentum_growth": "'momentum' with redistribution 'momentum' grows over all layers",
}


def add_sparse_args(parser: argparse.ArgumentParser) -> None:
    """Add the options of sparse training, with the names and defaults of the original.

    Args:
        parser: Gets them.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_sparse_args(parser)
        >>> parser.parse_args([]).growth
        'momentum'
    """
    add = parser.add_argument
    add("--growth", default="momentum", help="momentum or random")
    add("--prune", default="magnitude", help="magnitude or SET")
    add("--redistribution", default="momentum", help=", ".join(REDISTRIBUTIONS))
    add("--prune-rate", type=float, default=0.5, help="fraction of a layer dropped at first")
    add("--density", type=float, default=0.05, help="fraction of the weights kept")
    add("--dense", action="store_true", help="train a dense network")
    add("--verbose", action="store_true", help="print the numbers of weights at each update")


class LinearDecay:
    """Lets the rate fall to 0 by the same amount each step.

    Args:
        prune_rate: At first.
        T_max: Steps until the end; after it the rate stays 0.

    Example:
        >>> decay = LinearDecay(0.5, 100)
        >>> for _ in range(50):
        ...     decay.step()
        >>> decay.get_dr()
        0.25
    """

    def __init__(self, prune_rate: float, T_max: float) -> None:
        self.prune_rate, self.T_max, self.steps = prune_rate, T_max, 0

    def step(self) -> None:
        """Count a step."""
        self.steps += 1

    def get_dr(self, prune_rate: float | None = None) -> float:
        """Return the rate; what it was before does not matter."""
        return self.prune_rate * max(1 - self.steps / self.T_max, 0.0)


class Masking(MaskingBase):
    """Sparse momentum and its variants; ``step()`` steps the optimizer too.

    The masks change at each :meth:`at_end_of_epoch`, and every ``prune_every_k_steps`` steps.

    Args:
        optimizer: Trains the model; made before.
        prune_rate_decay: A :class:`CosineDecay` or :class:`LinearDecay`.
        prune_rate: Of a layer's weights, dropped at the first update.
        prune_mode: ``"magnitude"`` or ``"SET"``.
        growth_mode: ``"momentum"`` or ``"random"``.
        redistribution_mode: What layers grow in proportion to: ``"momentum"``, ``"magnitude"``,
            ``"nonzero"``; ``"none"``: each what it lost.
        prune_every_k_steps: Steps from one update to the next; 0 for none but at the ends of
            epochs.
        verbose: Print the numbers of weights at each update.
        fp16: False; ``torch.autocast`` needs nothing here.

    Raises:
        ValueError: If a mode has no counterpart.
        TypeError: If a mode is a function.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> mask = Masking(optimizer, CosineDecay(0.5, 20))
        >>> mask.add_module(model, density=0.1)
        >>> for _ in range(2):
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(8, 64)).square().mean().backward()
        ...         mask.step()
        ...     mask.at_end_of_epoch()
        >>> mask.masks
        MaskSet(2 layers, 237 of 2368 weights kept, sparsity 0.8999)
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        prune_rate_decay: Decay,
        prune_rate: float = 0.5,
        prune_mode: str = "magnitude",
        growth_mode: str = "momentum",
        redistribution_mode: str = "momentum",
        prune_every_k_steps: int = 0,
        verbose: bool = False,
        fp16: bool = False,
    ) -> None:
        if fp16:
            raise ValueError("fp16: expected False; train under torch.autocast in its place")
        check_mode("prune_mode", prune_mode, ("magnitude", "SET"), _INSTEAD)
        check_mode("growth_mode", growth_mode, ("momentum", "random"), _INSTEAD)
        check_mode("redistribution_mode", redistribution_mode, REDISTRIBUTIONS, {})
        every = prune_every_k_steps or NEVER
        method: Scheduled
        if "momentum" in {growth_mode, redistribution_mode}:
            method = MomentumExploration(
                every=every,
                fraction=prune_rate,
                death=prune_mode,
                growth=growth_mode,
                redistribution=redistribution_mode,
                momentum=momentum_of(optimizer),
            )
        else:
            method = Exploration(
                every=every,
                fraction=prune_rate,
                death=prune_mode,
                redistribution=redistribution_mode,
            )
        super().__init__(optimizer, prune_rate, prune_rate_decay, method, verbose=verbose)

    @property
    def prune_rate(self) -> float:
        """The fraction of a layer's weights that an update drops now."""
        return self._rate

    def add_module(
        self,
        module: nn.Module,
        density: float,
        sparse_init: str = "constant",
        remove_param_names: tuple[str, ...] = (),
        *,
        backend: str = "masked",
    ) -> None:
        """Put masks on a model, in place.

        Args:
            module: The model.
            density: Fraction of the weights to keep, exactly.
            sparse_init: ``"constant"``: the same in each layer; ``"linear"``: the more, the larger
                the sum of a layer's sizes, as the Erdős–Rényi-kernel rule does; ``"resume"``: the
                weights that are not zero.
            remove_param_names: Layers with one of these in the names of their weights stay dense.
            backend: ``"masked"`` keeps every parameter the same object. ``"sparse"`` stores the
                kept weights only, and lets the optimizer train these; what else holds parameters,
                an average say, must be made afterwards. Not with several processes.

        Raises:
            ValueError: If an argument is out of range, or the optimizer does not train the model.
        """
        check_mode("sparse_init", sparse_init, list(_INITS), {})
        exclude: Patterns = [
            name
            for name, _ in prunable_weights(module)
            if any(part in name for part in remove_param_names)
        ]
        self._add(module, _INITS[sparse_init], density, exclude, backend)
