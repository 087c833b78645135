"""``WeightNormSparsifier`` as ``torch.ao.pruning`` and ``torchao.sparsity`` have it.

Written anew after its interface, https://github.com/pytorch/ao/tree/main/torchao/sparsity.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fullspectrum_ext import _checks
from fullspectrum_ext.masks import MaskSet, as_mask
from fullspectrum_ext.nn import sparsify
from fullspectrum_ext.ops import smallest_magnitudes

_OPTIONS = ("sparsity_level", "sparse_block_shape", "zeros_per_block")
_OF_MODULE = ("module", "module_fqn", "tensor_name")
_NORMS: dict[int, Callable[[Tensor], Tensor]] = {1: torch.abs, 2: torch.square}


class Mask(nn.Module):
    """A parametrization: the weight where the mask is True, and 0 elsewhere.

    Args:
        mask: Bool, of the weight's shape.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight; what lies under the mask gets no gradient."""
        return torch.where(self.mask, weight, 0)


class WeightNormSparsifier:
    """Masks the blocks of the smallest norm: ``prepare``, ``step`` as often as wanted, ``squash_mask``.

    Of each weight, as a matrix with one row an output, the blocks are taken from the first row and
    column on. ``round(sparsity_level * blocks)`` of the smallest mean norm lose each the
    ``zeros_per_block`` smallest of their weights. Of equal ones the last go.

    In between the layers are parametrized by :class:`Mask`, as in the original: the parameters stay
    the same objects, so that an optimizer made before goes on, and a weight under the mask comes
    back with its value if a later step frees it.

    Args:
        sparsity_level: The fraction of the blocks.
        sparse_block_shape: Rows and columns of a block; ``(1, 1)`` for single weights.
        zeros_per_block: How many of a chosen block; None for all. 2 of ``(1, 4)`` at level 1.0 is
            the pattern 2:4.
        norm: 1, 2 (the square), or a function of the weight that gives a tensor of its shape.

    Attributes:
        groups: What is said of each weight, by :meth:`prepare`; its options may be changed between
            steps.
        enable_mask_update: False makes :meth:`step` do nothing.

    Raises:
        ValueError: If the norm is another number.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sparsifier = WeightNormSparsifier(
        ...     sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
        ... )
        >>> sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        >>> sparsifier.step()
        >>> sparsifier.squash_mask()
        >>> (model[0].weight.view(-1, 4) != 0).sum(1).unique()
        tensor([2])
    """  # noqa: E501

    def __init__(
        self,
        sparsity_level: float = 0.5,
        sparse_block_shape: tuple[int, int] = (1, 4),
        zeros_per_block: int | None = None,
        norm: Callable[[Tensor], Tensor] | int | None = None,
    ) -> None:
        norm = 2 if norm is None else norm
        if not callable(norm) and norm not in _NORMS:
            raise ValueError(f"norm: expected 1, 2 or a function, got {norm!r}")
        self._norm = norm if callable(norm) else _NORMS[norm]
        self.defaults = {
            "sparsity_level": sparsity_level,
            "sparse_block_shape": sparse_block_shape,
            "zeros_per_block": zeros_per_block,
        }
        _check_options(self.defaults, "")
        self.groups: list[dict[str, Any]] = []
        self.enable_mask_update = True
        self._model: nn.Module | None = None

    def prepare(self, model: nn.Module, config: Sequence[Mapping[str, Any]] | None) -> None:
        """Put masks on weights of a model, all True at first.

        Args:
            model: Changed in place.
            config: For each weight its name, ``{"tensor_fqn": "0.weight"}``, with options of its
                own where they differ from those of the sparsifier; None for all linear layers.

        Raises:
            TypeError: If an entry is no mapping.
            ValueError: If an entry has no name or one that the model does not have, an option is
                unknown or out of range, or the sparsifier is prepared. Nothing has changed then.
        """
        if self.groups:
            raise ValueError("prepare: expected once, until squash_mask")
        if config is None:
            config = [
                {"tensor_fqn": f"{name}.weight".removeprefix(".")}
                for name, module in model.named_modules()
                if type(module) is nn.Linear
            ]
        self.groups = [self._group(model, entry) for entry in config]
        self._model = model
        for group in self.groups:
            module, name = group["module"], group["tensor_name"]
            mask = torch.ones_like(getattr(module, name), dtype=torch.bool)
            parametrize.register_parametrization(module, name, Mask(mask))

    @torch.no_grad()
    def step(self, use_path: bool = True) -> None:
        """Make the masks anew from the weights as they are, those under a mask being 0.

        Args:
            use_path: Read by nothing, as in the original.

        Raises:
            ValueError: If an option of :attr:`groups` is out of range.
        """
        if not self.enable_mask_update:
            return
        for group in self.groups:
            _check_options(group, group["tensor_fqn"])
            weight = getattr(group["module"], group["tensor_name"])
            norms = self._norm(weight).reshape(weight.shape[0], -1)
            options = [group[name] for name in _OPTIONS]
            _mask_of(group).copy_(block_mask(norms, *options).view_as(weight))

    @property
    def masks(self) -> MaskSet:
        """The masks as they are now, by the names of the weights."""
        return MaskSet({group["tensor_fqn"]: _mask_of(group) for group in self.groups})

    def squash_mask(
        self,
        params_to_keep: tuple[str, ...] | None = None,
        params_to_keep_per_layer: Mapping[str, tuple[str, ...]] | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        """Write the masks into the weights, which are ordinary parameters again, and take leave.

        Args:
            params_to_keep: Options to leave in each module, as a dict ``sparse_params``.
            params_to_keep_per_layer: The same by the names of the modules.
            backend: None for dense weights with zeros, as the original; else as of
                :func:`fullspectrum_ext.sparsify`, which makes the layers truly sparse
                (``"sparse"``), or keeps them sparse in training (``"masked"``). Make the optimizer
                afterwards then.
        """
        masks = dict(self.masks) if backend is not None else {}
        model = self._prepared
        for group in self.groups:
            module = group["module"]
            parametrize.remove_parametrizations(module, group["tensor_name"])
            kept = (*(params_to_keep or ()),)
            kept += tuple((params_to_keep_per_layer or {}).get(group["module_fqn"], ()))
            if kept:
                module.sparse_params = {name: group[name] for name in kept}
        self.groups = []
        if backend is not None:
            sparsify(model, masks, backend=backend)

    def state_dict(self) -> dict[str, Any]:
        """Return masks and options, in the form of the original."""
        return {
            "state": {
                group["tensor_fqn"]: {"mask": _mask_of(group).clone()} for group in self.groups
            },
            "groups": [
                {name: copy.copy(value) for name, value in group.items() if name not in _OF_MODULE}
                for group in self.groups
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Go on with other masks and options.

        Args:
            state_dict: Of a sparsifier, this one's or the original's, of the same weights.
            strict: Refuse one of other weights; if False, weights that it lacks keep their masks.

        Raises:
            ValueError: If it is of other weights, or a mask has another shape or other values than
                0 and 1. Nothing has changed then.
        """
        own = {group["tensor_fqn"]: group for group in self.groups}
        masks = {name: as_mask(name, held["mask"]) for name, held in state_dict["state"].items()}
        if strict and masks.keys() != own.keys():
            raise ValueError(
                f"state_dict: expected masks of {', '.join(own)}, got {', '.join(masks)}"
            )
        masks = {name: mask for name, mask in masks.items() if name in own}
        for name, mask in masks.items():
            shape = _mask_of(own[name]).shape
            if mask.shape != shape:
                raise ValueError(
                    f"state_dict: expected a mask of {tuple(shape)} for {name}, "
                    f"got {tuple(mask.shape)}"
                )
        for name, mask in masks.items():
            _mask_of(own[name]).copy_(mask)
        for held in state_dict["groups"]:
            if held["tensor_fqn"] in own:
                options = {name: held[name] for name in _OPTIONS if name in held}
                own[held["tensor_fqn"]].update(options)

    @property
    def _prepared(self) -> nn.Module:
        if self._model is None or not self.groups:
            raise RuntimeError("squash_mask: expected prepare(model, config) first")
        return self._model

    def _group(self, model: nn.Module, entry: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(entry, Mapping):
            raise TypeError(f"config: expected mappings, got {type(entry).__name__}")
        name = str(entry.get("tensor_fqn", "")).removeprefix(".")
        if not name:
            raise ValueError(f'config: expected {{"tensor_fqn": "0.weight"}}, got {dict(entry)}')
        unknown = entry.keys() - {"tensor_fqn", *_OPTIONS}
        if unknown:
            raise ValueError(
                f"config: {name}: expected options {', '.join(_OPTIONS)}, "
                f"got {', '.join(sorted(unknown))}"
            )
        place, _, tensor_name = name.rpartition(".")
        weight = dict(model.named_parameters(remove_duplicate=False)).get(name)
        if weight is None or weight.dim() < 2:
            raise ValueError(f"config: {name}: expected a parameter of the model with rows")
        group = {**self.defaults, **entry, "tensor_fqn": name}
        _check_options(group, name)
        module = model.get_submodule(place)
        return group | {"module_fqn": place, "module": module, "tensor_name": tensor_name}


def block_mask(
    norms: Tensor, level: float, shape: tuple[int, int], zeros: int | None = None
) -> Tensor:
    """Mark what is kept when the blocks of the smallest norm lose their smallest weights.

    Args:
        norms: Not negative, ``[rows, columns]``. Blocks at its end may be smaller.
        level: The fraction of the blocks that lose something: as many as the nearest whole number,
            and below 1 at least one block stays whole.
        shape: Rows and columns of a block.
        zeros: How many a block loses; None for all.

    Returns:
        Bool, ``[rows, columns]``.

    Example:
        >>> block_mask(torch.tensor([[1.0, 2, 3, 4], [8, 7, 6, 5]]), 1.0, (1, 4), 2).int()
        tensor([[0, 0, 1, 1],
                [1, 1, 0, 0]], dtype=torch.int32)
    """
    height, width = shape
    size = height * width
    rows, columns = norms.shape
    below, right = -rows % height, -columns % width
    norms = norms.to(torch.promote_types(norms.dtype, torch.float32))
    padded = nn.functional.pad(norms, (0, right, 0, below), value=torch.inf)
    grid = (rows + below) // height, (columns + right) // width
    tiles = padded.view(grid[0], height, grid[1], width).transpose(1, 2).reshape(-1, size)
    inside = tiles.isfinite()
    means = torch.where(inside, tiles, 0).sum(1) / inside.sum(1)
    count = min(round(level * len(tiles)), len(tiles) - (level < 1))
    chosen = smallest_magnitudes(means, max(count, 0))
    # backwards, so that of equal ones the last come first
    order = tiles[chosen].flip(1).argsort(dim=1, stable=True)
    lost = size - 1 - order[:, : size if zeros is None else zeros]
    kept = torch.ones_like(tiles, dtype=torch.bool)
    kept[chosen.unsqueeze(1), lost] = False
    kept = kept.view(*grid, height, width).transpose(1, 2).reshape(padded.shape)
    return kept[:rows, :columns]


def _mask_of(group: Mapping[str, Any]) -> Tensor:
    mask: Tensor = group["module"].parametrizations[group["tensor_name"]][0].mask
    return mask


def _check_options(options: Mapping[str, Any], name: str) -> None:
    """Refuse options that are out of range."""
    at = f"config: {name}: " if name else ""
    level, shape, zeros = (options[option] for option in _OPTIONS)
    if not 0 <= level <= 1:
        raise ValueError(f"{at}sparsity_level: expected a fraction in [0, 1], got {level}")
    if len(shape) != 2 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(f"{at}sparse_block_shape: expected two positive integers, got {shape}")
    if zeros is not None:
        _checks.check_integer(f"{at}zeros_per_block", zeros, 0, math.prod(shape))
