"""Masks of a network: which weights are kept, by the name of their parameter."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext._layers import model_layers, state_dict_layers

FORMAT = "fullspectrum.masks.1"  # the metadata entry that marks a file of masks


class Degrees(NamedTuple):
    """How many weights the two sides of a layer have: of its matrix, row by row, column by column.

    Attributes:
        inward: Weights kept of each output, its in-degree; int64 ``[rows]``.
        outward: Weights kept of each input tap, its out-degree; int64 ``[columns]``.
    """

    inward: Tensor
    outward: Tensor

    def histograms(self) -> dict[str, list[list[int]]]:
        """Return how often each degree comes, as JSON can hold it.

        Returns:
            For ``"in"`` and ``"out"`` pairs of a degree and the number of units that have it, by
            rising degree; degrees that no unit has are left out.

        Example:
            >>> Degrees(torch.tensor([2, 0, 2]), torch.tensor([3, 1])).histograms()
            {'in': [[0, 1], [2, 2]], 'out': [[1, 1], [3, 1]]}
        """
        return {"in": _histogram(self.inward), "out": _histogram(self.outward)}


class MaskSet(Mapping[str, Tensor]):
    """An ordered mapping from a parameter's name to its mask: True where the weight is kept.

    The masks are copies: what becomes of the tensors it was made from does not change it. Two sets
    are equal when they hold the same names and the same bits, wherever they are and in whatever
    order.

    Args:
        mapping: Parameter name to a tensor of zeros and ones of the weight's shape, any dtype.
        meta: What the masks come from, as JSON-like values. :func:`fullspectrum_ext.prune` writes
            its arguments and the method's record here. Saved with the masks, not compared.

    Raises:
        TypeError: If a mask is not a tensor, or a name not a string.
        ValueError: If there is no mask, or one holds other values than 0 and 1.

    Example:
        >>> masks = MaskSet({"fc.weight": torch.tensor([[1, 0, 0, 1]])})
        >>> masks.nnz, masks.sparsity
        (2, 0.5)
    """

    def __init__(self, mapping: Mapping[str, Tensor], *, meta: Mapping[str, Any] | None = None):
        if not isinstance(mapping, Mapping):
            raise TypeError(
                f"masks: expected a mapping name -> tensor, got {type(mapping).__name__}"
            )
        if not mapping:
            raise ValueError("masks: expected at least one mask, got none")
        self._masks = {name: as_mask(name, mask) for name, mask in mapping.items()}
        self.meta: dict[str, Any] = dict(meta or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaskSet):
            return NotImplemented
        return self.keys() == other.keys() and all(
            mask.shape == other[name].shape and torch.equal(mask.cpu(), other[name].cpu())
            for name, mask in self.items()
        )

    __hash__ = None  # type: ignore[assignment]  # the masks are tensors; digest() identifies a set

    def __repr__(self) -> str:
        return (
            f"MaskSet({len(self)} {'layer' if len(self) == 1 else 'layers'}, "
            f"{self.nnz} of {self.numel} weights kept, sparsity {self.sparsity:.4f})"
        )

    @property
    def nnz(self) -> int:
        """Number of weights kept."""
        return sum(int(mask.count_nonzero()) for mask in self.values())

    @property
    def numel(self) -> int:
        """Number of weights, kept or not."""
        return sum(mask.numel() for mask in self.values())

    @property
    def density(self) -> float:
        """Fraction of the weights that is kept."""
        return self.nnz / max(self.numel, 1)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is removed."""
        return 1.0 - self.density

    def degrees(self, name: str) -> Degrees:
        """Return how many weights each output and each input tap of a layer has.

        Args:
            name: Of the mask; a weight ``[out, in, ...]`` is a matrix with a row for each output.

        Returns:
            The in-degrees of the outputs and the out-degrees of the input taps.

        Raises:
            KeyError: If there is no mask of that name.

        Example:
            >>> masks = MaskSet({"fc.weight": torch.tensor([[1, 0, 1], [1, 0, 0]])})
            >>> degrees = masks.degrees("fc.weight")
            >>> degrees.inward.tolist(), degrees.outward.tolist()
            ([2, 1], [2, 0, 1])
        """
        matrix = self[name].flatten(1)
        return Degrees(matrix.sum(1), matrix.sum(0))

    def digest(self) -> str:
        """Return a hexadecimal fingerprint of names, shapes and bits, the same on every device."""
        state = hashlib.sha256()
        for name in sorted(self):
            header = json.dumps([name, list(self[name].shape)])
            state.update(f"{len(header)}:{header}".encode())
            state.update(_packed(self[name]).tobytes())
        return state.hexdigest()

    def table(self) -> Table:
        """Return a table for people, one line a layer: ``rich.print(masks.table())``."""
        total = f"{self.nnz} / {self.numel}", f"{self.density:.4f}"
        table = Table(title="Masks", show_footer=True)
        table.add_column("layer", footer="total")
        table.add_column("shape")
        table.add_column("kept", justify="right", footer=total[0])
        table.add_column("density", justify="right", footer=total[1])
        for name, mask in self.items():
            kept, numel = int(mask.count_nonzero()), mask.numel()
            shape = " x ".join(str(size) for size in mask.shape)
            table.add_row(escape(name), shape, f"{kept} / {numel}", f"{kept / max(numel, 1):.4f}")
        return table

    def apply(self, model: nn.Module) -> None:
        """Set the pruned weights of a model to zero, in place, and change nothing else.

        The model stays dense, and training brings the weights back unless something holds them at
        zero: :func:`fullspectrum_ext.sparsify` trains only the weights that are kept.

        Args:
            model: A model with a parameter for each mask.

        Raises:
            ValueError: If a mask has no parameter of its name and shape; nothing is changed then.

        Example:
            >>> layer = nn.Linear(2, 1)
            >>> MaskSet({"weight": torch.tensor([[True, False]])}).apply(layer)
            >>> layer.weight.count_nonzero().item()
            1
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in self.items():
            if name not in parameters:
                raise ValueError(f"model: there is no parameter {name!r} for the mask of this name")
            if parameters[name].shape != mask.shape:
                raise ValueError(
                    f"model: parameter {name!r} has shape {tuple(parameters[name].shape)}, "
                    f"but its mask {tuple(mask.shape)}"
                )
        with torch.no_grad():
            for name, mask in self.items():
                parameter = parameters[name]
                parameter.masked_fill_(~mask.to(parameter.device), 0)  # not `*=`: NaN * 0 is NaN

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the masks to a safetensors file, eight weights a byte, in one atomic step.

        ``meta`` goes with them as JSON; a value that JSON cannot say is a TypeError.

        Args:
            path: The file to write; an existing one is replaced only when the new one is complete.
        """
        # One entry: safetensors writes several in an order that changes from run to run.
        shapes = [[name, list(mask.shape)] for name, mask in self.items()]
        header = {FORMAT: json.dumps({"shapes": shapes, "meta": self.meta})}
        # Numbered, so that a parameter may have any name.
        bits = {str(i): _packed(mask) for i, mask in enumerate(self.values())}
        write_atomically(Path(path), safetensors.numpy.save(bits, metadata=header))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "MaskSet":
        """Read masks that :meth:`save` wrote; no code in the file is ever run.

        Args:
            path: The file.

        Returns:
            The masks, on the CPU, with their ``meta``.

        Raises:
            ValueError: If the file is damaged, or is something else.
        """
        Path(path).stat()  # FileNotFoundError in the system's own words
        try:
            with safetensors.safe_open(os.fspath(path), framework="np") as file:
                header = json.loads((file.metadata() or {})[FORMAT])
                masks = {
                    name: _unpacked(file.get_tensor(str(i)), shape)
                    for i, (name, shape) in enumerate(header["shapes"])
                }
                return MaskSet(masks, meta=header["meta"])
        except (
            safetensors.SafetensorError,
            KeyError,
            TypeError,
            ValueError,
            RecursionError,
        ) as error:
            raise ValueError(
                f"{os.fspath(path)}: expected masks written by MaskSet.save ({FORMAT}), got a "
                f"damaged or foreign file: {error}"
            ) from error

    @staticmethod
    def from_model(model: nn.Module) -> "MaskSet":
        """Read off a model which of its weights are there.

        Every linear, 2-d convolution and recurrent layer has its masks in the set. They come from
        the layer's own record where there is one: ``weight_mask`` of ``torch.nn.utils.prune`` (also
        after several rounds of it), the topology of :class:`fullspectrum_ext.nn.SparseLinear`, the
        mask of a masked layer. For any other layer it is what is not zero in its weight, so that a
        dense layer is all True.

        Args:
            model: Any module; it is not changed.

        Returns:
            Masks by the names that the weights have in the dense model.

        Raises:
            ValueError: If the model has no such layer, or a lazy one.

        Example:
            >>> layer = nn.Linear(4, 2)
            >>> from torch.nn.utils import prune
            >>> _ = prune.l1_unstructured(layer, "weight", amount=6)
            >>> MaskSet.from_model(layer)
            MaskSet(1 layer, 2 of 8 weights kept, sparsity 0.7500)
        """
        layers = model_layers(model)
        if not layers:
            raise ValueError("model: expected a Linear, Conv2d or recurrent layer, found none")
        return MaskSet({name: layer.mask for name, layer in layers.items()})

    @staticmethod
    def from_state_dict(state: Mapping[str, Tensor]) -> "MaskSet":
        """Read off a state dict which weights are there, as :meth:`from_model` does off a model.

        Args:
            state: Name to tensor: plain (zeros are pruned weights), from ``torch.nn.utils.prune``
                (``weight_orig``, ``weight_mask``), from ``torch.ao.pruning``
                (``parametrizations.weight``), or from a sparse or masked model of this package.

        Returns:
            Masks by the names that the weights have in the dense model.

        Raises:
            ValueError: If it holds no weight with two or four dimensions, or a sparse layer that
                does not say how many inputs it has.
        """
        layers = state_dict_layers(state)
        if not layers:
            raise ValueError("state: expected a weight with two or four dimensions, found none")
        return MaskSet({name: layer.mask for name, layer in layers.items()})


