"""From a dense model and masks to a sparse model, and back."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import join
from fullspectrum_ext.masks import as_mask
from fullspectrum_ext.nn._sparse_layer import SparseLayer
from fullspectrum_ext.nn.backend import (
    AUTO,
    MASKED,
    SPARSE,
    Choice,
    choose_by_measurement,
    choose_by_rule,
)
from fullspectrum_ext.nn.masked import Masked, MaskedConv2d, MaskedLinear
from fullspectrum_ext.nn.masked_recurrent import MASKED_RECURRENT, recurrent_arguments
from fullspectrum_ext.nn.sparse_conv2d import SparseConv2d
from fullspectrum_ext.nn.sparse_linear import SparseLinear
from fullspectrum_ext.ops import csr_to_dense

_BACKENDS = (AUTO, SPARSE, MASKED)
# Exactly these types: a subclass may compute something else with its weight.
_LINEAR = (nn.Linear, MaskedLinear)
_CONV2D = (nn.Conv2d, MaskedConv2d)
_RECURRENT = (*MASKED_RECURRENT, *MASKED_RECURRENT.values())
_SPARSE_FIELDS = ("values", "crow_indices", "col_indices")
_CONV2D_ARGUMENTS = ("stride", "padding", "dilation", "groups", "padding_mode")

Model = TypeVar("Model", bound=nn.Module)


def sparsify(
    model: Model,
    masks: Mapping[str, Tensor],
    *,
    backend: str | Mapping[str, str] = AUTO,
    example: Tensor | tuple[Any, ...] | None = None,
    allow_empty: bool = False,
) -> Model:
    """Make a model sparse: replace its masked layers in place.

    They are ``Linear``, ``Conv2d``, ``RNN``, ``LSTM`` and ``GRU``; the recurrent ones stay dense
    with masks, for torch's kernels take all of their weights dense. Weights under a mask keep their
    values, the others are gone. A truly sparse layer has the new parameter ``values`` in place of
    ``weight``, so make the optimizer afterwards.

    Args:
        model: The model. Nothing in it is changed when an argument is refused.
        masks: For each weight to mask, named as in ``model.named_parameters()``, a tensor of its
            shape: True or 1 keeps, False or 0 removes.
        backend: ``"sparse"`` stores and touches the kept weights only. ``"masked"`` keeps dense
            layers whose removed weights stay exactly zero. ``"auto"`` takes for each layer the
            faster one, see :func:`choose_backends`. A mapping says it for each name of ``masks``.
        example: With ``"auto"``: input of the model, a tensor or a tuple of all its arguments. The
            choice is then measured at the layers' real shapes; without it, a rule decides.
        allow_empty: Accept a mask that keeps no weight at all.

    Returns:
        The model; where ``model`` itself is a masked layer, the layer that takes its place.

    Raises:
        TypeError: If ``masks`` is no mapping of names to tensors.
        ValueError: If a name is not a parameter of the model, or is shared, uninitialised or not
            a weight of a plain layer of these kinds; if a mask has another shape, holds other
            values than 0 and 1 or keeps nothing; if ``backend`` is unknown, leaves out a mask, or
            is ``"sparse"`` for a recurrent layer; if ``example`` does not fit the model or is given
            for another backend.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> sparsify(model, {"0.weight": torch.eye(3, 4).bool()}, backend="sparse")
        Sequential(
          (0): SparseLinear(in_features=4, out_features=3, nnz=3, density=0.25, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    chosen = _layers_to_mask(model, masks, allow_empty)
    backends = _backends(model, chosen, backend, example)
    return _replace(model, _sparse_layers(chosen, backends))


def choose_backends(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example: Tensor | tuple[Any, ...] | None = None,
    *,
    allow_empty: bool = False,
) -> dict[str, Choice]:
    """Choose for each masked layer between the truly sparse and the dense, masked one.

    With ``example`` the model runs once in evaluation mode, which changes nothing in it. Then a
    training step (forward and both gradients) of each layer is timed in both forms at the shapes
    seen, for 0.3 seconds, and the truly sparse one is taken where it was the faster in three of
    four rounds at least. The times are kept in ``fullspectrum_ext/backends.json`` in the user's
    cache folder (``XDG_CACHE_HOME``), by layer, shapes, density, threads, machine and versions: a
    layer is measured once. Without ``example`` a rule decides, the same on every machine:
    truly sparse from a size and a sparsity on.

    Args:
        model: The dense model; it is not changed.
        masks: As for :func:`sparsify`.
        example: Input of the model: a tensor, or a tuple of all its arguments.
        allow_empty: Accept a mask that keeps no weight at all.

    Returns:
        For each name of ``masks`` the choice: ``backend``, ``sparse_seconds``, ``masked_seconds``.

    Raises:
        TypeError: If ``masks`` or ``example`` are of a wrong type.
        ValueError: As for :func:`sparsify`.

    Example:
        >>> model = nn.Linear(300, 300)
        >>> masks = {"weight": torch.rand(300, 300) < 0.1}
        >>> choose_backends(model, masks)["weight"].backend
        'sparse'
    """
    chosen = _layers_to_mask(model, masks, allow_empty)
    if example is not None:
        return choose_by_measurement(model, chosen, example, _sparse_layer)
    return {name: Choice(choose_by_rule(layer, mask)) for name, (layer, mask) in chosen.items()}


def densify(model: Model) -> Model:
    """Make a sparse model dense again: the inverse of :func:`sparsify`, with zeros filled in.

    Args:
        model: The model; its sparse and masked layers are replaced in place by ``torch.nn.Linear``
            and ``torch.nn.Conv2d``.

    Returns:
        The model; where ``model`` itself is such a layer, the layer that takes its place.

    Example:
        >>> layer = sparsify(nn.Linear(2, 2, bias=False), {"weight": torch.eye(2)})
        >>> densify(layer)
        Linear(in_features=2, out_features=2, bias=False)
    """
    dense = {
        module: _dense_layer(module)
        for module in model.modules()
        if isinstance(module, (SparseLayer, Masked))
    }
    # one layer may stand in several places
    named = model.named_modules(remove_duplicate=False)
    layers = {name: dense[module] for name, module in named if module in dense}
    return _replace(model, layers)


def load_sparse_state_dict(model: Model, state_dict: Mapping[str, Any]) -> Model:
    """Load a sparse model's ``state_dict`` into a freshly built dense model.

    The layers that ``state_dict`` holds in sparse or masked form are replaced as by
    :func:`sparsify`, then everything is loaded: the model gives the same outputs, bit for bit.

    Args:
        model: A dense model of the same architecture. Nothing in it is changed when ``state_dict``
            is refused.
        state_dict: What ``sparse_model.state_dict()`` gave.

    Returns:
        The model; where ``model`` itself is a sparse layer, the layer that takes its place.

    Raises:
        ValueError: If keys are missing, unexpected or of another shape, or if a layer's fields are
            not a CSR matrix or mask of its weight's shape.

    Example:
        >>> model, masks = nn.Sequential(nn.Linear(3, 2)), {"0.weight": torch.ones(2, 3)}
        >>> state = sparsify(model, masks, backend="sparse").state_dict()
        >>> load_sparse_state_dict(nn.Sequential(nn.Linear(3, 2)), state)
        Sequential(
          (0): SparseLinear(in_features=3, out_features=2, nnz=6, density=1, bias=True)
        )
    """  # noqa: DOC502
    uses = _uses(model)
    expected: dict[str, torch.Size | None] = {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    masks: dict[str, Tensor] = {}
    backends: dict[str, str] = {}
    for key in state_dict:
        prefix, _, field = key.rpartition(".")
        name = f"{prefix}.weight" if prefix else "weight"
        if field == "crow_indices":
            layer = _layer_to_mask(model, name, uses)
            masks[name] = _mask_of_fields(state_dict, key[: -len(field)], layer)
            backends[name] = "sparse"
            del expected[name]
            expected.update({key[: -len(field)] + entry: None for entry in _SPARSE_FIELDS})
            is_conv2d = isinstance(layer, nn.Conv2d)
            size = (
                ("weight_shape", torch.Size([4])) if is_conv2d else ("in_features", torch.Size([]))
            )
            expected[key[: -len(field)] + size[0]] = size[1]
        elif (name := _masked_name(key)) in expected and key not in expected:
            layer = _layer_to_mask(model, name, uses)
            weight = model.get_parameter(name)
            masks[name] = _mask_of(name, state_dict[key], weight, allow_empty=True)
            backends[name] = "masked"
            expected[key] = weight.shape
    expected |= {key: None for name in masks if (key := _active_key(name, backends)) in state_dict}
    _check_keys(expected, state_dict)
    chosen = {name: (_layer_to_mask(model, name, uses), mask) for name, mask in masks.items()}
    model = _replace(model, _sparse_layers(chosen, backends))
    model.load_state_dict(state_dict)
    return model


# ---- finding and checking ----------------------------------------------------------------------


def _layers_to_mask(
    model: nn.Module, masks: Mapping[str, Tensor], allow_empty: bool
) -> dict[str, tuple[Any, Tensor]]:
    """Return for each name of ``masks`` the dense layer and its mask, all checked."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"masks: expected a mapping of names to tensors, got {type(masks).__name__}"
        )
    uses = _uses(model)
    chosen = {}
    for name, mask in masks.items():
        layer = _layer_to_mask(model, name, uses)
        chosen[name] = (layer, _mask_of(name, mask, model.get_parameter(name), allow_empty))
    return chosen


def _backends(
    model: nn.Module,
    chosen: Mapping[str, tuple[Any, Tensor]],
    backend: str | Mapping[str, str],
    example: Any,
) -> Mapping[str, str]:
    """Return for each name the backend asked for or chosen."""
    backends = _asked_backends(model, chosen, backend, example)
    for name, (layer, _) in chosen.items():
        if isinstance(layer, nn.RNNBase) and backends[name] == SPARSE:
            raise ValueError(
                f"masks[{name!r}]: the layer is recurrent, and torch's kernels take all weights of "
                f"a {type(layer).__name__} dense; expected backend 'masked' or 'auto' for it"
            )
    return backends


def _asked_backends(
    model: nn.Module,
    chosen: Mapping[str, tuple[Any, Tensor]],
    backend: str | Mapping[str, str],
    example: Any,
) -> Mapping[str, str]:
    if example is not None and backend != AUTO:
        raise ValueError(f"example: expected with backend='auto' only, got backend={backend!r}")
    if isinstance(backend, Mapping):
        if set(backend) != set(chosen):
            names = ", ".join(sorted(set(backend) ^ set(chosen)))
            raise ValueError(f"backend: expected the names of masks, in one only are: {names}")
        for name, value in backend.items():
            if value not in {SPARSE, MASKED}:
                raise ValueError(f"backend[{name!r}]: expected sparse or masked, got {value!r}")
        return backend
    _checks.check_choice("backend", backend, _BACKENDS)
    if backend != AUTO:
        return dict.fromkeys(chosen, backend)
    choices = choose_backends(
        model, {name: mask for name, (_, mask) in chosen.items()}, example, allow_empty=True
    )
    return {name: choice.backend for name, choice in choices.items()}


def _uses(model: nn.Module) -> dict[str, int]:
    """Count for each parameter name the names that its tensor goes by in the model."""
    names = dict(model.named_parameters(remove_duplicate=False))
    counts: dict[int, int] = {}
    for parameter in names.values():
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return {name: counts[id(parameter)] for name, parameter in names.items()}


def _layer_name(name: str) -> str:
    return name.rpartition(".")[0]


def _layer_to_mask(model: nn.Module, name: str, uses: Mapping[str, int]) -> Any:
    """Return the layer that has a weight of this name, or raise ValueError."""
    if name not in uses:
        hint = ""
        if f"{name}_orig" in uses:
            hint = "; it is pruned by torch.nn.utils.prune: call its remove() first"
        elif name.removesuffix("weight") + "values" in uses:
            hint = "; its layer is sparse already: call densify() first"
        raise ValueError(f"masks[{name!r}]: the model has no parameter of this name{hint}")
    layer = model.get_submodule(_layer_name(name))
    if is_lazy(model.get_parameter(name)):
        raise ValueError(
            f"masks[{name!r}]: this parameter is lazy and has no shape yet: run the model once"
        )
    if model.get_parameter(name).is_meta:
        raise ValueError(
            f"masks[{name!r}]: this parameter is on the meta device and holds nothing: "
            "call the model's to_empty() first"
        )
    parameter = name.rpartition(".")[2]
    is_recurrent = type(layer) in _RECURRENT and parameter.startswith("weight_")
    if not is_recurrent and (type(layer) not in _LINEAR + _CONV2D or parameter != "weight"):
        raise ValueError(
            f"masks[{name!r}]: expected the weight of a torch.nn.Linear, Conv2d, RNN, LSTM or GRU, "
            f"got {parameter!r} of {type(layer).__name__}"
        )
    if uses[name] > 1:
        raise ValueError(
            f"masks[{name!r}]: this parameter is shared between {uses[name]} places of the model, "
            "a mask on one of them would tear them apart"
        )
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        raise ValueError(
            f"masks[{name!r}]: its layer has hooks, which would be lost: register them afterwards"
        )
    return layer


def _mask_of(name: str, mask: Tensor, weight: Tensor, allow_empty: bool) -> Tensor:
    kept = as_mask(name, mask)
    if mask.shape != weight.shape:
        raise ValueError(
            f"masks[{name!r}]: expected the weight's shape {tuple(weight.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    if not allow_empty and not bool(kept.any()):
        raise ValueError(
            f"masks[{name!r}]: keeps none of the {mask.numel()} weights, which cuts the model in "
            "two; allow_empty=True accepts that"
        )
    return kept.to(weight.device)


def _mask_of_fields(state_dict: Mapping[str, Any], prefix: str, layer: Any) -> Tensor:
    """Return the mask of one sparse layer of a state_dict, once its fields have been checked."""
    missing = [prefix + field for field in _SPARSE_FIELDS if prefix + field not in state_dict]
    if missing:
        raise ValueError(f"state_dict: missing keys {', '.join(missing)}")
    values, crow_indices, col_indices = (state_dict[prefix + field] for field in _SPARSE_FIELDS)
    shape = (layer.weight.shape[0], layer.weight.shape[1:].numel())
    try:
        _checks.check_csr(crow_indices, col_indices, shape, values, validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state_dict: {prefix}{error}") from error
    ones = torch.ones(values.shape, dtype=torch.bool, device=values.device)
    mask = csr_to_dense(crow_indices, col_indices, ones, shape)
    return mask.view(layer.weight.shape).to(layer.weight.device)


def _check_keys(expected: Mapping[str, torch.Size | None], state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError unless the keys and shapes are those expected; None is any shape."""
    for what, keys in (
        ("missing", [key for key in expected if key not in state_dict]),
        ("unexpected", [key for key in state_dict if key not in expected]),
    ):
        if keys:
            raise ValueError(f"state_dict: {what} keys {', '.join(map(repr, keys))}")
    for key, shape in expected.items():
        if shape is not None and getattr(state_dict[key], "shape", None) != shape:
            got = getattr(state_dict[key], "shape", type(state_dict[key]).__name__)
            raise ValueError(f"state_dict: expected shape {tuple(shape)} for {key!r}, got {got}")


# ---- replacing ---------------------------------------------------------------------------------


def _sparse_layers(
    chosen: Mapping[str, tuple[Any, Tensor]], backends: Mapping[str, str]
) -> dict[str, nn.Module]:
    """Make the layer for each one chosen; all masks of a recurrent layer go into one."""
    layers: dict[str, nn.Module] = {}
    recurrent: dict[str, dict[str, Tensor]] = {}
    for name, (layer, mask) in chosen.items():
        place, _, parameter = name.rpartition(".")
        if not isinstance(layer, nn.RNNBase):
            layers[place] = _sparse_layer(layer, mask, backends[name])
            continue
        masks = recurrent.setdefault(place, layer.masks if isinstance(layer, Masked) else {})
        masks[parameter] = mask
        masked = MASKED_RECURRENT.get(type(layer), type(layer))
        layers[place] = _like(layer, masked(layer, masks))
    return layers


def _masked_name(key: str) -> str:
    """Return the name of the weight whose mask has this name."""
    prefix, _, field = key.rpartition(".")
    parameter = "weight" if field == "mask" else field.removesuffix("_mask")
    return f"{prefix}.{parameter}" if prefix else parameter


def _active_key(name: str, backends: Mapping[str, str]) -> str:
    """Return what a state_dict calls the mark of a weight's active entries, where it has one."""
    place, _, parameter = name.rpartition(".")
    if backends[name] == SPARSE or parameter == "weight":
        return join(place, "active")
    return f"{name}_active"


def _sparse_layer(layer: Any, mask: Tensor, backend: str) -> nn.Module:
    is_conv2d = isinstance(layer, nn.Conv2d)
    if backend == MASKED:
        return _like(layer, (MaskedConv2d if is_conv2d else MaskedLinear)(layer, mask))
    sparse: SparseLayer
    if is_conv2d:
        arguments = {name: getattr(layer, name) for name in _CONV2D_ARGUMENTS}
        sparse = SparseConv2d.from_dense(layer.weight, mask, layer.bias, **arguments)
    else:
        sparse = SparseLinear.from_dense(layer.weight, mask, layer.bias)
    sparse.values.requires_grad_(layer.weight.requires_grad)
    return _like(layer, sparse)


def _dense_layer(layer: Any) -> nn.Module:
    # on the meta device, so that no random number is drawn for weights that are not used
    with torch.device("meta"):
        dense: Any
        if isinstance(layer, nn.RNNBase):
            plain = next(kind for kind in MASKED_RECURRENT if isinstance(layer, kind))
            dense = plain(**recurrent_arguments(layer))
            for name, parameter in layer.named_parameters():
                setattr(dense, name, _plain(layer, name, parameter))
            return _like(layer, dense)
        if isinstance(layer, (SparseConv2d, MaskedConv2d)):
            dense = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                bias=layer.bias is not None,
                **{name: getattr(layer, name) for name in _CONV2D_ARGUMENTS},
            )
        else:
            dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    if isinstance(layer, SparseLayer):
        weight = layer.to_dense().detach()
        dense.weight = nn.Parameter(weight, requires_grad=layer.values.requires_grad)
    else:
        dense.weight = _plain(layer, "weight", layer.weight)
    dense.bias = layer.bias
    return _like(layer, dense)


def _plain(layer: Any, name: str, parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter of a masked layer with nothing in it that the layer computes without."""
    if layer.active_of(name) is None:
        return parameter
    weight = layer.used_weight(name).detach()
    return nn.Parameter(weight, requires_grad=parameter.requires_grad)


def _like(layer: nn.Module, replacement: nn.Module) -> nn.Module:
    return replacement.train(layer.training)


def _replace(model: Model, layers: Mapping[str, nn.Module]) -> Model:
    for name, layer in layers.items():
        if name == "":
            return layer  # type: ignore[return-value]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return model
