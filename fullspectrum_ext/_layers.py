"""The weight matrices of a model or a state dict, however they are stored.

A layer's weight may be dense, dense under a mask (``torch.nn.utils.prune``, a parametrization, a
masked layer of this package) or stored sparse. Here all of them become one thing: a name, a mask
and a dense weight. Layers are recognised by their buffers, so this file knows no layer class.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks

Patterns = str | Iterable[str] | None  # of names, see select_names
PRUNABLE = (nn.Linear, nn.Conv2d)  # that have one weight, and a truly sparse form
_RECURRENT_WEIGHT = re.compile(r"weight_(ih|hh|hr)_l\d+(_reverse)?")  # of RNN, LSTM and GRU


class LayerWeight(NamedTuple):
    """One layer's weight as the network computes with it: zero wherever the mask is.

    Attributes:
        weight: Dense weight, the shape of the parameter, detached.
        mask: Which weights are there, bool, the same shape.
    """

    weight: Tensor
    mask: Tensor


def join(prefix: str, name: str) -> str:
    """Return the dotted name of ``name`` in the module called ``prefix``."""
    return f"{prefix}.{name}" if prefix else name


def select_names(
    names: Iterable[str],
    include: Patterns = None,
    exclude: Patterns = None,
) -> list[str]:
    """Keep the names that match a pattern of ``include`` and none of ``exclude``.

    A pattern is a shell-style glob on the parameter's name, or on that of its layer: ``"fc*"``,
    ``"layer1.*"``, ``"head"``. One that matches nothing is a ValueError: it is nearly always a
    typing mistake.

    Args:
        names: Parameter names, in the order to keep.
        include: One pattern or several; None takes all.
        exclude: One pattern or several; None leaves none out.

    Returns:
        The names that are left.

    Example:
        >>> select_names(["conv.weight", "head.weight"], exclude="head")
        ['conv.weight']
    """
    names = list(names)

    included = set(names) if include is None else _matching("include", include, names)
    excluded = set() if exclude is None else _matching("exclude", exclude, names)
    return [name for name in names if name in included and name not in excluded]


def _matching(argument: str, patterns: str | Iterable[str], names: list[str]) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {
            name
            for name in names
            if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)
        }
        if not hits:
            raise ValueError(
                f"{argument}: the pattern {pattern!r} matches none of {', '.join(names)}"
            )
        found |= hits
    return found


def model_layers(model: nn.Module) -> dict[str, LayerWeight]:
    """Collect the weight and the mask of every linear, 2-d convolution and recurrent layer.

    Recognised: ``torch.nn.utils.prune`` (``weight_mask``), this package's sparse layers
    (``crow_indices``, ``col_indices``) and masked layers (a bool ``mask``), and every other
    ``nn.Linear``, ``nn.Conv2d``, ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, whose mask is what is not
    zero in the weight (parametrizations included). A recurrent layer has several weights, called
    as torch does (``"lstm.weight_hh_l0"``). A parameter that two modules share is named once.

    Args:
        model: Any module; it is not changed.

    Returns:
        Parameter name (``"layer1.0.conv1.weight"``) to weight and mask, in the model's order.

    Raises:
        ValueError: If a layer is lazy and has no weight yet.
    """
    found: dict[str, LayerWeight] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        name = join(prefix, "weight")
        if "crow_indices" in buffers and "col_indices" in buffers:
            found[name] = _from_csr(
                buffers["crow_indices"],
                buffers["col_indices"],
                module.get_parameter("values").detach(),
                cast(torch.Size, module.weight_shape),
            )
            continue
        for parameter in _weight_names(module):
            mask = buffers.get(f"{parameter}_mask", _own_mask(module))
            if mask is None and not isinstance(module, (*PRUNABLE, nn.RNNBase)):
                continue
            name = join(prefix, parameter)
            stored = module._parameters.get(parameter, module._parameters.get(f"{parameter}_orig"))
            if stored is not None and nn.parameter.is_lazy(stored):
                raise ValueError(f"model: {name} is not initialised yet; run one batch through it")
            if stored is not None and id(stored) in seen:
                continue
            seen.add(id(stored) if stored is not None else id(module))
            found[name] = _masked(name, _current_weight(module, parameter), mask)
    return found


class StoredLayer(NamedTuple):
    """Which tensors of a state dict make up a layer's weight.

    Attributes:
        weight: Name of the weight, or of the ``crow_indices`` of a sparse layer, or of the
            ``bitmask`` of one of compressed-tensors.
        mask: Name of its mask; None where what is not zero is the mask.
    """

    weight: str
    mask: str | None = None


def stored_layers(state: Mapping[str, Tensor]) -> dict[str, StoredLayer]:
    """Find the layers of a state dict by names, shapes and dtypes; no value is looked at.

    Recognised beside plain weights: ``X_orig`` with ``X_mask`` (``torch.nn.utils.prune``),
    ``parametrizations.X.original`` with ``parametrizations.X.0.mask`` (``torch.ao``), ``X_mask``
    or ``mask`` beside a weight, this package's ``values``, ``crow_indices``, ``col_indices``, and
    the ``compressed``, ``bitmask``, ``shape`` of compressed-tensors (``sparse-bitmask`` and
    ``sparse-24-bitmask``).
    A plain weight is a tensor called ``weight``, or as those of a recurrent layer are, with two or
    four dimensions: a state dict does not say which of them are embeddings.

    Args:
        state: Name to tensor, on any device (also meta).

    Returns:
        Parameter name, as it is in the dense model, to where its parts are.

    Raises:
        ValueError: If two entries are the weight of one layer.
    """
    found: dict[str, StoredLayer] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        name, layer = _stored_layer(key, tensor, state)
        if layer is None:
            continue
        if name in found:
            raise ValueError(
                f"state: expected one weight a layer, but {found[name].weight} and {key} are both "
                f"{name}"
            )
        found[name] = layer
    return found


def read_layer(name: str, layer: StoredLayer, state: Mapping[str, Tensor]) -> LayerWeight:
    """Read one layer's weight and mask out of a state dict.

    Args:
        name: The layer's name, for the messages.
        layer: As :func:`stored_layers` found it.
        state: Name to tensor; only the layer's own are asked for.

    Returns:
        Weight and mask.

    Raises:
        ValueError: If the weight is not of floating point or has no values, a mask has another
            shape than its weight or other values than 0 and 1, or a sparse layer is malformed or
            does not say how many inputs it has.
    """
    prefix, _, last = layer.weight.rpartition(".")
    if last == "crow_indices":
        return _sparse_entry(state, prefix)
    if last == "bitmask":
        return _bitmask_entry(name, state, prefix)
    weight = _computable(name, state[layer.weight])
    if weight.layout != torch.strided:
        weight = weight.to_dense()
    return _masked(name, weight, None if layer.mask is None else state[layer.mask])


def stored_size(layer: StoredLayer, headers: Mapping[str, Tensor]) -> int:
    """Return about how many weights a layer has, by the shapes of its tensors alone."""
    header = headers[layer.weight]
    return header.numel() * (8 if layer.weight.rpartition(".")[2] == "bitmask" else 1)


def state_dict_layers(state: Mapping[str, Tensor]) -> dict[str, LayerWeight]:
    """Collect the weights and masks of a state dict, whose modules are not at hand.

    Args:
        state: Name to tensor; what is recognised is said at :func:`stored_layers`.

    Returns:
        Parameter name, as it is in the dense model, to weight and mask.

    Raises:
        ValueError: As :func:`stored_layers` and :func:`read_layer` do.
    """
    return {name: read_layer(name, layer, state) for name, layer in stored_layers(state).items()}


def _stored_layer(
    key: str, tensor: Tensor, state: Mapping[str, Tensor]
) -> tuple[str, StoredLayer | None]:
    """Return the layer that an entry is the weight of, and None if it is of no layer."""
    prefix, _, last = key.rpartition(".")
    layer, marker, parameter = prefix.rpartition("parametrizations.")
    is_matrix = tensor.dim() in {2, 4}
    name, mask, always = key, f"{key}_mask", _is_weight(last) and is_matrix
    if last == "crow_indices":
        return join(prefix, "weight"), StoredLayer(key)
    if last == "bitmask" and join(prefix, "compressed") in state:
        # older versions keep the parameter's name
        whole = prefix if prefix.rpartition(".")[2] == "weight" else join(prefix, "weight")
        return whole, StoredLayer(key)
    if last.endswith("_orig"):
        name = key.removesuffix("_orig")
        mask, always = f"{name}_mask", _is_weight(last.removesuffix("_orig"))
    elif last == "original" and marker and "." not in parameter:
        name = layer + parameter
        mask, always = f"{prefix}.0.mask", _is_weight(parameter)
    elif always and mask not in state:
        beside = state.get(join(prefix, "mask"))
        if beside is not None and beside.shape == tensor.shape:  # else of something else
            mask = join(prefix, "mask")
    if mask in state and (is_matrix or always):
        return name, StoredLayer(key, mask)
    return name, StoredLayer(key) if always else None


def prunable_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights that a pruning method may choose from.

    They are those of Linear and Conv2d, and of RNN, LSTM and GRU all that begin with ``weight``:
    one matrix for the input and one for the hidden state, a layer and a direction. A parameter that
    two modules share is one parameter and comes once, by its first name.

    Args:
        model: Any module; it is not changed.

    Yields:
        Parameter name and parameter, in the model's order.

    Raises:
        ValueError: If a weight is lazy, parametrized, already under a mask, on the meta device, or
            holds NaN or infinite values.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        is_sparse = "crow_indices" in module._buffers
        if not is_sparse and not isinstance(module, (*PRUNABLE, nn.RNNBase)):
            continue
        for parameter in _weight_names(module):
            name = join(prefix, parameter)
            weight = module._parameters.get(parameter)
            if weight is not None and nn.parameter.is_lazy(weight):
                raise ValueError(f"model: {name} is not initialised yet; run one batch through it")
            is_masked = f"{parameter}_mask" in module._buffers or _own_mask(module) is not None
            if weight is None or is_sparse or is_masked:
                raise ValueError(
                    f"model: {name} is parametrized, sparse or already under a mask, but only a "
                    "plain parameter can be pruned; make it one first (fullspectrum_ext.densify, "
                    "torch.nn.utils.prune.remove, "
                    "torch.nn.utils.parametrize.remove_parametrizations)"
                )
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            if weight.is_meta:
                raise ValueError(f"model: {name} is on the meta device and has no values")
            if not bool(weight.detach().isfinite().all()):
                raise ValueError(f"model: {name} holds NaN or infinite values")
            yield name, weight


def _weight_names(module: nn.Module) -> list[str]:
    """Return the names that a module's weights have, where it has any."""
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if _is_weight(name)]
    return ["weight"]


