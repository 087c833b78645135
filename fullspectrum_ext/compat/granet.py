"""``Masking`` as the code of GraNet has it: ``from sparselearning.core import Masking, ...``.

Written anew after the interface of the folder ``CIFAR`` of https://github.com/VITA-Group/GraNet.
"""

import argparse
from typing import Any

from torch import nn, optim

from fullspectrum_ext._layers import Patterns, prunable_weights
from fullspectrum_ext.compat.exploration import GradualExploration, GradualShrinking, Scheduled
from fullspectrum_ext.compat.itop import LinearDecay
from fullspectrum_ext.compat.masking import CosineDecay, Decay, MaskingBase
from fullspectrum_ext.compat.modes import check_args, check_mode, check_ratio, exploration

__all__ = ["CosineDecay", "LinearDecay", "Masking", "add_sparse_args"]

_PRUNE = "fullspectrum_ext.prune(model, 'magnitude', ...) and fullspectrum_ext.sparsify do that"
_INITS = {"ERK": "erk", "uniform": "uniform"}
_METHODS = ("GraNet", "GraNet_uniform", "DST", "GMP", "GMP_uniform")
_SCHEDULE = ("init_density", "final_density", "init_prune_epoch", "final_prune_epoch", "multiplier")


def add_sparse_args(parser: argparse.ArgumentParser) -> None:
    """Add the options of sparse training, with the names and defaults of the original.

    Args:
        parser: Gets them; ``--multiplier`` and ``--epochs`` are the script's own.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_sparse_args(parser)
        >>> parser.parse_args(["--sparse", "--method", "DST"]).final_density
        0.05
    """
    add = parser.add_argument
    add("--growth", default="gradient", help="gradient; with method DST also random, momentum")
    add("--prune", default="magnitude", help="magnitude; with method DST also SET, Taylor_FO")
    add("--redistribution", default="none", help="read by nothing, as in the original")
    add("--prune-rate", type=float, default=0.5, help="fraction of a layer dropped and grown")
    add("--pruning-rate", type=float, default=0.5, help="read by nothing here")
    add("--sparse", action="store_true", help="train a sparse network")
    add("--fix", action="store_true", help="keep the masks of the beginning")
    add("--update-frequency", type=int, default=100, help="steps from one update to the next")
    add("--sparse-init", default="ERK", help="ERK or uniform")
    add("--method", default="GraNet", help=", ".join(_METHODS))
    add("--init-density", type=float, default=0.5, help="fraction of the weights kept at first")
    add("--final-density", type=float, default=0.05, help="fraction kept at the end")
    add("--init-prune-epoch", type=int, default=0, help="epoch in which pruning begins")
    add("--final-prune-epoch", type=int, default=110, help="epoch in which it ends")
    add("--rm-first", action="store_true", help="keep the first layer dense")


