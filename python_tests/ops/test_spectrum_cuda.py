"""What the CUDA engine promises beside right values: one batch, no waiting, bounded memory."""

import pathlib
import re

import emulation
import pytest
import torch
from spectra import MEDIUM, SMALL, csr, random_matrix
from torch.profiler import ProfilerActivity, profile

from fullspectrum_ext import ops

OP = torch.ops.fullspectrum.singular_values.default
SUBGRAPH_OP = torch.ops.fullspectrum.subgraph_singular_values.default
CSRC = pathlib.Path(__file__).resolve().parents[2] / "csrc"
# What the problems of one round may take on the emulator (singular_values_cuda.cu).
WORKSPACE_BYTES = 4 << 20


def arguments(matrices, device="cpu", weighted=True, k=2, method=0):
    fields = [csr(dense, device) for dense in matrices]
    crows, cols, values = ([entry[i] for entry in fields] for i in range(3))
    widths = [dense.shape[1] for dense in matrices]
    return crows, cols, values if weighted else [], widths, k, 1e-6, method


def subgraph_arguments(matrices, device="cpu", weighted=True):
    crows, cols, values, widths, *how = arguments(matrices, device, weighted)
    groups = ops.regular_subgraphs(crows, cols, [dense.shape for dense in matrices])
    taps = [torch.cat([group.taps for group in layer]) for layer in groups]
    lengths = [len(group.taps) for layer in groups for group in layer]
    return crows, cols, values, widths, taps, [len(layer) for layer in groups], lengths, *how


@pytest.mark.parametrize("weighted", [False, True])
def test_many_candidates_give_what_each_gives(device, weighted):
    matrices = [random_matrix(9 + i % 5, 30 + i, 0.3, weighted=True, seed=i) for i in range(40)]
    matrices += [SMALL["no entries"], MEDIUM["mask"], SMALL["one entry"], MEDIUM["weighted"]]

    sigma, bound = OP(*arguments(matrices, device, weighted))
    again = OP(*arguments(matrices, device, weighted))

    assert torch.equal(sigma, again[0])
    assert torch.equal(bound, again[1])
    for i in (0, 7, 38, 40, 41, 42, 43):
        alone = OP(*arguments([matrices[i]], device, weighted))
        assert torch.equal(sigma[i], alone[0][0])
        assert torch.equal(bound[i], alone[1][0])


def test_the_subgraphs_of_many_layers_give_what_those_of_each_give(device):
    layers = [random_matrix(12, 40, 0.3, weighted=True, seed=i) for i in range(6)]
    everything = subgraph_arguments(layers, device)

    sigma, bound = SUBGRAPH_OP(*everything)

    first = 0
    for layer, count in zip(layers, everything[5], strict=True):
        alone = SUBGRAPH_OP(*subgraph_arguments([layer], device))
        assert torch.equal(sigma[first : first + count], alone[0])
        assert torch.equal(bound[first : first + count], alone[1])
        first += count
    assert first == len(sigma)


def emulated_events(operator, fields):
    """Everything that torch ran for one call on the emulator."""
    with (
        emulation.active(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        operator(*fields)
    return profiler.events()


@pytest.mark.parametrize("method", [0, 1, 3, 4])
def test_the_operators_call_nothing_that_waits_for_the_device(method):
    # Sizes live on the device: to(), copy_() or item() would bring them to the host and wait.
    known = {"new_zeros", "new_empty", "sort", "cumsum", "fill_"}
    matrices = [random_matrix(9, 20, 0.3, weighted=True), random_matrix(8, 4, 0.5)]
    for operator, fields in (
        (OP, arguments(matrices)),
        (SUBGRAPH_OP, subgraph_arguments(matrices)),
    ):
        *fields, _ = fields
        events = emulated_events(operator, (*fields, method))
        called = {
            event.name.removeprefix("aten::")
            for event in events
            if event.cpu_parent and event.cpu_parent.name.startswith("fullspectrum_emulated::")
        }
        assert called >= {"new_empty", "sort", "cumsum"}, "the profiler saw nothing"
        assert called <= known


def test_the_sources_call_nothing_that_waits_for_the_device():
    waits = re.compile(r"cuda\w*Synchronize|cudaMemcpy\w*|cudaMalloc\w*|stable::to\(|stable::copy_")
    sources = [path for path in (CSRC / "spectrum").iterdir() if "cuda" in path.name]
    assert len(sources) > 5
    for path in sources:
        assert not waits.findall(path.read_text()), path.name


@pytest.mark.cuda
def test_torch_sees_no_synchronisation():
    matrices = [*MEDIUM.values(), *SMALL.values()]
    fields, subgraphs = arguments(matrices, "cuda"), subgraph_arguments([MEDIUM["mask"]], "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        OP(*fields)
        SUBGRAPH_OP(*subgraphs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", [1, 2, 4])
def test_the_workspace_keeps_its_bound(method):
    # Each takes over a megabyte, together they would take three times the bound.
    matrices = [random_matrix(20, 4000, 0.05, seed=i) for i in range(9)]
    entries = int(sum(dense.sum() for dense in matrices))

    events = emulated_events(OP, arguments(matrices, weighted=False, method=method))

    taken = [event.self_cpu_memory_usage for event in events if event.name == "aten::empty"]
    assert WORKSPACE_BYTES / 2 < max(taken) <= WORKSPACE_BYTES
    assert sum(taken) <= WORKSPACE_BYTES + 200 * entries
