"""``Masking`` as the code of ITOP has it: ``from sparselearning.core import Masking, CosineDecay``.

Written anew after its interface, https://github.com/Shiweiliuiiiiiii/In-Time-Over-Parameterization.
"""

import argparse
from typing import Any

from torch import nn, optim

from fullspectrum_ext._layers import Patterns
from fullspectrum_ext.compat import masking
from fullspectrum_ext.compat.masking import Decay, MaskingBase
from fullspectrum_ext.compat.modes import check_args, check_mode, check_ratio, exploration

__all__ = ["CosineDecay", "LinearDecay", "Masking", "add_sparse_args"]

_INITS = {
    "ERK": "erk",
    "ER": "er",
    "uniform": "uniform",
    "lottery_ticket": "magnitude",
    "GMP": "uniform",
}


def add_sparse_args(parser: argparse.ArgumentParser) -> None:
    """Add the options of sparse training, with the names and defaults of the original.

    Args:
        parser: Gets them.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_sparse_args(parser)
        >>> parser.parse_args(["--sparse", "--growth", "gradient"]).density
        0.05
    """
    add = parser.add_argument
    add("--sparse", action="store_true", help="train a sparse network")
    add("--fix", action="store_true", help="keep the masks of the beginning")
    add("--sparse_init", default="ERK", help="ERK, ER, uniform, lottery_ticket or GMP")
    add("--growth", default="random", help="random, gradient or momentum")
    add("--death", default="magnitude", help="magnitude, SET or Taylor_FO")
    add("--redistribution", default="none", help="read by nothing, as in the original")
    add("--death-rate", type=float, default=0.5, help="fraction of a layer dropped at first")
    add("--density", type=float, default=0.05, help="fraction of the weights kept")
    add("--update_frequency", type=int, default=100, help="steps from one update to the next")
    add("--decay-schedule", default="cosine", help="cosine or linear")


class CosineDecay(masking.CosineDecay):
    """The same under the original's name of the first argument.

    Args:
        death_rate: At first.
        T_max: Steps until the end.
        eta_min: At the end, and after it.
        last_epoch: The step to begin behind.

    Example:
        >>> CosineDecay(death_rate=0.5, T_max=100).get_dr()
        0.5
    """

    def __init__(
        self, death_rate: float, T_max: float, eta_min: float = 0.005, last_epoch: int = -1
    ) -> None:
        super().__init__(death_rate, T_max, eta_min, last_epoch)


class LinearDecay:
    """Multiplies the rate by a factor every so many steps.

    Args:
        death_rate: At first; the rate itself is handed to :meth:`get_dr`.
        factor: What it is multiplied by.
        frequency: Steps from one time to the next.

    Example:
        >>> decay = LinearDecay(0.5, factor=0.9, frequency=1)
        >>> decay.step()
        >>> decay.get_dr(0.5)
        0.45
    """

    def __init__(self, death_rate: float, factor: float = 0.99, frequency: int = 600) -> None:
        self.factor, self.frequency, self.steps = factor, frequency, 0

    def step(self) -> None:
        """Count a step."""
        self.steps += 1

    def get_dr(self, death_rate: float) -> float:
        """Return the rate after this step, given the one before."""
        return death_rate * (self.factor if self.steps % self.frequency == 0 else 1)


class Masking(MaskingBase):
    """Sparse training by SET or RigL in the manner of ITOP; ``step()`` steps the optimizer too.

    Args:
        optimizer: Trains the model; made before.
        death_rate: Of a layer's weights, dropped at the first update.
        growth_death_ratio: 1; the original does not read it.
        death_rate_decay: A :class:`CosineDecay`, or None for a constant rate.
        death_mode: ``"magnitude"``, ``"SET"`` or ``"Taylor_FO"``.
        growth_mode: ``"random"``, ``"gradient"`` or ``"momentum"``.
        redistribution_mode: Read by nothing, as in the original: a layer grows what it loses.
        threshold: Read by nothing, as in the original.
        args: Has ``update_frequency``, steps from one update to the next, and ``fix``, which keeps
            the masks: the options of :func:`add_sparse_args`.

    Raises:
        ValueError: If a mode has no counterpart, or ``args`` is missing.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> parser = argparse.ArgumentParser()
        >>> add_sparse_args(parser)
        >>> args = parser.parse_args(["--update_frequency", "10", "--growth", "gradient"])
        >>> decay = CosineDecay(args.death_rate, 100)
        >>> mask = Masking(optimizer, death_rate=args.death_rate, death_mode=args.death,
        ...                death_rate_decay=decay, growth_mode=args.growth,
        ...                redistribution_mode=args.redistribution, args=args)
        >>> mask.add_module(model, sparse_init="ERK", density=0.1)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     mask.step()
        >>> mask.masks
        MaskSet(2 layers, 237 of 2368 weights kept, sparsity 0.8999)
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        death_rate: float = 0.3,
        growth_death_ratio: float = 1.0,
        death_rate_decay: Decay | None = None,
        death_mode: str = "magnitude",
        growth_mode: str = "momentum",
        redistribution_mode: str = "momentum",
        threshold: float = 0.001,
        args: Any = None,
    ) -> None:
        check_ratio(growth_death_ratio)
        check_args(args, ("fix", "update_frequency"))
        method = None
        if not args.fix:
            method = exploration(
                optimizer, death_mode, growth_mode, args.update_frequency, death_rate
            )
        super().__init__(optimizer, death_rate, death_rate_decay, method)

    @property
    def death_rate(self) -> float:
        """The fraction of a layer's weights that an update drops now."""
        return self._rate

    def add_module(
        self,
        module: nn.Module,
        density: float,
        sparse_init: str = "ER",
        *,
        exclude: Patterns = None,
        backend: str = "masked",
    ) -> None:
        """Put masks on a model, in place.

        Args:
            module: The model.
            density: Fraction of the weights to keep, exactly.
            sparse_init: ``"ERK"``, ``"ER"``, ``"uniform"``; ``"lottery_ticket"``: the largest
                weights of the model; ``"GMP"``: all of them.
            exclude: Glob patterns of names to leave dense.
            backend: ``"masked"`` keeps every parameter the same object. ``"sparse"`` stores the
                kept weights only, and lets the optimizer train these; what else holds parameters,
                an average say, must be made afterwards. Not with several processes.

        Raises:
            ValueError: If an argument is out of range, or the optimizer does not train the model.
        """
        check_mode("sparse_init", sparse_init, list(_INITS), {})
        density = 1.0 if sparse_init == "GMP" else density
        self._add(module, _INITS[sparse_init], density, exclude, backend)
