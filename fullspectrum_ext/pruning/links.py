"""Which layers of a model feed which, unit by unit: what a walk from layer to layer follows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from torch import Tensor, fx, nn

from fullspectrum_ext._layers import join
from fullspectrum_ext.spectral.paths import keeps_units

INPUT, OUTPUT = "<input>", "<output>"
_PASS = {  # functions and methods whose output unit depends on the input unit of its place
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardtanh"),
    *("sigmoid", "tanh", "dropout", "batch_norm", "flatten", "contiguous", "clone"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
}
_ADD = {"add", "add_", "iadd"}
_PLACES = ({2, 3}, {-1, -2})  # the dimensions of an image


@dataclass
class Links:
    """The layers of a model as a graph.

    Attributes:
        inputs: Name of each layer, in the order of their work, to the units that feed it.
        outputs: Units of the model's output.
        after: Name of a layer, or ``INPUT``, to those that it feeds (perhaps ``OUTPUT``), each with
            the place that its first unit has among their inputs.
    """

    inputs: dict[str, int] = field(default_factory=dict)
    outputs: int = 0
    after: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def first_units(self) -> int:
        """Units of the model's input."""
        return max(self.inputs[name] + place for name, place in self.after[INPUT].items())

    def before(self, name: str) -> dict[str, int]:
        """Return the layers that feed one, or ``OUTPUT``, with the place of their first unit."""
        return {source: fed[name] for source, fed in self.after.items() if name in fed}


class _Signal(NamedTuple):
    """An activation: how many units it has, and whose they are."""

    units: int | None  # None: of the model's input, as many as the first layer takes
    sources: Mapping[str, int]  # layer to the place of its first unit


def chain_links(model: nn.Module, weights: Mapping[str, Tensor]) -> Links:
    """Link layers that feed each other one after the other.

    Args:
        model: Of these layers.
        weights: Name to weight, in the order of the chain.

    Returns:
        The links.

    Raises:
        ValueError: If a layer cannot be fed by the one before.
    """  # noqa: DOC502
    links = Links()
    signal = _Signal(None, {INPUT: 0})
    for name, weight in weights.items():
        layer = model.get_submodule(name.rpartition(".")[0])
        _feed(links, name, weight, signal, groups=getattr(layer, "groups", 1))
        signal = _Signal(weight.shape[0], {name: 0})
    _end(links, signal)
    return links


def traced_links(model: nn.Module, weights: Mapping[str, Tensor]) -> Links:
    """Link the layers of a model by following its ``forward`` symbolically.

    Between layers it knows what leaves units in their places (activations, normalisation, pooling,
    flattening), sums of activations, and zeros added as units.

    Args:
        model: Any module, with a ``forward`` that does the same for every input.
        weights: Name to weight of its layers.

    Returns:
        The links.

    Raises:
        ValueError: If the model does anything else, which the message names.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever a forward does that is not for every input the same
        reason = str(error).split(". ")[0]  # what follows is advice to who wrote the model
        raise ValueError(f"torch.fx cannot trace the model: {reason}") from error
    modules = dict(model.named_modules())
    links = Links()
    signals: dict[fx.Node, _Signal | None] = {}
    for node in graph.nodes:
        if node.op == "output":
            _end(links, _needed(node, _signal(node.args[0], signals)))
        elif node.op == "placeholder":
            signals[node] = _Signal(None, {INPUT: 0}) if not signals else None
        elif node.op == "call_module":
            signals[node] = _module_signal(node, modules[str(node.target)], weights, signals, links)
        else:
            signals[node] = _function_signal(node, signals)
    unused = weights.keys() - links.inputs.keys()
    if unused:
        raise ValueError(f"the model's forward does not come to {min(unused)}")
    return links


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, (nn.Linear, nn.Conv2d))
        return is_layer or keeps_units(m) or super().is_leaf_module(m, module_qualified_name)


def _module_signal(
    node: fx.Node,
    module: nn.Module,
    weights: Mapping[str, Tensor],
    signals: Mapping[fx.Node, _Signal | None],
    links: Links,
) -> _Signal:
    signal = _needed(node, _signal(node.args[0], signals))
    name = join(str(node.target), "weight")
    if name in weights:
        is_linear = [
            weights[layer].dim() == 2 for layer in (name, *signal.sources) if layer != INPUT
        ]
        if all(is_linear) and signal.units not in {None, weights[name].shape[1]}:
            _refuse(node, "a flattened sequence")  # its taps are in another order
        _feed(links, name, weights[name], signal, groups=getattr(module, "groups", 1))
        return _Signal(weights[name].shape[0], {name: 0})
    if not keeps_units(module):
        _refuse(node, type(module).__name__)
    return signal


def _function_signal(node: fx.Node, signals: Mapping[fx.Node, _Signal | None]) -> _Signal | None:
    if node.op == "get_attr":
        return None
    name = str(getattr(node.target, "__name__", node.target))
    operands = [signal for arg in node.args if (signal := _signal(arg, signals)) is not None]
    if not operands or name == "size" or (name == "getattr" and node.args[1] == "shape"):
        return None  # a number, as sizes are
    if name in _ADD:
        return _sum(node, operands)
    (signal, *others) = operands
    if others:
        _refuse(node, name)
    if name in _PASS or _leaves_units(name, node.args[1:], node.kwargs):
        return signal
    if name == "pad":
        return _padded(node, signal)
    _refuse(node, name)


def _leaves_units(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Tell whether indexing, reshaping or a mean leaves every unit in its place."""
    if name == "getitem":
        (index,) = args
        whole = slice(None)
        return isinstance(index, tuple) and len(index) > 1 and index[:2] == (whole, whole)
    if name in {"view", "reshape"}:
        return len(args) == 2 and args[1] == -1
    if name == "mean":
        dims = options.get("dim", args[0] if args else None)
        return isinstance(dims, Iterable) and set(dims) in _PLACES
    return False