class Masking(MaskingBase):
    """GraNet, RigL or gradual pruning in the manner of GraNet; ``step()`` steps the optimizer too.

    Args:
        optimizer: Trains the model; made before.
        prune_rate: Of a layer's weights, dropped and grown at the first update.
        growth_death_ratio: 1; the original does not read it.
        prune_rate_decay: A :class:`CosineDecay`, or None for a constant rate.
        death_mode: ``"magnitude"``; with ``args.method == "DST"`` also ``"SET"``, ``"Taylor_FO"``.
        growth_mode: ``"gradient"``; with ``args.method == "DST"`` also ``"random"``,
            ``"momentum"``. Gradual pruning alone grows nothing.
        redistribution_mode: Read by nothing, as in the original.
        threshold: Read by nothing, as in the original.
        args: The options of :func:`add_sparse_args`, and ``multiplier``.
        train_loader: Its length is the number of steps in an epoch.
        device: Read by nothing: masks are where their weights are.

    Raises:
        ValueError: If a mode has no counterpart, ``args`` lacks something, or there are no steps
            between the two epochs of pruning.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> parser = argparse.ArgumentParser()
        >>> add_sparse_args(parser)
        >>> parser.set_defaults(multiplier=1, update_frequency=5, final_prune_epoch=2)
        >>> args = parser.parse_args(["--init-density", "0.5", "--final-density", "0.1"])
        >>> loader = [torch.randn(8, 64) for _ in range(10)]
        >>> mask = Masking(optimizer, prune_rate=args.prune_rate, death_mode=args.prune,
        ...                prune_rate_decay=CosineDecay(args.prune_rate, 30),
        ...                growth_mode=args.growth, redistribution_mode=args.redistribution,
        ...                args=args, train_loader=loader)
        >>> mask.add_module(model, sparse_init=args.sparse_init)
        >>> mask.masks.nnz
        1184
        >>> for _ in range(3):
        ...     for inputs in loader:
        ...         optimizer.zero_grad()
        ...         model(inputs).square().mean().backward()
        ...         mask.step()
        >>> mask.masks.nnz
        237
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        prune_rate: float = 0.3,
        growth_death_ratio: float = 1.0,
        prune_rate_decay: Decay | None = None,
        death_mode: str = "magnitude",
        growth_mode: str = "momentum",
        redistribution_mode: str = "momentum",
        threshold: float = 0.001,
        args: Any = None,
        train_loader: Any = None,
        device: Any = None,
    ) -> None:
        check_ratio(growth_death_ratio)
        check_args(args, ("method", "sparse_init", "fix", "update_frequency", "init_density"))
        check_mode("args.method", args.method, _METHODS, {})
        method: Scheduled | None = None
        if not args.fix and args.method == "DST":
            every = args.update_frequency
            method = exploration(optimizer, death_mode, growth_mode, every, prune_rate)
        elif not args.fix:
            method = _gradual(args, train_loader, prune_rate, death_mode, growth_mode)
        super().__init__(optimizer, prune_rate, prune_rate_decay, method)
        self._args = args

    @property
    def prune_rate(self) -> float:
        """The fraction of a layer's weights that an update drops and grows now."""
        return self._rate

    def add_module(
        self,
        module: nn.Module,
        sparse_init: str = "ERK",
        grad_dic: Any = None,
        *,
        exclude: Patterns = None,
        backend: str = "masked",
    ) -> None:
        """Put masks on a model, in place, with ``args.init_density`` of the weights, exactly.

        Args:
            module: The model.
            sparse_init: Read by nothing, as in the original: ``args.sparse_init`` is, ``"ERK"`` or
                ``"uniform"``; ``args.method == "GMP"`` begins with all weights.
            grad_dic: None.
            exclude: Glob patterns of names to leave dense.
            backend: ``"masked"`` keeps every parameter the same object. ``"sparse"`` stores the
                kept weights only, and lets the optimizer train these; what else holds parameters,
                an average say, must be made afterwards. Not with several processes.

        Raises:
            ValueError: If an argument is out of range, or the optimizer does not train the model.
        """
        args = self._args
        if grad_dic is not None:
            raise ValueError(f"grad_dic: expected None: {_PRUNE}")
        init = args.sparse_init
        instead = {f"prune_{name}": _PRUNE for name in ("uniform", "global", "structured")}
        instead |= {f"prune_and_grow_{name[6:]}": _PRUNE for name in instead}
        check_mode("args.sparse_init", init, list(_INITS), instead)
        if getattr(args, "rm_first", False):
            first = [name for name, _ in prunable_weights(module) if _is_first(name)]
            given = [exclude] if isinstance(exclude, str) else list(exclude or ())
            exclude = [*given, *first]
        density = 1.0 if args.method == "GMP" else args.init_density
        self._add(module, _INITS[init], density, exclude, backend)


def _gradual(args: Any, loader: Any, rate: float, death: str, growth: str) -> Scheduled:
    """Make the method of gradual pruning, with or without growth."""
    check_args(args, _SCHEDULE)
    if not hasattr(loader, "__len__"):
        raise ValueError(
            f"train_loader: expected one with a length, by which epochs are counted, got "
            f"{type(loader).__name__}"
        )
    every = args.update_frequency
    first, last = (
        int(epoch * len(loader) * args.multiplier)
        for epoch in (args.init_prune_epoch, args.final_prune_epoch)
    )
    begin, end = first // every, last // every
    if not begin < end:
        raise ValueError(
            f"args.final_prune_epoch: expected an update (every {every} steps of {len(loader)} an "
            f"epoch) between init_prune_epoch = {args.init_prune_epoch} and it, "
            f"got {args.final_prune_epoch}"
        )
    schedule: dict[str, Any] = {
        "every": every,
        "first": first,
        "begin": begin,
        "end": end,
        "sparsity": 1 - args.final_density,
        "scope": "layer" if args.method.endswith("_uniform") else "global",
    }
    if args.method.startswith("GMP"):
        return GradualShrinking(**schedule)
    dst = "its code does this whatever the mode says; args.method 'DST' has others"
    check_mode("death_mode", death, ["magnitude"], dict.fromkeys(("SET", "threshold"), dst))
    check_mode("growth_mode", growth, ["gradient"], dict.fromkeys(("random", "momentum"), dst))
    return GradualExploration(fraction=rate, **schedule)


def _is_first(name: str) -> bool:
    return "conv.weight" in name or "feature.0.weight" in name
