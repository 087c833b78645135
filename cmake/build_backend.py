"""The build backend: scikit-build-core, plus torch's headers where the environment has none.

The extension uses LibTorch's stable ABI, so any torch >= 2.10 provides the headers and the library
to link. Where the environment that is being installed into already has one, it is used as it is and
nothing is downloaded; only where it has none does the isolated build environment get its own.
"""

import pathlib
import re
import sysconfig
from typing import Any

from scikit_build_core import build as _base
from scikit_build_core.build import *  # noqa: F403  (every PEP 517 and PEP 660 hook)

OLDEST_TORCH = (2, 10)
TORCH_FOR_BUILD = "torch==2.13.0"


def _environment_has_torch() -> bool:
    """Tell whether the interpreter's own site-packages hold a torch that is new enough."""
    # pip hides them from an isolated build's imports, but keeps the interpreter's prefix.
    root = pathlib.Path(sysconfig.get_path("purelib"), "torch")
    if not (root / "include/torch/csrc/stable/library.h").is_file():
        return False
    version = re.search(r"__version__ = '(\d+)\.(\d+)", (root / "version.py").read_text())
    return version is not None and tuple(map(int, version.groups())) >= OLDEST_TORCH


def _with_torch(requires: list[str]) -> list[str]:
    return requires if _environment_has_torch() else [*requires, TORCH_FOR_BUILD]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Name what a wheel's build needs beyond ``[build-system] requires``."""
    return _with_torch(_base.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Name what an editable install needs beyond ``[build-system] requires``."""
    return _with_torch(_base.get_requires_for_build_editable(config_settings))