def _padded(node: fx.Node, signal: _Signal) -> _Signal:
    """Shift the units of an image that gets channels of zeros."""
    widths = list(node.args[1])  # type: ignore[arg-type]  # from the last dimension to the first
    if len(widths) <= 4:
        return signal
    if len(widths) != 6 or signal.units is None:
        _refuse(node, "pad")
    sources = {source: place + widths[4] for source, place in signal.sources.items()}
    return _Signal(signal.units + widths[4] + widths[5], sources)


def _sum(node: fx.Node, operands: list[_Signal]) -> _Signal:
    sources: dict[str, int] = {}
    for signal in operands:
        if signal.units != operands[0].units:
            _refuse(node, "a sum of different sizes")
        for source, place in signal.sources.items():
            if sources.setdefault(source, place) != place:
                _refuse(node, "a sum of a unit with another one of its layer")
    return _Signal(operands[0].units, sources)


def _feed(links: Links, name: str, weight: Tensor, signal: _Signal, *, groups: int = 1) -> None:
    if name in links.inputs:
        raise ValueError(f"{name} is used twice")
    if groups != 1:
        raise ValueError(f"{name} is that of a grouped convolution")
    if weight.numel() == 0:
        raise ValueError(f"{name} has no weights to walk through")
    taps = weight.shape[1:].numel()
    units = signal.units or weight.shape[1]
    if taps % units:
        raise ValueError(
            f"{name} has {taps} taps, which the {units} outputs of the layer before cannot feed"
        )
    links.inputs[name] = units
    for source, place in signal.sources.items():
        links.after.setdefault(source, {})[name] = place


def _end(links: Links, signal: _Signal) -> None:
    if signal.units is None or INPUT not in links.after:
        raise ValueError("no layer leads from the input to the output")
    links.outputs = signal.units
    for source, place in signal.sources.items():
        links.after.setdefault(source, {})[OUTPUT] = place


def _signal(argument: Any, signals: Mapping[fx.Node, _Signal | None]) -> _Signal | None:
    return signals[argument] if isinstance(argument, fx.Node) else None


def _needed(node: fx.Node, signal: _Signal | None) -> _Signal:
    if signal is None:
        _refuse(node, "what is no activation")
    return signal


def _refuse(node: fx.Node, what: str) -> NoReturn:
    raise ValueError(f"at {node.name!r} there is {what}, through which units cannot be followed")
