import doctest
import importlib
import inspect
import pkgutil

import pytest

import fullspectrum_ext as fs
from fullspectrum_ext import dynamic, pruning

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fs.__path__, "fullspectrum_ext.")
    # Not what is compiled: its examples are those of the Python functions above it.
    if not module.name.rpartition(".")[2].startswith(("_core", "lib"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, monkeypatch):
    # the examples of register_pruner and register_method register methods
    for registry in (pruning.base, dynamic.method):
        monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"fs": fs}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


# What users call; types and registries of names need no example.
PUBLIC = [
    (owner.__name__, name, getattr(owner, name))
    for owner in (fs, fs.dynamic, fs.ops, fs.nn, fs.pruning, fs.spectral, fs.spectral.ramanujan)
    for name in dir(owner)
    if not name.startswith("_")
    and (inspect.isfunction(getattr(owner, name)) or inspect.isclass(getattr(owner, name)))
]


@pytest.mark.parametrize(
    ("owner", "name", "thing"), PUBLIC, ids=[f"{owner}.{name}" for owner, name, _ in PUBLIC]
)
def test_public_functions_have_an_example(owner, name, thing):
    if inspect.isfunction(thing):
        assert ">>>" in (inspect.getdoc(thing) or ""), f"{owner}.{name} has no example"
    else:
        assert inspect.getdoc(thing), f"{owner}.{name} has no docstring"
