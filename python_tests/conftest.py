import os

import emulation
import hypothesis
import pytest
import torch

# Where a GPU must be at hand, its absence is a failure and not a skip.
REQUIRE_GPU = os.environ.get("REQUIRE_GPU") == "1"


# The gate decides the same way each time; everywhere else new examples are drawn.
hypothesis.settings.register_profile("gate", derandomize=True)
if os.environ.get("CI") == "true":
    hypothesis.settings.load_profile("gate")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        devices = ["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.cuda)]
        metafunc.parametrize("device", devices, indirect=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available() and not REQUIRE_GPU:
        pytest.skip("needs a CUDA device")


@pytest.fixture
def device(request):
    """Each operator test runs on the CPU, on a GPU, and with the GPU's kernels on the emulator."""
    if request.param == "emulated":
        with emulation.active():
            yield torch.device("cpu")
    else:
        yield torch.device(request.param)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
