import pathlib
import re

import emulation
import torch

SOURCES = pathlib.Path(__file__).resolve().parent.parent / "csrc"


def kernels_in_sources() -> set[str]:
    text = "\n".join(path.read_text() for path in SOURCES.rglob("*.cu"))
    return set(re.findall(r"__global__[^;{]*?\b(\w+_kernel)\s*\(", text))


def test_every_operator_has_a_cuda_kernel():
    emulation.library()
    for name in emulation.operator_names():
        assert torch._C._dispatch_has_kernel_for_dispatch_key(
            f"fullspectrum_emulated::{name}", "CPU"
        ), f"{name} has no kernel in the .cu sources"


def test_there_are_kernels_to_cover():
    assert "sparse_linear_kernel" in kernels_in_sources()
