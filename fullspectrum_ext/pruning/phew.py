"""PHEW: the weights on random walks from inputs to outputs and back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fullspectrum_ext._layers import prunable_weights
from fullspectrum_ext.pruning.base import ScoringContext, register_pruner
from fullspectrum_ext.pruning.densities import total_count
from fullspectrum_ext.spectral.paths import chain_of

_LEAST_NEW = 0.01  # new weights a walk: where fewer are found, walking on is no use
_FEWEST_WALKS, _MOST_STEPS = 128, 2**22  # at once: for a fair count of what is new, for the memory
_NEVER = 2**63 - 1


@register_pruner("phew", scopes=("global",), varies_by="seed")
def phew(context: ScoringContext, *, chain: bool = False) -> dict[str, Tensor]:
    r"""Score a weight by how early a random walk through the network takes it.

    Walks go from an input to an output and from an output to an input in turn; each begins at the
    next unit of its side. From a unit the walk takes one of the weights that lead on, with a
    probability proportional to :math:`|w|`: thus it goes to the next unit in proportion to the sum
    over the kernel, and takes a place of the kernel in proportion to its share. The weights that
    were taken first are kept, up to the exact number, so that the last walk may end on its way.
    Where fewer than one walk in a hundred finds anything new, the rest is kept by :math:`|w|`.

    Args:
        context: What to score; no data is looked at.
        chain: Say that the model's layers, in its order, feed each other one after the other where
            that cannot be seen, which is only so of an ``nn.Sequential``. In a residual network
            with no weights on its shortcuts the walks then follow the branches.

    Returns:
        Name to scores, float64.

    Raises:
        ValueError: If the layers do not form a chain, or are not known to.

    References:
        Patil, Dovrolis: PHEW: Constructing Sparse Networks that Learn Fast and Generalize Well
        without Training Data, ICML 2021, https://arxiv.org/abs/2010.11354, section 4.
    """
    layers = _layers(context.copy_model(), known=chain)
    scored = {name: layers[name] for name in context.weights}
    count = total_count([weight.numel() for weight in context.weights.values()], context.density)
    walked = taken = 0
    while taken < count:
        walks = max(_FEWEST_WALKS, (count - taken) // len(layers))
        walks = min(walks, _MOST_STEPS // len(layers)) // 2 * 2  # as many to as fro
        _walk(list(layers.values()), walked, walks, context.generator)
        walked += walks
        new = sum(layer.taken() for layer in scored.values()) - taken
        taken += new
        if new <= _LEAST_NEW * walks:
            break
    largest = max(float(weight.abs().max()) for weight in context.weights.values()) or 1.0
    return {
        name: layer
        .scores(walked * len(layers), largest)
        .reshape(context.weights[name].shape)
        .to(context.device)
        for name, layer in scored.items()
    }


class _Layer:
    """A layer's weights, as ``[outputs, inputs, places in the kernel]``, and when each was taken.

    Walks are the same on every device: they are made on the CPU.
    """

    def __init__(self, weight: Tensor, inputs: int):
        self.outputs, self.inputs = weight.shape[0], inputs
        self.sizes = weight.detach().to("cpu", torch.float64).abs().reshape(-1)
        self.first_taken = torch.full_like(self.sizes, _NEVER, dtype=torch.int64)
        self.places = self.sizes.numel() // max(self.outputs * inputs, 1)
        by_input = self.sizes.reshape(self.outputs, inputs, self.places).transpose(0, 1)
        self.sums_to = by_input.reshape(-1).cumsum(0)
        self.sums_fro = self.sizes.cumsum(0)

    def step(self, units: Tensor, chances: Tensor, *, to: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step of many walks, from this layer's inputs to its outputs or back.

        Args:
            units: Where each walk is.
            chances: For each a number in [0, 1).
            to: Whether it goes to the outputs.

        Returns:
            Which walks go on, the positions of the weights that these take, and where they are.
        """
        sums = self.sums_to if to else self.sums_fro
        length = (self.outputs if to else self.inputs) * self.places
        before = torch.where(units > 0, sums[units * length - 1], 0)
        total = sums[(units + 1) * length - 1] - before
        on = total > 0  # else all weights that lead on are zero
        units, aims = units[on], (before + chances * total)[on]
        found = torch.searchsorted(sums, aims, right=True)
        found = found.minimum((units + 1) * length - 1)  # where the aim was rounded up
        other, place = found % length // self.places, found % self.places
        outputs, inputs = (other, units) if to else (units, other)
        return on, (outputs * self.inputs + inputs) * self.places + place, other

    def take(self, positions: Tensor, times: Tensor) -> None:
        """Write down when weights are taken, if that is the first time."""
        self.first_taken.scatter_reduce_(0, positions, times, "amin")

    def taken(self) -> int:
        """Return how many weights have been taken."""
        return int((self.first_taken != _NEVER).count_nonzero())

    def scores(self, steps: int, largest: float) -> Tensor:
        """Order the weights: those taken by their time, then the others by their size."""
        taken = self.first_taken != _NEVER
        return torch.where(taken, 1.0 + (steps - self.first_taken), self.sizes / largest)


def _layers(model: nn.Module, *, known: bool) -> dict[str, _Layer]:
    weights = dict(prunable_weights(model))
    if not (known or chain_of(model, weights)):
        raise ValueError(
            "model: method 'phew' walks from layer to layer, and these are not known to form a "
            "chain, as those of an nn.Sequential are; if each layer is fed by the one before it in "
            "the model's order, pass chain=True to prune"
        )
    if any(getattr(module, "groups", 1) != 1 for module in model.modules()):
        raise ValueError("chain: method 'phew' does not walk through a grouped convolution")
    layers: dict[str, _Layer] = {}
    units = 0  # of the layer before
    for name, weight in weights.items():
        if weight.numel() == 0:
            raise ValueError(f"chain: {name} has no weights to walk through")
        taps = math.prod(weight.shape[1:])
        inputs = units or weight.shape[1]
        if taps % inputs:
            raise ValueError(
                f"chain: {name} has {taps} taps, which the {inputs} outputs of the layer before "
                "cannot feed"
            )
        layers[name] = _Layer(weight, inputs)
        units = weight.shape[0]
    return layers


def _walk(layers: Sequence[_Layer], begun: int, walks: int, generator: torch.Generator) -> None:
    """Make more walks; those with even numbers go from the inputs, the others from the outputs."""
    for to in (True, False):
        path = layers if to else layers[::-1]
        start = path[0].inputs if to else path[0].outputs
        numbers = torch.arange(begun, begun + walks, 2) + (not to)
        units = numbers // 2 % start
        for step, layer in enumerate(path):
            chances = torch.rand(len(units), generator=generator, dtype=torch.float64)
            on, positions, units = layer.step(units, chances, to=to)
            numbers = numbers[on]
            layer.take(positions, numbers * len(path) + step)
