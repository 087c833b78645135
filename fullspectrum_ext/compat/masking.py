"""What the ``Masking`` classes of ITOP, GraNet and sparse_learning have in common."""

import copy
import math
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, distributed, nn, optim
from torch.nn.parallel import DistributedDataParallel

from fullspectrum_ext._layers import Patterns
from fullspectrum_ext.compat.exploration import NEVER, Scheduled
from fullspectrum_ext.dynamic import DynamicSparsity, Update
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn import sparsify
from fullspectrum_ext.nn._sparse_layer import SparseLayer
from fullspectrum_ext.nn.masked import Masked
from fullspectrum_ext.pruning import prune
from fullspectrum_ext.pruning.arguments import chosen_weights, resolve_seed
from fullspectrum_ext.pruning.gradual import check_optimizer

_EXCLUDE = "name the layers that stay dense to add_module: exclude=['fc*']"
_INSTEAD = {
    "remove_weight": _EXCLUDE,
    "remove_weight_partial_name": _EXCLUDE,
    "remove_type": _EXCLUDE,
    "init": "add_module does it",
    "truncate_weights_GMP": "fullspectrum_ext.GradualPruning prunes gradually",
    "reset_momentum": "the optimizer state of weights that come is reset at each update",
    "gather_statistics": "masks and dynamic say what there is",
    "get_momentum_for_weight": "optimizer.state has it",
    "get_gradient_for_weights": "no dense gradient is held; fullspectrum_ext.ops.dense_grad_topk",
}


class Decay(Protocol):
    """What says how much is dropped."""

    def step(self) -> object:
        """Count a step of the optimizer."""

    def get_dr(self, prune_rate: float) -> float:
        """Return the rate after it, given the one before."""


class CosineDecay:
    r"""Lets the rate fall as a cosine: :math:`\phi + (\alpha - \phi)(1 + \cos(\pi t / T)) / 2`.

    Args:
        prune_rate: :math:`\alpha`, at first.
        T_max: :math:`T`, steps until the end.
        eta_min: :math:`\phi`, at the end, and after it.
        last_epoch: The step to begin behind.

    Example:
        >>> decay = CosineDecay(0.5, 100)
        >>> for _ in range(50):
        ...     decay.step()
        >>> round(decay.get_dr(), 4)
        0.2525
    """

    def __init__(
        self, prune_rate: float, T_max: float, eta_min: float = 0.005, last_epoch: int = -1
    ) -> None:
        self.prune_rate, self.T_max, self.eta_min = prune_rate, T_max, eta_min
        self.steps = last_epoch + 1

    def step(self) -> None:
        """Count a step."""
        self.steps += 1

    def get_dr(self, prune_rate: float | None = None) -> float:
        """Return the rate; what it was before does not matter."""
        done = min(self.steps / self.T_max, 1.0)
        return self.eta_min + (self.prune_rate - self.eta_min) * (1 + math.cos(math.pi * done)) / 2


