"""PHEW: the weights on random walks from inputs to outputs and back."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fullspectrum_ext._layers import prunable_weights
from fullspectrum_ext.pruning.base import ScoringContext, register_pruner
from fullspectrum_ext.pruning.densities import total_count
from fullspectrum_ext.pruning.links import INPUT, OUTPUT, Links, chain_links, traced_links
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
    over the kernel, and takes a place of the kernel in proportion to its share. In a residual
    network, where a unit is added to another, the weights of all layers that take the sum lead on
    from either. The weights that were taken first are kept, up to the exact number, so that the
    last walk may end on its way. Where fewer than one walk in a hundred finds anything new, the
    rest is kept by :math:`|w|`.

    Args:
        context: What to score; no data is looked at.
        chain: Say that the model's layers, in its order, feed each other one after the other, where
            this cannot be seen: neither from an ``nn.Sequential`` nor by tracing the model with
            ``torch.fx`` through activations, normalisation, pooling, flattening and sums.

    Returns:
        Name to scores, float64.

    Raises:
        ValueError: If it cannot be seen which layer feeds which, with the reason; so it is with
            attention, recurrent layers and grouped convolutions.

    References:
        Patil, Dovrolis: PHEW: Constructing Sparse Networks that Learn Fast and Generalize Well
        without Training Data, ICML 2021, https://arxiv.org/abs/2010.11354, section 4.
    """
    links, layers = _linked_layers(context.copy_model(), chain=chain)
    scored = {name: layers[name] for name in context.weights}
    count = total_count([weight.numel() for weight in context.weights.values()], context.density)
    walked = taken = 0
    while taken < count:
        walks = max(_FEWEST_WALKS, (count - taken) // len(layers))
        walks = min(walks, _MOST_STEPS // len(layers)) // 2 * 2  # as many to as fro
        _walk(links, layers, walked, walks, context.generator)
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

    def total(self, units: Tensor, *, to: bool) -> Tensor:
        """Return the sum of the sizes that lead on from each unit; 0 where there is no such unit.

        Args:
            units: Numbers of inputs, or of outputs on the way back.
            to: Whether walks go to the outputs.
        """
        there = (units >= 0) & (units < (self.inputs if to else self.outputs))
        begin, end = self._sums(torch.where(there, units, 0), to=to)
        return torch.where(there, end - begin, 0)

    def step(self, units: Tensor, aims: Tensor, *, to: bool) -> tuple[Tensor, Tensor]:
        """Take one step of many walks, from this layer's inputs to its outputs or back.

        Args:
            units: Where each walk is.
            aims: How far it goes into the sum of the sizes that lead on, below their total.
            to: Whether it goes to the outputs.

        Returns:
            The positions of the weights that are taken, and where the walks are.
        """
        begin, _ = self._sums(units, to=to)
        length = (self.outputs if to else self.inputs) * self.places
        sums = self.sums_to if to else self.sums_fro
        found = torch.searchsorted(sums, begin + aims, right=True)
        found = found.minimum((units + 1) * length - 1)  # where the aim was rounded up
        other, place = found % length // self.places, found % self.places
        outputs, inputs = (other, units) if to else (units, other)
        return (outputs * self.inputs + inputs) * self.places + place, other

    def _sums(self, units: Tensor, *, to: bool) -> tuple[Tensor, Tensor]:
        """Return the running sums before and after the weights that lead on from each unit."""
        sums = self.sums_to if to else self.sums_fro
        length = (self.outputs if to else self.inputs) * self.places
        return torch.where(units > 0, sums[units * length - 1], 0), sums[(units + 1) * length - 1]

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


def _linked_layers(model: nn.Module, *, chain: bool) -> tuple[Links, dict[str, _Layer]]:
    weights = dict(prunable_weights(model))
    try:
        known = chain or chain_of(model, weights)
        links = chain_links(model, weights) if known else traced_links(model, weights)
    except ValueError as error:
        raise ValueError(
            f"model: method 'phew' walks from layer to layer, but cannot here: {error}"
            + ("" if chain else "; if each layer is fed by the one before it, pass chain=True")
        ) from error
    return links, {name: _Layer(weights[name], units) for name, units in links.inputs.items()}


def _walk(
    links: Links,
    layers: Mapping[str, _Layer],
    begun: int,
    walks: int,
    generator: torch.Generator,
) -> None:
    """Make more walks; those with even numbers go from the inputs, the others from the outputs."""
    for to in (True, False):
        path = [INPUT, *layers] if to else [OUTPUT, *reversed(list(layers))]
        numbers = torch.arange(begun, begun + walks, 2) + (not to)
        units = numbers // 2 % (links.first_units if to else links.outputs)
        arrived = {name: ([numbers[:0]], [units[:0]]) for name in path}
        arrived[path[0]] = [numbers], [units]
        for step, name in enumerate(path):
            feeds = links.after.get(name, {}) if to else links.before(name)
            ways = [(way, place if to else -place) for way, place in feeds.items() if way in layers]
            if not ways:
                continue  # the other side, at the latest at the end of the path
            numbers, units = map(torch.cat, arrived[name])
            chances = torch.rand(len(units), generator=generator, dtype=torch.float64)
            for way, chosen, position, unit in _steps(layers, ways, units, chances, to=to):
                layers[way].take(position, numbers[chosen] * len(layers) + step)
                arrived[way][0].append(numbers[chosen])
                arrived[way][1].append(unit)


def _steps(
    layers: Mapping[str, _Layer],
    ways: Sequence[tuple[str, int]],
    units: Tensor,
    chances: Tensor,
    *,
    to: bool,
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Take one step of many walks that are at the same layer's units.

    Args:
        layers: All layers.
        ways: Names of those that lead on, and what makes a unit's number one of theirs.
        units: Where each walk is.
        chances: For each a number in [0, 1).
        to: Whether it goes to the outputs.

    Yields:
        A layer's name, which walks go on through it, the weights they take, and where they are.
    """
    totals = torch.stack([layers[name].total(units + shift, to=to) for name, shift in ways])
    sums = totals.cumsum(0)
    aims = chances * sums[-1]
    last = len(ways) - 1 - totals.flip(0).gt(0).int().argmax(0)  # of those that lead on at all
    chosen = (sums <= aims).sum(0).minimum(last)  # an aim may have been rounded up
    for number, (name, shift) in enumerate(ways):
        walks = ((chosen == number) & (sums[-1] > 0)).nonzero().flatten()
        before = sums[number - 1, walks] if number else 0.0
        position, unit = layers[name].step(units[walks] + shift, aims[walks] - before, to=to)
        yield name, walks, position, unit
