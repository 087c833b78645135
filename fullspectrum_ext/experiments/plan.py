"""The plan of a sweep: one TOML file, and the runs that it stands for."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from fullspectrum_ext.experiments.config import (
    TrainConfig,
    check_list,
    nearest,
    of_kind,
    parse_toml,
)

_OWN_KEYS = ("name", "title", "grid", "published")
_LISTS = {"model": "models", "sparsity": "sparsities"}  # in the place of the one setting
_SETTINGS = tuple(_LISTS.get(field.name, field.name) for field in dataclasses.fields(TrainConfig))


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number of a paper, to stand beside the measured ones.

    Attributes:
        model: As the paper's network is called here.
        method: As the paper's method is called here.
        sparsity: Fraction of the weights removed, in [0, 1).
        accuracy: Percent.
        spread: Plus or minus so many percent, where the paper says.
        source: Paper, table and row.
    """

    model: str
    method: str
    sparsity: float
    accuracy: float
    spread: float = math.nan
    source: str

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, of_kind(name, getattr(self, name), kind))
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity: expected a fraction in [0, 1), got {self.sparsity}")
        if not 0 <= self.accuracy <= 100:
            raise ValueError(f"accuracy: expected percent, 0 to 100, got {self.accuracy}")
        if self.spread < 0:
            raise ValueError(f"spread: expected a number >= 0, got {self.spread}")


@dataclass(frozen=True)
class Plan:
    """What ``fullspectrum sweep`` runs.

    Attributes:
        name: Of the sweep's folder.
        title: Of its report.
        runs: Settings of each run, with one method and one seed, in the order to run them.
        published: Numbers of papers.
        content: The file.
    """

    name: str
    title: str
    runs: tuple[TrainConfig, ...]
    published: tuple[Published, ...]
    content: bytes = dataclasses.field(repr=False)


def load_plan(file: Path) -> Plan:
    """Read a plan, and check the settings of every run.

    A plan has the keys of :class:`fullspectrum_ext.experiments.TrainConfig`, with lists ``models``
    and ``sparsities`` in the place of ``model`` and ``sparsity``, and runs every method with every
    seed at every sparsity on every model, one seed after the other. Tables ``[[grid]]`` do so each
    with its own keys over those of the top level, one grid after the other; what two of them ask
    for alike is run once. ``name`` and ``title`` are those of the sweep, ``[[published]]`` numbers
    of papers.

    Args:
        file: The TOML file.

    Returns:
        The plan.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If the file is no TOML, a key or a value is not known, or a run is asked for
            twice with different settings. The message names the file and the grid.
    """
    content = Path(file).read_bytes()
    values = parse_toml(content, str(file))
    name = _text(file, values, "name", Path(file).stem)
    if name != Path(name).name or name == "..":
        raise ValueError(f"{file}: name: expected the name of a folder, got {name!r}")
    published = [
        _published(f"{file}: [[published]] {number}", row)
        for number, row in enumerate(_tables(file, values, "published"), start=1)
    ]
    runs = _union(_grids(file, values))
    title = _text(file, values, "title", name)
    return Plan(name, title, tuple(runs), tuple(published), content)


def run_path(config: TrainConfig) -> Path:
    """Where a run's folder is, below that of all runs of a sweep.

    Args:
        config: With one method and one seed.

    Returns:
        ``<data>-<model>-<sparsity>/<method>-<seed>``; two runs of a plan never have the same.

    Example:
        >>> run_path(TrainConfig(methods=("pags:snip",), seeds=(3,))).as_posix()
        'digits-mlp-0.95/pags-snip-3'
    """
    names = (
        f"{config.data}-{config.model}-{config.sparsity}",
        f"{config.methods[0]}-{config.seeds[0]}",
    )
    return Path(*(name.replace(":", "-") for name in names))  # not in file names on Windows


def _text(file: Path, values: Mapping[str, Any], key: str, default: str) -> str:
    value = values.get(key, default)
    if not isinstance(value, str) or not value:
        raise TypeError(f"{file}: {key}: expected text, got {value!r}")
    return value


def _tables(file: Path, values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    tables = values.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise TypeError(f"{file}: {key}: expected tables, each below a line [[{key}]]")
    return tables


def _published(where: str, row: dict[str, Any]) -> Published:
    fields = dataclasses.fields(Published)
    for key in row:
        known = [field.name for field in fields]
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, known)}")
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in row:
            raise ValueError(f"{where}: expected {field.name}, which is missing")
    try:
        return Published(**row)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def _grids(file: Path, values: Mapping[str, Any]) -> Iterator[tuple[str, list[TrainConfig]]]:
    """The runs of each grid, and how to name it where something is wrong with it."""
    shared = {key: value for key, value in values.items() if key not in _OWN_KEYS}
    _check_keys(str(file), shared, (*_OWN_KEYS, *_SETTINGS))
    tables = _tables(file, values, "grid")
    if not tables:
        yield str(file), _grid(str(file), shared)
    for number, table in enumerate(tables, start=1):
        where = f"{file}: [[grid]] {number}"
        _check_keys(where, table, _SETTINGS)
        yield where, _grid(where, shared | table)


def _check_keys(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key, value in table.items():
        if key in _LISTS:
            raise ValueError(f"{where}: {key}: in a plan write {_LISTS[key]} = [{value!r}]")
        if key in _OWN_KEYS and key not in known:
            raise ValueError(f"{where}: {key}: expected it above the first [[grid]]")
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def _grid(where: str, table: Mapping[str, Any]) -> list[TrainConfig]:
    settings = dict(table)
    try:
        models = of_kind("models", settings.pop("models", [TrainConfig.model]), tuple[str, ...])
        sparsities = of_kind(
            "sparsities", settings.pop("sparsities", [TrainConfig.sparsity]), tuple[float, ...]
        )
        check_list("models", models)
        check_list("sparsities", sparsities)
        configs = [
            TrainConfig(**settings, model=model, sparsity=sparsity)
            for model in models
            for sparsity in sparsities
        ]
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error
    return [
        dataclasses.replace(config, methods=(method,), seeds=(seed,))
        for seed in configs[0].seeds
        for config in configs
        for method in config.methods
    ]


def _union(grids: Iterator[tuple[str, list[TrainConfig]]]) -> list[TrainConfig]:
    runs: dict[Path, tuple[str, TrainConfig]] = {}
    for where, configs in grids:
        for config in configs:
            first, other = runs.setdefault(run_path(config), (where, config))
            differences = config.differences(other)
            if differences:
                raise ValueError(
                    f"{where}: asks for the run {run_path(config).as_posix()} with other settings "
                    f"than {first} ({'; '.join(differences)}); "
                    f"what differs so belongs in a plan of its own"
                )
    return [config for _, config in runs.values()]