class MaskingBase:
    """Masks the weights of a model, and changes the masks while it is trained.

    Args:
        optimizer: The one that trains the model; it may be made before or after the masks.
        rate: Of a layer's weights, dropped at the first update.
        decay: Says how the rate changes; None keeps it.
        method: Decides the updates; None keeps the masks.
        verbose: Print after each update how many weights there are.

    Attributes:
        optimizer: As given.
        steps: Steps of the optimizer taken.
        dynamic: The :class:`fullspectrum_ext.DynamicSparsity` that changes the masks; None before
            :meth:`add_module`, or where they do not change.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        rate: float,
        decay: Decay | None,
        method: Scheduled | None,
        *,
        verbose: bool = False,
    ) -> None:
        check_optimizer(optimizer)
        self.optimizer, self.steps = optimizer, 0
        self.dynamic: DynamicSparsity | None = None
        self._rate, self._decay, self._method, self._verbose = rate, decay, method, verbose
        self._module: nn.Module | None = None
        self._names: list[str] = []
        self._last: Update | None = None

    def __getattr__(self, name: str) -> Any:
        instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise AttributeError(f"{type(self).__name__} has no {name!r} here{instead}")

    @property
    def masks(self) -> MaskSet:
        """The masks as they are now, bool, by the names of the weights."""
        masks = MaskSet.from_model(self._masked_module)
        return MaskSet({name: masks[name] for name in self._names})

    def step(self) -> None:
        """Step the optimizer, then change the masks if it is time."""
        self.optimizer.step()
        self.steps += 1
        if self._decay is not None:
            self._decay.step()
            self._rate = float(self._decay.get_dr(self._rate))
        if self.dynamic is not None and self._method is not None:
            self._method.fraction = self._rate
            self.dynamic.step()

    def truncate_weights(self) -> None:
        """Change the masks now.

        Raises:
            RuntimeError: If they are fixed, or are grown by the gradient of a step.
        """
        if self.dynamic is None or self._method is None:
            raise RuntimeError("truncate_weights: expected masks that change, these are fixed")
        if self._method.needs_gradients:
            raise RuntimeError(
                "truncate_weights: growth by gradient looks at the gradient of a step, and comes "
                "with step() every so many of them; expected growth_mode 'random' or 'momentum'"
            )
        self._method.fraction = self._rate
        self._method.is_asked = True
        self.dynamic.step()

    def at_end_of_epoch(self) -> None:
        """Change the masks now, as :meth:`truncate_weights` does."""
        self.truncate_weights()

    def apply_mask(self) -> None:
        """Set the removed weights to zero, should something but the optimizer write to them."""
        for layer in self._masked_module.modules():
            if isinstance(layer, Masked):
                layer.zero_removed_()

    def print_nonzero_counts(self) -> None:
        """Print for each layer the weights before and after the last update."""
        for name, mask in self.masks.items():
            now = int(mask.count_nonzero())
            told = None if self._last is None else self._last.layers.get(name)
            before = now if told is None else told.before
            print(f"{name}: {before}->{now}, density: {now / max(mask.numel(), 1):.3f}")
        print(f"rate: {self._rate}")

    def fired_masks_update(self) -> tuple[dict[str, float], float]:
        """Return the share of the weights that were ever kept: of each layer, and of all.

        It is the in-time over-parametrisation rate of ITOP.
        """
        masks = self.masks
        if self.dynamic is None:
            rates = {
                name: int(mask.count_nonzero()) / max(mask.numel(), 1)
                for name, mask in masks.items()
            }
        else:
            rates = self.dynamic.explored
        total = sum(rate * masks[name].numel() for name, rate in rates.items())
        return rates, total / max(masks.numel, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return all that its further doings depend on, beside model and optimizer."""
        return {
            "steps": self.steps,
            "rate": self._rate,
            "decay": copy.deepcopy(vars(self._decay)) if self._decay is not None else None,
            "dynamic": None if self.dynamic is None else self.dynamic.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken.

        Args:
            state: Of an object made with the same arguments, after the same :meth:`add_module`.
                Load the states of model and optimizer too.

        Raises:
            ValueError: If it is of another one. Nothing has changed then.
        """
        for name, own in (("dynamic", self.dynamic), ("decay", self._decay)):
            if (state[name] is None) != (own is None):
                raise ValueError(
                    "state: expected that of the same arguments, after the same add_module"
                )
        if self.dynamic is not None:
            self.dynamic.load_state_dict(state["dynamic"])
        self.steps, self._rate = int(state["steps"]), float(state["rate"])
        if self._decay is not None:
            vars(self._decay).update(copy.deepcopy(state["decay"]))

    @property
    def _masked_module(self) -> nn.Module:
        if self._module is None:
            raise RuntimeError("Masking: expected add_module(model) first")
        return self._module

    def _add(
        self, module: nn.Module, init: str, density: float, exclude: Patterns, backend: str
    ) -> None:
        """Put masks on a model.

        Args:
            module: The model, or the DistributedDataParallel of it; changed in place.
            init: A pruning method, or ``"nonzero"`` for the weights that are not zero.
            density: Fraction of the weights to keep.
            exclude: Glob patterns of names to leave out.
            backend: As of :func:`fullspectrum_ext.sparsify`.

        Raises:
            ValueError: If there is a model already, the optimizer does not train this one, or an
                argument is refused by what takes it.
        """
        if self._module is not None:
            raise ValueError("add_module: expected one model; make a Masking for each")
        several = distributed.is_available() and distributed.is_initialized()
        if several and backend != "masked":
            raise ValueError(
                f"backend: expected 'masked' with torch.distributed, got {backend!r}; "
                "fullspectrum_ext.DynamicSparsity trains truly sparse models on several processes"
            )
        given = module
        if isinstance(module, DistributedDataParallel):
            module = module.module
        weights = chosen_weights(module, None, exclude)
        if any("." not in name for name in weights):
            raise ValueError(
                "module: expected a module with layers, got a layer: wrap it in Sequential"
            )
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name, weight in weights.items():
            if id(weight) not in trained:
                raise ValueError(f"optimizer: expected one that trains {name}")
        seed = [resolve_seed(None)]
        if several:
            distributed.broadcast_object_list(seed)  # rank 0 draws for all
        if init == "nonzero":
            masks = MaskSet({name: weight != 0 for name, weight in weights.items()})
        else:
            masks = prune(module, init, density=density, exclude=exclude, seed=seed[0])
        sparsify(module, masks, backend=backend)
        for name, weight in weights.items():
            layer = module.get_submodule(name.rpartition(".")[0])
            if isinstance(layer, SparseLayer):
                _repoint(self.optimizer, weight, layer.values, masks[name])
        self._module, self._names = module, list(weights)
        if self._method is not None:
            self.dynamic = DynamicSparsity(
                given,
                self.optimizer,
                self._method,
                steps=NEVER - NEVER % self._method.every,
                seed=seed[0] + 1,  # other numbers than the masks were drawn with
                explored=True,
                on_update=self._tell,
            )

    def _tell(self, update: Update) -> None:
        self._last = update
        if self._verbose:
            self.print_nonzero_counts()


def _repoint(
    optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter, mask: Tensor
) -> None:
    """Let an optimizer train the stored weights in place of the dense ones, with their state."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = {
            name: held[mask] if isinstance(held, Tensor) and held.shape == mask.shape else held
            for name, held in optimizer.state.pop(old).items()
        }
