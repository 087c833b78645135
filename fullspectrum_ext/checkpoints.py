"""Checkpoints on disk as lazy state dicts: each tensor is read when it is asked for.

Peak memory is that of the tensors in use. A file is mapped into memory anew for every tensor:
pages that were read stay resident as long as their mapping lives, so that one mapping for the whole
file would in the end hold the whole file.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from fullspectrum_ext._layers import stored_layers

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
"""Keys under which training scripts put the state dict beside other things."""
_INDEXES = ("*.safetensors.index.json", "*.bin.index.json")
_SINGLES = ("model.pth", "pytorch_model.bin")
_SMALL = 2**26
"""Bytes up to which a file of torch.save stays mapped; mapping one anew takes milliseconds."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\..+)")


class _Stored(NamedTuple):
    """A tensor on disk: its header, on the meta device, and how to read it."""

    header: Tensor
    read: Callable[[], Tensor]


class Checkpoint(Mapping[str, Tensor]):
    """The state dict of a checkpoint on disk; looking up a name reads its tensor, and keeps none.

    Attributes:
        headers: Name to a tensor on the meta device: shape and dtype without the values.
    """

    def __init__(self, stored: Mapping[str, _Stored]):
        self._stored = dict(stored)
        self.headers = {name: entry.header for name, entry in self._stored.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint without reading its values; no code in it is ever run.

    Args:
        path: ``.safetensors``; a file of ``torch.save`` (a state dict, or a dict with one under
            one of the usual names, such as a checkpoint of ``fullspectrum train``, or with the
            ``pruner`` of rigl-torch); the index of a sharded checkpoint (``*.index.json``); or a
            folder with an index, safetensors files, ``pytorch_model.bin`` or ``model.pth``. A
            ``mask.pth`` beside ``model.pth`` (open_lth) is read with it.

    Returns:
        Name to tensor, in the order of the file.

    Raises:
        ValueError: If a file is damaged, holds no state dict or code, a shard is missing, or a
            name comes twice.
    """
    path = Path(path)
    path.stat()  # FileNotFoundError in the system's own words
    if path.is_dir():
        return Checkpoint(_open_folder(path))
    if path.name.endswith(".index.json"):
        return Checkpoint(_open_index(path))
    return Checkpoint(_open_file(path))


def load_tensors(path: Path, *, lazy: bool = False) -> Any:
    """Read a ``.pt`` file of tensors and plain containers, and nothing else.

    Args:
        path: The file.
        lazy: Map the file into memory, so that values are read only when they are looked at.

    Returns:
        What was saved, on the CPU.

    Raises:
        ValueError: If the file is cut short, is no torch file, or holds code to be run.
    """
    path = Path(path)
    path.stat()
    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        mmap = lazy and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = "it holds more than tensors and plain containers, which could run code"
        raise ValueError(f"{path}: not loaded: {reason}, or it is damaged") from error
    except Exception as error:  # torch's readers raise many kinds for what they cannot read
        raise ValueError(f"{path}: not a torch file, or cut short ({error})") from error


def _open_file(path: Path) -> dict[str, _Stored]:
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    stored = _open_torch(path)
    masks = path.with_name("mask.pth")
    if path.name == "model.pth" and masks.is_file():
        for name, entry in _open_torch(masks).items():
            if name not in stored:
                raise ValueError(f"{masks}: expected masks of {path.name}, got one of {name!r}")
            stored[f"{name}_mask"] = entry
    return stored


def _open_folder(path: Path) -> dict[str, _Stored]:
    for pattern in _INDEXES:
        indexes = sorted(path.glob(pattern))
        if len(indexes) > 1:
            raise ValueError(f"{path}: expected one index, got {_listed(p.name for p in indexes)}")
        if indexes:
            return _open_index(indexes[0])
    shards = sorted(path.glob("*.safetensors"))
    if shards:
        _check_numbers(path, {shard.name for shard in shards})
        return _open_shards(shards)
    for name in _SINGLES:
        if (path / name).is_file():
            return _open_file(path / name)
    raise ValueError(
        f"{path}: expected a checkpoint in this folder ({', '.join((*_INDEXES, '*.safetensors'))}, "
        f"{', '.join(_SINGLES)}), found none"
    )


def _open_index(path: Path) -> dict[str, _Stored]:
    """Open the shards that a Hugging Face index names."""
    try:
        index = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
        weight_map = index["weight_map"]
        files = {name: str(file) for name, file in weight_map.items()}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected the index of a sharded checkpoint: {error}") from error
    shards = dict.fromkeys(files.values())
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise ValueError(f"{path}: expected shards beside it, got {_listed(outside)}")
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise ValueError(f"{path}: missing shards: {_listed(missing)}")
    stored = {shard: _open_file(path.parent / shard) for shard in shards}
    absent = [name for name, shard in files.items() if name not in stored[shard]]
    if absent:
        raise ValueError(f"{path}: the shards do not hold {_listed(absent)}")
    return {name: stored[shard][name] for name, shard in files.items()}


def _open_shards(paths: list[Path]) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    for path in paths:
        for name, entry in _open_file(path).items():
            if name in stored:
                raise ValueError(f"{path}: {name} is in another file of the folder too")
            stored[name] = entry
    return stored


def _check_numbers(path: Path, names: set[str]) -> None:
    """Check that of files numbered ``x-00001-of-00003`` none is missing."""
    for name in sorted(names):
        match = _SHARD.fullmatch(name)
        if match is None:
            continue
        stem, _, total, suffix = match.groups()
        numbered = [f"{stem}-{i:05d}-of-{total}{suffix}" for i in range(1, int(total) + 1)]
        missing = [wanted for wanted in numbered if wanted not in names]
        if missing:
            raise ValueError(f"{path}: missing shards: {_listed(missing)}")


def _open_safetensors(path: Path) -> dict[str, _Stored]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Checked by now: the header is whole and not larger than the file.
            names = list(_safetensors_header(path))
            return {name: _Stored(*_safetensor(path, file, name)) for name in names}
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a safetensors file, or cut short ({error})") from error


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Read the names in the order of the file, which safe_open sorts and rids of duplicates."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size), object_pairs_hook=_without_duplicates)
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _safetensor(path: Path, file: Any, name: str) -> tuple[Tensor, Callable[[], Tensor]]:
    def read() -> Tensor:
        with safetensors.safe_open(path, framework="pt") as mapped:
            tensor: Tensor = mapped.get_tensor(name)
            return tensor

    # A mapped tensor whose values nobody looks at costs nothing, and has torch's dtype.
    return file.get_tensor(name).to("meta"), read


def _open_torch(path: Path) -> dict[str, _Stored]:
    state = _state_of(path)
    is_kept = path.stat().st_size <= _SMALL or not zipfile.is_zipfile(path)

    def reader(name: str) -> Callable[[], Tensor]:
        return (lambda: state[name]) if is_kept else (lambda: _state_of(path)[name])

    stored = {name: _Stored(_header(tensor), reader(name)) for name, tensor in state.items()}
    if not is_kept:
        state.clear()  # the readers map the file anew
    return stored


def _header(tensor: Tensor) -> Tensor:
    """Shape and dtype alone. ``to("meta")`` does not know sparse and quantized tensors."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _state_of(path: Path) -> dict[str, Tensor]:
    """Find the state dict in a file of torch.save."""
    content = load_tensors(path, lazy=True)
    state = _find_state(content)
    if not state:
        keys = f"the keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else ""
        raise ValueError(
            f"{path}: expected a state dict (parameter name to tensor), "
            f"got {keys or type(content).__name__}"
        )
    pruner = content.get("pruner")
    masks = pruner.get("backward_masks") if isinstance(pruner, Mapping) else None
    return state if masks is None else _with_masks(path, state, masks)


def _find_state(content: Any) -> dict[str, Tensor]:
    """Return the tensors of what is a state dict, or holds one, as deep as it may be."""
    if not isinstance(content, Mapping):
        return {}
    # Beside the model a checkpoint may have tensors of its own, so the wrapped come first.
    for wrapper in _WRAPPERS:
        found = _find_state(content.get(wrapper))
        if found:
            return found
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _with_masks(path: Path, state: dict[str, Tensor], masks: Any) -> dict[str, Tensor]:
    """Give the layers the masks of rigl-torch's pruner: a list, one a layer, None where dense."""
    names = list(stored_layers(state))
    if (
        not isinstance(masks, list)
        or len(masks) != len(names)
        or any(
            mask is not None and (not isinstance(mask, Tensor) or mask.shape != state[name].shape)
            for name, mask in zip(names, masks, strict=True)
        )
    ):
        raise ValueError(
            f"{path}: pruner.backward_masks: expected a mask or None for each of {_listed(names)}"
        )
    given = {f"{name}_mask": m for name, m in zip(names, masks, strict=True) if m is not None}
    return state | given


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = [name for name in found if names.count(name) > 1]
        raise ValueError(f"duplicate names: {_listed(twice)}")
    return found


def _listed(names: Any) -> str:
    """List names for a message, the first ten of them."""
    listed = list(names)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more
