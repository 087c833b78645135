"""What a result depends on beside the settings: versions, machine, build."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess

import torch

from fullspectrum_ext import _core, _library

_EXTRAS = {
    "digits": ("sklearn", "the digits data set of `fullspectrum train`"),
    "plots": ("matplotlib", "figures"),
    "report": ("scipy", "the statistics of `fullspectrum report`"),
    "data": ("torchvision", "torchvision's data sets and models"),
    "logging": ("tensorboard", "TensorBoard logs"),
}


def environment() -> dict[str, str | int | None]:
    """What to note down beside a result."""
    return {
        "fullspectrum_ext": _version("fullspectrum-ext"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_features": _core.active_isa(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def information() -> dict[str, str]:
    """What is installed, how it was built, what is on and why the rest is off.

    Returns:
        Rows for people, name -> words.
    """
    build = _core.build_info()
    architectures = build["cuda_architectures"].replace(";", ", ")
    rows = {
        "fullspectrum-ext": _version("fullspectrum-ext") or "not installed (run from its sources)",
        "torch": torch.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "CPU kernels": (
            f"{_core.active_isa()}, compiled by {_compiler(build['compiler'])}; "
            f"{torch.get_num_threads()} threads on {os.cpu_count()} processors"
        ),
        "CUDA kernels": _library.CUDA_LIBRARY,
        "CUDA build": build["cuda"],
        "CUDA architectures": (
            f"{architectures} (nvcc {build['cuda_compiler']})" if architectures else "none"
        ),
        "GPU": _gpu(),
    }
    for extra, (module, purpose) in _EXTRAS.items():
        rows[f"extra [{extra}]"] = _extra(extra, module, purpose)
    return rows


def _compiler(version: str) -> str:
    """The compiler's ``__VERSION__``, where gcc leaves its own name out."""
    return f"gcc {version}" if version[:1].isdigit() else version


def _gpu() -> str:
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return f"none: torch is built for CUDA {torch.version.cuda}, but finds no device"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (torch is built for CUDA {torch.version.cuda})"


def _extra(extra: str, module: str, purpose: str) -> str:
    if importlib.util.find_spec(module) is None:
        return f"not installed: pip install 'fullspectrum-ext[{extra}]' for {purpose}"
    distribution = {"sklearn": "scikit-learn"}.get(module, module)
    return f"{distribution} {_version(distribution) or 'of unknown version'}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the folder that the command runs in, ``-dirty`` where files differ from it."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return answer.stdout.strip() or None
