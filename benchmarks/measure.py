"""How every benchmark of this folder times, and what it writes down beside the numbers."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peers import peer_versions

RESULTS = pathlib.Path(__file__).resolve().parent / "results"


class Quartiles(NamedTuple):
    """Seconds a call took: the lower quartile, the median and the upper quartile."""

    lower: float
    median: float
    upper: float


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    *,
    warmup: int = 3,
    in_a_row: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, Quartiles]:
    """Time several calls in turns, so that a slow moment of the machine meets all of them.

    Args:
        calls: What to time, by name.
        repeats: Timed rounds, at least 2.
        warmup: Rounds before the clock starts.
        in_a_row: Times that each call runs in its turn, the first of several untimed. In a training
            loop a layer finds its weights in the cache where they fit; called once a round, it
            finds what its rivals left there.
        device: Where the calls run; on CUDA each one is waited for.

    Returns:
        The quartiles of each call, in seconds.
    """
    on_cuda = torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warmup, repeats):
        for name, call in calls.items():
            for count in range(in_a_row):
                if on_cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                call()
                if on_cuda:
                    torch.cuda.synchronize()
                if turn >= 0 and count >= min(1, in_a_row - 1):
                    seconds[name].append(time.perf_counter() - start)
    return {
        name: Quartiles(*statistics.quantiles(times, n=4, method="inclusive"))
        for name, times in seconds.items()
    }


def as_graph(call: Callable[[], object], times: int) -> tuple[Callable[[], object], int]:
    """Capture ``times`` calls as one CUDA graph, so that a kernel's time is not that of its launch.

    Args:
        call: What to capture; it has to have run before.
        times: Calls in the graph.

    Returns:
        What replays them, and how many calls that is: ``call`` and 1 where it cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(times):
                call()
    except RuntimeError:  # it waits for the device, or allocates outside torch
        torch.cuda.synchronize()
        return call, 1
    return graph.replay, times


def cuda_ceilings() -> dict[str, float]:
    """Measure what the device can do at most: bytes copied and float32 operations a second.

    Bytes read and written by a copy of 2 GiB; multiplications and additions of a dense float32
    product of 8192 x 8192 matrices, without TF32.
    """
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    left, right = torch.randn(2, 8192, 8192, device="cuda")
    calls = {"copy": lambda: target.copy_(source), "product": lambda: left @ right}
    times = time_interleaved(calls, 10, device="cuda")
    return {
        "bytes_per_second": 2 * source.nbytes / times["copy"].median,
        "float32_operations_per_second": 2 * 8192**3 / times["product"].median,
    }


def memory(field: str) -> int:
    """Return bytes from /proc/self/status: ``"VmRSS"`` now, ``"VmHWM"`` at its highest.

    Not ``ru_maxrss``: that of a new process begins at its parent's.
    """
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def environment() -> dict[str, Any]:
    """Describe the machine and the software: what a figure needs beside it to be worth anything."""
    from fullspectrum_ext import _core

    described = {
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cpu_kernels": _core.active_isa(),
        "logical_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "peers": peer_versions(),
        "malloc": {name: value for name, value in os.environ.items() if "MALLOC" in name},
    }
    if torch.cuda.is_available():
        described["cuda"] = torch.version.cuda
        described["gpu"] = torch.cuda.get_device_name()
    return described


def write_json(path: pathlib.Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rows`` with the environment; a file of that name is replaced whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(
        json.dumps({"environment": environment(), "rows": list(rows)}, indent=1) + "\n"
    )
    partial.replace(path)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=RESULTS.parent
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
