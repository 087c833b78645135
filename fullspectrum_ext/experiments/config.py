"""The settings of a training job: one dataclass, a TOML file and command-line flags alike."""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch

from fullspectrum_ext import pruning
from fullspectrum_ext.dynamic.method import ANNEALINGS
from fullspectrum_ext.experiments.data import DATASETS
from fullspectrum_ext.experiments.evolving import check_updates, dynamic_methods
from fullspectrum_ext.experiments.methods import ABLATIONS, parse_method
from fullspectrum_ext.experiments.models import MODELS, check_model
from fullspectrum_ext.experiments.models.imported import is_import_path

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "steps")
BACKENDS = ("auto", "sparse", "masked", "measured")


def _setting(default: Any, description: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": description})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What ``fullspectrum train`` runs: every method with every seed.

    All that can change a result is in here, so that two runs of equal settings (on the same kind of
    device) are the same bit for bit. Each field is a key of the TOML file and, with dashes for
    underscores, a flag.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range, or a name unknown.

    Example:
        >>> TrainConfig(sparsity=0.98, seeds=(0, 1)).epochs
        40
    """

    data: str = _setting(
        "digits",
        f"Data set: {', '.join(DATASETS)}. text goes with lstm, a teacher with the model in its "
        "name, all others are images.",
    )
    data_path: str = _setting(
        "", "Folder that the data set's own folder is in (nothing: data), or the file of text."
    )
    augment: bool = _setting(
        True, "Shift and mirror training images at random: cifar10, cifar100, tiny-imagenet."
    )
    model: str = _setting("mlp", f"Model: {', '.join(MODELS)}, or package.module:function.")
    methods: tuple[str, ...] = _setting(
        ("pags:snip", "snip", "erk"),
        f"Pruning methods to compare: {', '.join(pruning.methods())}; "
        "pags:BASE samples around BASE; dense prunes nothing; "
        "omp, gmp, imp and imp:lr prune by magnitude in the course of training; probmask and "
        "probmask:vr_pge learn masks, probmask:supermask learns them for the initial weights; "
        "kstarts, dissipating and dissipating:kstarts prune in the first epochs; "
        f"{', '.join(dynamic_methods())} change the topology in the course of training, from a "
        "random mask of ERK's densities on, or with START+ before their name from that of another "
        "method (snip+rigl). After those that prune before training may follow :drift (of pags, "
        "the authors' procedure: the number of weights is not kept to), then :warm (prune after "
        "warm-epochs of dense training, and train on from there), then, as after imp, a sanity "
        "ablation (snip:shuffled): "
        f"{', '.join(ABLATIONS)}.",
    )
    dynamic: str = _setting(
        "",
        "Change the topology with this method (rigl, set, ...), from the masks of each of the "
        "methods on: rigl makes of methods snip,erk what snip+rigl,erk+rigl says.",
    )
    update_every: int = _setting(
        0,
        "Methods that change the topology: steps from one update to the next; 0: an epoch, for "
        "itop 3 and for itop:rigl 8 epochs.",
    )
    update_fraction: float = _setting(
        0.0, "The same: share of a layer's weights dropped at first; 0: the method's own."
    )
    update_anneal: str = _setting(
        "", f"The same: how that share changes, {', '.join(ANNEALINGS)}; nothing: the method's own."
    )
    update_until: float = _setting(
        0.0, "The same: share of the epochs in which the topology changes; 0: the method's own."
    )
    sparsity: float = _setting(0.95, "Fraction of the weights that is removed, in [0, 1).")
    candidates: int = _setting(100, "Masks that pags draws and chooses from.")
    seeds: tuple[int, ...] = _setting(
        (0, 1, 2), "One run each. Methods share a seed's initial weights and order of the data."
    )
    epochs: int = _setting(40, "Passes over the training data.")
    rewind_epoch: int = _setting(
        1, "imp: the epoch at whose end the weights are that each round begins with; 0: initial."
    )
    warm_epochs: int = _setting(
        1,
        "Methods with :warm: dense epochs before the network is pruned, of all its epochs. At "
        "batch size 100 an epoch of CIFAR-10 is 450 steps; PAGS's authors take 500.",
    )
    early_epochs: int = _setting(
        2,
        "kstarts, dissipating: the first epochs, in which they prune; dissipating:kstarts prunes "
        "in twice as many. Where an epoch has few steps, take more.",
    )
    batch_size: int = _setting(64, "Samples in a step.")
    optimizer: str = _setting("adamw", f"One of {', '.join(OPTIMIZERS)} (sgd has momentum 0.9).")
    learning_rate: float = _setting(3e-3, "At the start.")
    schedule: str = _setting(
        "cosine",
        "How it falls: cosine, to zero; steps, to a tenth after half of the epochs and to a "
        "hundredth after three quarters.",
    )
    weight_decay: float = _setting(1e-4, "Weight decay of the optimizer.")
    backend: str = _setting(
        "auto",
        "Layers that are truly sparse or dense with a mask: auto by size and sparsity, sparse or "
        "masked for all, measured by what is faster on this machine (kept in the run folder).",
    )
    coordinate_every: int = _setting(
        0, "Optimizer steps between measurements of the coordinate, into the records; 0: none."
    )
    tensorboard: bool = _setting(
        False, "Write these measurements to TensorBoard as well, in the run folder."
    )
    device: str = _setting("cpu", "Where to train: cpu, cuda, cuda:1, ...")
    threads: int = _setting(
        1, "CPU threads; 0: as many as torch takes. Their number is part of the result."
    )

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, of_kind(name, getattr(self, name), kind))
        _check_choice("data", self.data, DATASETS)
        if not is_import_path(self.model):
            _check_choice("model", self.model, MODELS)
        check_model(self.model, DATASETS[self.data].kind)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("backend", self.backend, BACKENDS)
        check_list("methods", self.methods)
        check_list("seeds", self.seeds)
        if self.dynamic:  # from here on the names say it, and nothing else
            _check_choice("dynamic", self.dynamic, dynamic_methods())
            methods = tuple(f"{method}+{self.dynamic}" for method in self.methods)
            object.__setattr__(self, "methods", methods)
            object.__setattr__(self, "dynamic", "")
        names = {method: parse_method(method) for method in self.methods}
        at_least_one = ("candidates", "epochs", "warm_epochs", "early_epochs", "batch_size")
        others = ("coordinate_every", "rewind_epoch", "threads", "update_every")
        for name in (*at_least_one, *others):
            least = int(name in at_least_one)
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        rewinding = [method for method, name in names.items() if name.method == "imp"]
        warm = [method for method, name in names.items() if name.warm]
        for field, users in (("rewind_epoch", rewinding), ("warm_epochs", warm)):
            if users and getattr(self, field) >= self.epochs:
                raise ValueError(
                    f"{field}: expected less than epochs with {users[0]}, "
                    f"got {getattr(self, field)} and {self.epochs}"
                )
        for seed in self.seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seeds: expected values in [0, 2**63), got {seed}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity: expected a fraction in [0, 1), got {self.sparsity}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate: expected a number > 0, got {self.learning_rate}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay: expected a number >= 0, got {self.weight_decay}")
        if self.tensorboard and not self.coordinate_every:
            raise ValueError("tensorboard: expected coordinate_every of 1 or more with it, got 0")
        _check_device(self.device)
        self._check_updates(name.dynamic for name in names.values() if name.dynamic)

    def _check_updates(self, methods: Iterable[str]) -> None:
        if self.update_anneal:
            _check_choice("update_anneal", self.update_anneal, ANNEALINGS)
        if not 0 <= self.update_fraction < 1:
            raise ValueError(
                f"update_fraction: expected a fraction in [0, 1), got {self.update_fraction}"
            )
        if not 0 <= self.update_until <= 1:
            raise ValueError(f"update_until: expected a share in [0, 1], got {self.update_until}")
        for method in methods:
            check_updates(self, method)

    def resolved(self) -> "TrainConfig":
        """The same settings, if their device is here, with the threads that 0 stands for here."""
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device: {self.device!r} asked for, but torch finds no CUDA device")
        return dataclasses.replace(self, threads=self.threads or torch.get_num_threads())

    def digest(self) -> str:
        """Eight hexadecimal digits that stand for all the settings."""
        return hashlib.sha256(to_toml(dataclasses.asdict(self)).encode()).hexdigest()[:8]

    def differences(self, other: "TrainConfig") -> list[str]:
        """The settings that differ, as ``name = this one's value, not other's value``."""
        return [
            f"{field.name} = {_toml_value(mine)}, not {_toml_value(theirs)}"
            for field in dataclasses.fields(self)
            if (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
        ]


def load_config(file: Path | None = None, **flags: Any) -> TrainConfig:
    """Settings from a TOML file and from flags: flags win over the file, the file over defaults.

    Args:
        file: A TOML file with any of the fields of :class:`TrainConfig` as keys, or None.
        **flags: Values of fields; None means not given.

    Returns:
        The settings, checked as :class:`TrainConfig` does.

    Raises:
        ValueError: If the file is no TOML, or holds an unknown key.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = parse_toml(Path(file).read_bytes(), str(file))
        known = [field.name for field in dataclasses.fields(TrainConfig)]
        for key in values:
            if key not in known:
                raise ValueError(f"{file}: unknown key {key!r}{nearest(key, known)}")
    given = {key: value for key, value in flags.items() if value is not None}
    if file is None:
        return TrainConfig(**given)
    try:
        TrainConfig(**values)  # so that a mistake in the file is said to be there
    except (TypeError, ValueError) as error:
        raise type(error)(f"{file}: {error}") from error
    return TrainConfig(**(values | given))


def to_toml(values: Mapping[str, Any]) -> str:
    """Write a flat mapping of text, numbers, truth values and lists of them as TOML.

    Args:
        values: Key to value.

    Returns:
        One line a key, which ``tomllib.loads`` reads back as it was.

    Example:
        >>> print(to_toml({"model": "mlp", "seeds": [0, 1], "sparsity": 0.5}), end="")
        model = "mlp"
        seeds = [0, 1]
        sparsity = 0.5
    """
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in values.items())


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # TOML writes inf and nan as Python does
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for the delete character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Sequence):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise TypeError(f"expected text, a number, a truth value or a list, got {value!r}")


def parse_toml(content: bytes, file: str) -> dict[str, Any]:
    """Read the content of a TOML file; a ValueError names the file where it is none."""
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected a TOML file: {error}") from error


def of_kind(name: str, value: Any, kind: Any) -> Any:
    """Return the value as its type has it: an int may stand for a float, a list for a tuple."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name}: expected a list, got {value!r}")
        return tuple(of_kind(name, item, get_args(kind)[0]) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise TypeError(f"{name}: expected {words[kind]}, got {value!r}")
    return value


def check_list(name: str, values: Sequence[object]) -> None:
    """Refuse a list that is empty or holds a value twice."""
    if not values:
        raise ValueError(f"{name}: expected at least one, got none")
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name}: expected each one once, got {value!r} twice")


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(
            f"{name}: expected one of {', '.join(known)}, got {value!r}{nearest(value, known)}"
        )


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu or cuda, got {device!r}") from error
    if kind not in {"cpu", "cuda"}:
        raise ValueError(f"device: expected cpu or cuda, got {device!r}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'this'?)"``, or nothing where no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=2)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
