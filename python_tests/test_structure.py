import pathlib
import re
import subprocess
import sys

import pytest

CSRC = pathlib.Path(__file__).resolve().parent.parent / "csrc"
OPERATOR_FOLDERS = sorted(
    path.name
    for path in CSRC.iterdir()
    if path.is_dir() and path.name not in {"common", "emulation"}
)


@pytest.mark.parametrize("folder", OPERATOR_FOLDERS)
def test_operator_folders_use_common_and_themselves_only(folder):
    for path in (CSRC / folder).rglob("*.*"):
        for included in re.findall(r'#include "([^"]+)"', path.read_text()):
            assert included.split("/")[0] in {folder, "common"}, f"{path.name} includes {included}"


def test_every_cuda_kernel_stands_in_the_table_of_what_ran_on_a_gpu():
    table = (CSRC.parent / "benchmarks" / "README.md").read_text()
    kernels = set()
    for path in [*CSRC.rglob("*.cu"), *CSRC.rglob("*.h")]:
        kernels.update(re.findall(r"__global__[^;{]*?\b(\w+_kernel)\(", path.read_text()))
    assert len(kernels) > 30
    assert {kernel for kernel in kernels if f"`{kernel}`" not in table} == set()


def test_the_package_does_not_import_the_compiler():
    """It takes as long as the rest of torch, which imports it where it is first needed."""
    script = "import sys, fullspectrum_ext; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", script], check=True)
