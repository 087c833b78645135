"""Builds the CUDA kernels for the block emulator and runs them in place of the CPU ones."""

import contextlib
import ctypes
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Generator

import torch

import fullspectrum_ext  # noqa: F401  (registers the operators)

ROOT = pathlib.Path(__file__).resolve().parent.parent


@functools.cache
def library() -> pathlib.Path:
    """The emulated library, loaded; built first unless FULLSPECTRUM_EMULATED_LIBRARY names one."""
    given = os.environ.get("FULLSPECTRUM_EMULATED_LIBRARY")
    path = pathlib.Path(given) if given else _build()
    torch.ops.load_library(str(path))
    return path


def _build() -> pathlib.Path:
    build = pathlib.Path(tempfile.mkdtemp(prefix="fullspectrum-emulation-"))
    for command in (
        ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja"]
        + [f"-DPython_EXECUTABLE={sys.executable}", "-DFULLSPECTRUM_EMULATION=ON"],
        ["cmake", "--build", build],
    ):
        # cmake and ninja may be installed in the virtual environment only.
        environment = {
            **os.environ,
            "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        if result.returncode != 0:
            raise RuntimeError(f"building the emulator failed:\n{result.stdout}\n{result.stderr}")
    return build / "libfullspectrum_emulated.so"


def operator_names() -> list[str]:
    """Every operator of torch.ops.fullspectrum, from the schemas."""
    schemas = torch._C._jit_get_all_schemas()
    return sorted(s.name.split("::")[1] for s in schemas if s.name.startswith("fullspectrum::"))


def launched_kernels() -> set[str]:
    """The kernels that have run on the emulator in this process."""
    function = ctypes.CDLL(str(library())).fullspectrum_launched_kernels
    function.restype = ctypes.c_char_p
    return set(filter(None, function().decode().split(",")))


@contextlib.contextmanager
def active() -> Generator[None, None, None]:
    """Within it, torch.ops.fullspectrum on CPU tensors runs the CUDA kernels on the emulator."""
    library()
    with torch.library._scoped_library("fullspectrum", "IMPL") as override:
        for name in operator_names():
            emulated = getattr(torch.ops.fullspectrum_emulated, name).default
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "overriding a kernel": our purpose
                override.impl(name, emulated, "CPU", allow_override=True)
        yield
