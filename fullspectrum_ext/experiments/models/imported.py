"""Models and data that users give as an import path."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def is_import_path(name: str) -> bool:
    """Whether a name has the form ``package.module:function``."""
    module, _, function = name.partition(":")
    return bool(module and function)


def import_function(argument: str, path: str, known: Iterable[str]) -> Callable[..., Any]:
    """Import ``package.module:function``; modules are looked for in the current folder too.

    Args:
        argument: What is wanted, for the messages.
        path: The path.
        known: The names that could have been given in its place, for the message.

    Returns:
        The function.

    Raises:
        ModuleNotFoundError: If the module is there, and a module that it imports is not.
        ValueError: If it is no path, or leads to nothing that can be called.
    """
    if not is_import_path(path):
        raise ValueError(
            f"{argument}: expected one of {', '.join(known)}, or package.module:function, "
            f"got {path!r}"
        )
    module_name, _, function_name = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        raise ValueError(f"{argument}: there is no module {module_name!r}") from error
    except RuntimeError as error:  # torchvision's, where it was built for another torch
        raise ValueError(f"{argument}: {module_name} cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, function_name):
        raise ValueError(f"{argument}: {module_name} has no {function_name!r}")
    function = getattr(module, function_name)
    if not callable(function):
        raise ValueError(f"{argument}: {path} is no function")
    return function


def import_model(path: str, known: Iterable[str], classes: int, seed: int) -> nn.Module:
    """Build a model by the function of an import path, with its own initial weights.

    Args:
        path: ``package.module:function``. The function is given ``num_classes`` where it takes
            that, as those of torchvision and timm do, and else nothing.
        known: Names of the models that need no path, for the message.
        classes: Number of outputs.
        seed: Of torch's generator while the function runs.

    Returns:
        The model.

    Raises:
        TypeError: If the function returns something else than a module.
    """
    function = import_function("model", path, known)
    arguments = {"num_classes": classes} if _takes(function, "num_classes") else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected {path} to return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


@torch.no_grad()
def check_fit(model: nn.Module, inputs: Tensor, targets: Tensor, classes: int) -> None:
    """Refuse a model that cannot take a batch of the data, or gives something else than classes.

    Args:
        model: Any model; it is run once in evaluation mode, and is afterwards as it was.
        inputs: A batch.
        targets: Its classes, ``[samples, ...]``.
        classes: Number of classes.

    Raises:
        ValueError: If it does not fit.
    """
    expected = (len(targets), classes, *targets.shape[1:])
    modes = {module: module.training for module in model.modules()}
    try:
        outputs = model.eval()(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"model: expected one that takes inputs {tuple(inputs.shape)}, got {error}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(outputs, Tensor) or outputs.shape != expected:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"model: expected outputs {expected} for inputs {tuple(inputs.shape)}, got {got}"
        )


def _takes(function: Callable[..., Any], argument: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function that does not tell
        return False
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)
