"""Loads the compiled operators into ``torch.ops.fullspectrum``."""

from importlib.resources import files

import torch

# files(), not __file__: in an editable install the Python sources and the libraries are apart.
_HERE = files("fullspectrum_ext")


def _load() -> str:
    """Load the libraries that this torch can run; say in words what became of the CUDA one."""
    library = _HERE / "libfullspectrum_cpu.so"
    if not library.is_file():
        raise ImportError(
            f"{_HERE} holds the Python sources of fullspectrum_ext but not its compiled operators. "
            "Install it (`pip install .`), and start Python elsewhere than in the source folder, "
            "or as `python -P`; for development: `pip install --no-build-isolation -e .`"
        )
    torch.ops.load_library(str(library))
    library = _HERE / "libfullspectrum_cuda.so"
    if not library.is_file():
        return "not built"
    if torch.version.cuda is None:
        return "built, not loaded: this torch is a CPU build"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        # The CPU operators are of use all the same; `fullspectrum info` shows why CUDA is off.
        return f"built, not loaded: {error}"
    return "loaded"


CUDA_LIBRARY = _load()
