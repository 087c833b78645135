import pathlib
import re

import emulation
import pytest
import torch

from fullspectrum_ext import ops

SOURCES = pathlib.Path(__file__).resolve().parent.parent / "csrc"


def kernels_in_sources() -> set[str]:
    text = "\n".join(path.read_text() for path in SOURCES.rglob("*cuda*"))
    declared = re.findall(r"__global__ void\s+(?:__launch_bounds__\([\w, ]+\)\s+)?(\w+)\(", text)
    assert len(declared) == text.count("__global__"), "a kernel is declared in another form"
    return set(declared)


def test_every_operator_has_a_cuda_kernel():
    emulation.library()
    assert emulation.operator_names()
    for name in emulation.operator_names():
        assert torch._C._dispatch_has_kernel_for_dispatch_key(
            f"fullspectrum_emulated::{name}", "CPU"
        ), f"{name} has no kernel in the .cu sources"


def test_the_emulator_runs_every_kernel():
    mask = torch.rand(40, 30) < 0.3
    crow_indices, col_indices, values = ops.csr_from_dense(torch.randn(40, 30), mask)
    x = torch.randn(5, 30, requires_grad=True)
    layer = (crow_indices, col_indices, values, (40, 30))

    with emulation.active():
        values.requires_grad_()
        ops.sparse_linear(x, values, crow_indices, col_indices, 40).sum().backward()
        ops.keep_masked_(torch.randn(40, 30), mask)
        y = ops.sparse_conv2d(
            torch.randn(1, 30, 2, 2, requires_grad=True), values, crow_indices, col_indices, 1
        )
        y.sum().backward()
        # taps so far apart that no tile holds both
        far_apart = (torch.randn(1, 15, 1, 30001), values, crow_indices, col_indices, (1, 2))
        ops.sparse_conv2d(*far_apart, dilation=(1, 30000)).sum().backward()
        subgraphs = ops.regular_subgraphs(crow_indices, col_indices, (40, 30))
        ops.singular_values(*layer)
        ops.singular_values(crow_indices, col_indices, None, (40, 30))
        ops.subgraph_singular_values(*layer, subgraphs)
        grow = ops.dense_grad_topk(torch.ones(5, 40), x, crow_indices, col_indices, 7).positions
        ops.csr_transpose(crow_indices, col_indices, 30)
        ops.random_places(crow_indices, col_indices, 30, 7, seed=0)
        ops.topk_topologies([x], [3])
        ops.project_scores_([torch.randn(9)], 2.0)
        ops.topology_update(crow_indices, col_indices, torch.tensor([0]), grow, 30)

    assert emulation.launched_kernels() == kernels_in_sources()


def test_the_emulator_takes_the_place_of_the_cpu_kernels_and_gives_it_back():
    crow_indices, col_indices, values = ops.csr_from_dense(torch.eye(2), torch.eye(2).bool())
    bad_rows = crow_indices + 5  # the CPU kernel refuses them, the CUDA kernel does not look

    def call() -> None:
        empty_batch = torch.empty(0, 2)
        ops.sparse_linear(empty_batch, values, bad_rows, col_indices, 2)

    with pytest.raises(RuntimeError, match="crow_indices"):
        call()
    with emulation.active():
        call()
    with pytest.raises(RuntimeError, match="crow_indices"):
        call()