def _is_weight(name: str) -> bool:
    return name == "weight" or _RECURRENT_WEIGHT.fullmatch(name) is not None


def _own_mask(module: nn.Module) -> Tensor | None:
    """Return the buffer ``mask`` where it is one of the weight: of its shape, that is."""
    mask, weight = module._buffers.get("mask"), module._parameters.get("weight")
    if mask is None or weight is None or mask.shape != weight.shape:
        return None
    return mask


def _current_weight(module: nn.Module, parameter: str) -> Tensor:
    """Return the weight that the module computes with, and leave the module as it is."""
    original = module._parameters.get(f"{parameter}_orig")
    if original is not None and f"{parameter}_mask" in module._buffers:
        return original.detach()  # torch.nn.utils.prune refreshes the weight only in forward
    if not nn.utils.parametrize.is_parametrized(module, parameter):
        return cast(Tensor, getattr(module, parameter)).detach()
    # In training mode a parametrization may change its state when it is read (spectral_norm does).
    parts = list(cast(nn.ModuleDict, module.parametrizations)[parameter].modules())
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    with torch.no_grad():
        weight = cast(Tensor, getattr(module, parameter)).detach()
    for part, mode in zip(parts, modes, strict=True):
        part.training = mode
    return weight


def _computable(name: str, weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        raise ValueError(f"{name}: expected weights of floating point, got {weight.dtype}")
    # torch can hardly compute with eight bits
    return weight.float() if weight.dtype.itemsize == 1 else weight


def _masked(name: str, weight: Tensor, mask: Tensor | None) -> LayerWeight:
    if weight.is_meta:
        raise ValueError(f"{name}: expected values, got a tensor on the meta device")
    weight = weight.detach()
    if mask is None:
        return LayerWeight(weight, weight != 0)
    if mask.shape != weight.shape:
        raise ValueError(
            f"{name}: expected a mask of the weight's shape {tuple(weight.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    kept = mask.detach() != 0
    if not torch.equal(kept, mask == 1):
        raise ValueError(f"{name}: expected a mask of zeros and ones, got other values")
    return LayerWeight(weight.masked_fill(~kept, 0), kept)


def _from_csr(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, shape: torch.Size
) -> LayerWeight:
    lengths = crow_indices.diff()
    rows = torch.repeat_interleave(torch.arange(shape[0], device=lengths.device), lengths)
    cols = col_indices.long()
    matrix = (shape[0], shape[1:].numel())
    weight = values.new_zeros(shape)
    weight.view(matrix)[rows, cols] = values
    mask = torch.zeros(shape, dtype=torch.bool, device=values.device)
    mask.view(matrix)[rows, cols] = True
    return LayerWeight(weight, mask)


def _sparse_entry(state: Mapping[str, Tensor], prefix: str) -> LayerWeight:
    sizes = [join(prefix, name) for name in ("in_features", "weight_shape")]
    size = next((state[name] for name in sizes if name in state), None)
    if size is None:
        raise ValueError(
            f"state: the sparse layer {prefix!r} does not say how many inputs it has (in_features);"
            " load the state dict into the model, and give that"
        )
    crow_indices, col_indices, values = (
        state[join(prefix, field)] for field in ("crow_indices", "col_indices", "values")
    )
    # of a linear layer the columns, of a convolution the whole shape
    shape = torch.Size([crow_indices.numel() - 1, *size.reshape(-1).tolist()[-3:]])
    try:
        matrix = (shape[0], shape[1:].numel())
        _checks.check_csr(crow_indices, col_indices, matrix, values, validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state: {prefix}: {error}") from error
    return _from_csr(crow_indices, col_indices, values.detach(), shape)


def _bitmask_entry(name: str, state: Mapping[str, Tensor], prefix: str) -> LayerWeight:
    """Read a weight of compressed-tensors: bits along the last dimension, the lowest one first."""
    fields = [join(prefix, field) for field in ("bitmask", "compressed", "shape")]
    missing = [field for field in fields if field not in state]
    if missing:
        raise ValueError(f"{name}: expected {missing[0]} beside its bitmask, found none")
    bits, values, size = (state[field].detach().cpu() for field in fields)
    shape = torch.Size(size.reshape(-1).tolist())
    if len(shape) not in {2, 4} or min(shape) < 0:
        raise ValueError(f"{name}: expected a shape of two or four sizes, got {tuple(shape)}")
    packed = (*shape[:-1], -(-shape[-1] // 8))
    if bits.dtype != torch.uint8 or bits.shape != packed:
        raise ValueError(
            f"{name}: expected a bitmask of uint8 {packed}, got {bits.dtype} {tuple(bits.shape)}"
        )
    bytes_ = np.unpackbits(bits.numpy(), axis=-1, count=shape[-1], bitorder="little")
    mask = torch.from_numpy(bytes_).bool()
    values = _computable(name, values).reshape(-1)
    if values.numel() != int(mask.count_nonzero()):
        raise ValueError(
            f"{name}: expected a value for each of the {int(mask.count_nonzero())} bits, "
            f"got {values.numel()}"
        )
    return LayerWeight(values.new_zeros(shape).masked_scatter_(mask, values), mask)