def as_mask(name: object, mask: object) -> Tensor:
    """Return a bool copy of zeros and ones of any dtype; refuse anything else by its name.

    Args:
        name: The parameter's name, for the message.
        mask: The zeros and ones.

    Returns:
        The mask, bool, contiguous.

    Raises:
        TypeError: If ``mask`` is not a tensor, or ``name`` not a string.
        ValueError: If another value than 0 and 1 is in it, or none at all (on the meta device).
    """
    if not isinstance(name, str):
        raise TypeError(f"masks: expected parameter names, got {name!r}")
    if not isinstance(mask, Tensor):
        raise TypeError(f"masks[{name!r}]: expected a torch.Tensor, got {type(mask).__name__}")
    if mask.is_meta:
        raise ValueError(f"masks[{name!r}]: expected values, got a tensor on the meta device")
    mask = mask.detach()
    if mask.layout != torch.strided:
        mask = mask.to_dense()
    if mask.dtype == torch.bool:
        return mask.clone(memory_format=torch.contiguous_format)
    other = (mask != 0) & (mask != 1)
    if bool(other.any()):
        raise ValueError(
            f"masks[{name!r}]: expected zeros and ones, got {mask[other].flatten()[0].item()}"
        )
    return (mask != 0).contiguous()


def _histogram(degrees: Tensor) -> list[list[int]]:
    found, counts = degrees.unique(return_counts=True)
    return torch.stack([found, counts], dim=1).tolist()


def _packed(mask: Tensor) -> np.ndarray:
    return np.packbits(mask.cpu().numpy().reshape(-1))


def _unpacked(bits: np.ndarray, shape: list[int]) -> Tensor:
    numel = math.prod(shape)
    if min(shape, default=0) < 0 or bits.dtype != np.uint8 or bits.shape != (-(-numel // 8),):
        raise ValueError(f"{bits.size} bytes of {bits.dtype} for a mask of shape {shape}")
    return torch.from_numpy(np.unpackbits(bits, count=numel).reshape(shape).astype(bool))
