import os
import subprocess
import sys

import pytest
import torch
from helpers import TOPOLOGIES, random_csr
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import masked_matmul as reference

OP = torch.ops.fullspectrum.sparse_linear.default
BACKWARD_OP = torch.ops.fullspectrum.sparse_linear_backward.default

# Empty, one, prime, just above a warp, a panel and a row block; one batch row, and no tile divides.
SIZES = [
    # rows, cols, batch shape, density
    (0, 3, (2,), 0.5),
    (3, 0, (2,), 0.5),
    (5, 3, (0,), 0.5),
    (1, 1, (1,), 1.0),
    (7, 13, (), 0.5),
    (33, 65, (17,), 0.3),
    (131, 40, (2, 3), 0.2),
    (5, 300, (65,), 0.0),
    (40, 67, (133,), 0.1),
    (9, 1601, (70,), 0.3),  # on the CPU, in blocks of columns
]
IDS = [f"{rows}x{cols}-{batch}-{density}" for rows, cols, batch, density in SIZES]


def case(rows, cols, batch, density, dtype=torch.float64, device="cpu", index=torch.int32):
    crow_indices, col_indices, values, _, _ = random_csr(rows, cols, density, dtype, device, index)
    x = torch.randn(*batch, cols, dtype=torch.float64).to(device, dtype)
    grad = torch.randn(*batch, rows, dtype=torch.float64).to(device, dtype)
    bias = torch.randn(rows, dtype=torch.float64).to(device, dtype)
    return x, values, crow_indices, col_indices, bias, grad


def gradients(grad, x, values, crow_indices, col_indices):
    """The gradients for x and for the values, found at once, and each found alone."""
    transpose = ops.csr_transpose(crow_indices, col_indices, x.shape[-1])
    index = (crow_indices, col_indices, x.shape[-1], *transpose)
    alone = (BACKWARD_OP(grad, None, values, *index)[0], BACKWARD_OP(grad, x, None, *index)[1])
    return BACKWARD_OP(grad, x, values, *index), alone


def assert_gradients(grad, x, values, crow_indices, col_indices, **tolerance):
    expected = reference.sparse_linear_backward(grad, x, values, crow_indices, col_indices)
    for found in gradients(grad, x, values, crow_indices, col_indices):
        torch.testing.assert_close(found, expected, **tolerance)


# ---- values --------------------------------------------------------------------------------------


def test_a_product_worked_by_hand(device):
    # W = [[0, 0, 1], [0, 0, 0], [10, 100, 0]]
    crow_indices = torch.tensor([0, 1, 1, 3], device=device)
    col_indices = torch.tensor([2, 0, 1], device=device)
    values = torch.tensor([1.0, 10.0, 100.0], device=device)
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], device=device)
    bias = torch.tensor([0.0, 0.5, -1.0], device=device)

    y = ops.sparse_linear(x, values, crow_indices, col_indices, 3, bias)

    assert y.tolist() == [[3.0, 0.5, 209.0], [6.0, 0.5, 539.0]]


def test_gradients_worked_by_hand(device):
    crow_indices = torch.tensor([0, 1, 1, 3], device=device)
    col_indices = torch.tensor([2, 0, 1], device=device)
    values = torch.tensor([1.0, 10.0, 100.0], device=device)
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], device=device)
    grad = torch.tensor([[1.0, 7.0, 10.0], [1.0, 7.0, 100.0]], device=device)

    for grad_x, grad_values in gradients(grad, x, values, crow_indices, col_indices):
        assert grad_x.tolist() == [[100.0, 1000.0, 1.0], [1000.0, 10000.0, 1.0]]
        assert grad_values.tolist() == [9.0, 410.0, 520.0]


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["i32", "i64"])
def test_float64_agrees_with_the_reference(size, index, device):
    x, values, crow_indices, col_indices, bias, grad = case(*size, device=device, index=index)

    y = ops.sparse_linear(x, values, crow_indices, col_indices, size[0], bias)

    expected = reference.sparse_linear(x, values, crow_indices, col_indices, size[0], bias)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert_gradients(grad, x, values, crow_indices, col_indices, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_as_near_to_the_float64_reference_as_torch(size, dtype, device):
    x, values, crow_indices, col_indices, bias, grad = case(*size, dtype=dtype, device=device)
    index = (crow_indices, col_indices)

    y = ops.sparse_linear(x, values, *index, size[0], bias)

    assert y.dtype == dtype
    exact = reference.sparse_linear(x.double(), values.double(), *index, size[0], bias.double())
    torchs = reference.sparse_linear(x, values, *index, size[0], bias)
    assert_no_worse(y, torchs, exact, dtype)
    exact = reference.sparse_linear_backward(grad.double(), x.double(), values.double(), *index)
    torchs = reference.sparse_linear_backward(grad, x, values, *index)
    for found in gradients(grad, x, values, *index):
        for of_ours, of_torchs, of_exact in zip(found, torchs, exact, strict=True):
            assert of_ours.dtype == dtype
            assert_no_worse(of_ours, of_torchs, of_exact, dtype)


def assert_no_worse(ours, torchs, exact, dtype, squares=None):
    """The error is at most twice torch's, or one rounding of the largest element.

    Where torch is lucky with the one sum there is, twice its error says little: with the sums of
    their terms' squares given, one rounding in float32 of the largest root is granted as well, for
    so large are the partial sums, whatever is left in the end.
    """
    if exact.numel() == 0:
        assert ours.shape == exact.shape
        return
    floor = torch.finfo(dtype).eps * exact.abs().max()
    if squares is not None:
        floor += torch.finfo(torch.float32).eps * squares.max().sqrt()
    error, torch_error = ((t.double() - exact).abs().max() for t in (ours, torchs))
    assert error <= 2 * torch_error + floor


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 70),
    cols=st.integers(0, 70),
    batch=st.integers(0, 140),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape_agrees_with_the_reference(rows, cols, batch, density, dtype):
    x, values, crow_indices, col_indices, bias, grad = case(rows, cols, (batch,), density, dtype)

    y = ops.sparse_linear(x, values, crow_indices, col_indices, rows, bias)

    tolerance = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-3}
    expected = reference.sparse_linear(x, values, crow_indices, col_indices, rows, bias)
    torch.testing.assert_close(y, expected, **tolerance)
    assert_gradients(grad, x, values, crow_indices, col_indices, **tolerance)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 90),
    cols=st.integers(1, 90) | st.sampled_from([997, 1700]),
    batch=st.integers(0, 140) | st.sampled_from([1009, 2000]),
    topology=st.sampled_from(list(TOPOLOGIES)),
    density=st.sampled_from([0.02, 0.1, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape_is_as_near_to_float64_as_torch(rows, cols, batch, topology, density, dtype):
    mask = TOPOLOGIES[topology](torch.rand(rows, cols) < density)
    weight = torch.randn(rows, cols).to(dtype)
    crow_indices, col_indices, values = ops.csr_from_dense(weight, mask)
    x, grad = (torch.randn(batch, size).to(dtype) for size in (cols, rows))
    bias = torch.randn(rows).to(dtype)
    index = (crow_indices, col_indices)

    y = ops.sparse_linear(x, values, *index, rows, bias)
    found, alone = gradients(grad, x, values, *index)

    exact, squares = (
        reference.sparse_linear(
            *(f(t.double()) for t in (x, values)), *index, rows, f(bias.double())
        )
        for f in (torch.clone, torch.square)
    )
    torchs = reference.sparse_linear(x, values, *index, rows, bias)
    assert_no_worse(y, torchs, exact, dtype, squares)
    exact, squares = (
        reference.sparse_linear_backward(*(f(t.double()) for t in (grad, x, values)), *index)
        for f in (torch.clone, torch.square)
    )
    torchs = reference.sparse_linear_backward(grad, x, values, *index)
    for ours in (found, alone):
        for result in zip(ours, torchs, exact, squares, strict=True):
            assert_no_worse(*result[:3], dtype, result[3])


def test_inputs_need_not_be_contiguous(device):
    x, values, crow_indices, col_indices, bias, grad = case(9, 11, (6,), 0.4, device=device)
    strided_x, strided_grad = x.T.contiguous().T, grad.repeat(2, 1)[::2]
    strided_values = values.repeat_interleave(2)[::2]
    strided_bias = bias.repeat_interleave(3)[::3]

    y = ops.sparse_linear(strided_x, strided_values, crow_indices, col_indices, 9, strided_bias)
    found = gradients(strided_grad, strided_x, strided_values, crow_indices, col_indices)

    assert torch.equal(y, ops.sparse_linear(x, values, crow_indices, col_indices, 9, bias))
    expected = gradients(strided_grad.contiguous(), x, values, crow_indices, col_indices)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 100, 128, 200, 700])
def test_the_work_of_any_number_of_threads_gives_the_reference(threads, batch):
    x, values, crow_indices, col_indices, bias, grad = case(150, 90, (batch,), 0.3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = ops.sparse_linear(x, values, crow_indices, col_indices, 150, bias)
        found = gradients(grad, x, values, crow_indices, col_indices)
        again = ops.sparse_linear(x, values, crow_indices, col_indices, 150, bias)
        found_again = gradients(grad, x, values, crow_indices, col_indices)
    finally:
        torch.set_num_threads(before)

    assert torch.equal(y, again)
    torch.testing.assert_close(found, found_again, rtol=0, atol=0)
    expected = reference.sparse_linear(x, values, crow_indices, col_indices, 150, bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    expected = reference.sparse_linear_backward(grad, x, values, crow_indices, col_indices)
    torch.testing.assert_close(found, (expected, expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_batch_of_one_shares_its_rows_among_threads(threads, dtype):
    # enough nonzeros for a second thread
    x, values, crow_indices, col_indices, bias, grad = case(300, 280, (1,), 0.5, dtype)
    index = (crow_indices, col_indices)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = ops.sparse_linear(x, values, *index, 300, bias)
        found = gradients(grad, x, values, *index)
        again = ops.sparse_linear(x, values, *index, 300, bias)
        found_again = gradients(grad, x, values, *index)
    finally:
        torch.set_num_threads(before)

    assert torch.equal(y, again)
    torch.testing.assert_close(found, found_again, rtol=0, atol=0)
    x, values, bias, grad = (t.double() for t in (x, values, bias, grad))
    expected = reference.sparse_linear(x, values, *index, 300, bias)
    expected_gradients = reference.sparse_linear_backward(grad, x, values, *index)
    pairs = [(y, expected)]
    for of_ours in found:
        pairs += zip(of_ours, expected_gradients, strict=True)
    for ours, exact in pairs:
        error = (ours.double() - exact).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * exact.abs().max()


def test_one_long_row_among_empty_ones(device):
    mask = torch.zeros(200, 150, dtype=torch.bool)
    mask[77] = True
    weight = torch.randn(200, 150, dtype=torch.float64)
    index = ops.csr_from_dense(weight.to(device), mask.to(device))
    x = torch.randn(70, 150, dtype=torch.float64, device=device)
    grad = torch.randn(70, 200, dtype=torch.float64, device=device)

    y = ops.sparse_linear(x, index[2], *index[:2], 200)

    expected = reference.sparse_linear(x, index[2], *index[:2], 200)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert_gradients(grad, x, index[2], *index[:2], rtol=1e-12, atol=1e-12)


# The ways through the CUDA kernel: more columns than one panel holds, several spans of the batch
# by one block (whose sampled values are added up) and by many, rows that are vectors and rows that
# are not, full rows (chunks of nonzeros without an end among them).
WAYS = {
    # rows, cols, batch shape, density
    "two panels": (70, 1400, (90,), 0.01),
    "two panels, unaligned": (9, 1403, (33,), 0.02),
    "whole vectors": (64, 64, (128,), 0.2),
    "full rows": (40, 96, (70,), 1.0),
    "many spans": (16, 24, (300,), 0.3),
    "many tiles": (900, 40, (20,), 0.1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_way_through_the_kernels_gives_the_reference(way, dtype, device):
    x, values, crow_indices, col_indices, bias, grad = case(*WAYS[way], dtype=dtype, device=device)
    index = (crow_indices, col_indices)

    y = ops.sparse_linear(x, values, *index, WAYS[way][0], bias)
    found = gradients(grad, x, values, *index)

    x, values, bias, grad = (t.double() for t in (x, values, bias, grad))
    expected = reference.sparse_linear(x, values, *index, WAYS[way][0], bias)
    expected_gradients = reference.sparse_linear_backward(grad, x, values, *index)
    pairs = [(y, expected)]
    for of_ours in found:
        pairs += zip(of_ours, expected_gradients, strict=True)
    for ours, exact in pairs:
        error = (ours.double() - exact).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_inputs_may_start_anywhere(offset, device):
    x, values, crow_indices, col_indices, _, grad = case(24, 40, (9,), 0.4, torch.float32, device)
    moved_x, moved_grad = (
        torch.cat((t.new_zeros(offset), t.flatten()))[offset:].view_as(t) for t in (x, grad)
    )

    y = ops.sparse_linear(moved_x, values, crow_indices, col_indices, 24)

    assert torch.equal(y, ops.sparse_linear(x, values, crow_indices, col_indices, 24))
    found = gradients(moved_grad, moved_x, values, crow_indices, col_indices)
    expected = gradients(grad, x, values, crow_indices, col_indices)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_results_are_the_same_bit_for_bit(device):
    x, values, crow_indices, col_indices, bias, grad = case(
        90, 130, (200,), 0.2, torch.float32, device
    )

    def run():
        y = ops.sparse_linear(x, values, crow_indices, col_indices, 90, bias)
        return y, gradients(grad, x, values, crow_indices, col_indices)

    torch.testing.assert_close(run(), run(), rtol=0, atol=0)


def test_what_is_not_met_is_not_read(device):
    # infinities in columns without a nonzero, and in the places that pad a panel
    crow_indices = torch.tensor([0, 1, 1, 3], device=device)
    col_indices = torch.tensor([2, 0, 2], device=device)
    values = torch.tensor([1.0, 10.0, 100.0], device=device)
    x = torch.tensor([[1.0, torch.inf, 3.0, torch.nan]], device=device)

    y = ops.sparse_linear(x, values, crow_indices, col_indices, 3)

    assert y.tolist() == [[3.0, 0.0, 310.0]]


# ---- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_a_cuda_graph_replays_a_step_on_new_inputs():
    x, values, crow_indices, col_indices, bias, grad = case(
        90, 130, (200,), 0.2, torch.float32, "cuda"
    )
    index = (crow_indices, col_indices)
    transpose = ops.csr_transpose(*index, 130)

    def step():
        y = ops.sparse_linear(x, values, *index, 90, bias)
        return y, *BACKWARD_OP(grad, x, values, *index, 130, *transpose)

    warm = torch.cuda.Stream()
    with torch.cuda.stream(warm):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.normal_()
    graph.replay()

    torch.testing.assert_close(captured, step(), rtol=0, atol=0)


@pytest.mark.cuda
def test_the_kernels_run_on_the_current_stream():
    x, values, crow_indices, col_indices, _, _ = case(90, 130, (200,), 0.2, torch.float32, "cuda")
    expected = ops.sparse_linear(2 * x, values, crow_indices, col_indices, 90)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**7)
        x *= 2
        y = ops.sparse_linear(x, values, crow_indices, col_indices, 90)
    torch.cuda.current_stream().wait_stream(stream)

    assert torch.equal(y, expected)


def test_results_do_not_depend_on_rows_beside_them():
    x, values, crow_indices, col_indices, bias, _ = case(30, 40, (100,), 0.3, torch.float32)

    whole = ops.sparse_linear(x, values, crow_indices, col_indices, 30, bias)
    part = ops.sparse_linear(x[64:], values, crow_indices, col_indices, 30, bias)

    torch.testing.assert_close(whole[64:], part, rtol=0, atol=1e-6)


# ---- derivatives ---------------------------------------------------------------------------------


def differentiable(device, batch=(3,), transposed=True):
    x, values, crow_indices, col_indices, bias, grad = case(5, 7, batch, 0.4, device=device)
    transpose = ops.csr_transpose(crow_indices, col_indices, 7) if transposed else None
    for tensor in (x, values, bias, grad):
        tensor.requires_grad_()
    return x, values, crow_indices, col_indices, bias, grad, transpose


@pytest.mark.parametrize("batch", [(3,), (), (0,), (2, 2)], ids=str)
@pytest.mark.parametrize("transposed", [True, False])
def test_first_and_second_derivatives(batch, transposed, device):
    x, values, crow_indices, col_indices, bias, _, transpose = differentiable(
        device, batch, transposed
    )

    def layer(x, values, bias):
        return ops.sparse_linear(x, values, crow_indices, col_indices, 5, bias, transpose=transpose)

    assert torch.autograd.gradcheck(layer, (x, values, bias))
    if 0 not in batch:
        assert torch.autograd.gradgradcheck(layer, (x, values, bias))


def test_derivatives_of_the_gradients(device):
    x, values, crow_indices, col_indices, _, grad, transpose = differentiable(device)
    index = (crow_indices, col_indices, 7, *transpose)

    def both(grad, x, values):
        return BACKWARD_OP(grad, x, values, *index)

    def for_x(grad, values):
        return BACKWARD_OP(grad, None, values, *index)[0]

    def for_values(grad, x):
        return BACKWARD_OP(grad, x, None, *index)[1]

    for function, inputs in (
        (both, (grad, x, values)),
        (for_x, (grad, values)),
        (for_values, (grad, x)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_only_the_gradients_asked_for_are_computed(device):
    x, values, crow_indices, col_indices, bias, grad, _ = differentiable(device)
    for wanted in ([x], [values], [bias], [x, bias]):
        y = ops.sparse_linear(
            *(t if any(t is w for w in wanted) else t.detach() for t in (x, values)),
            crow_indices,
            col_indices,
            5,
            bias if any(bias is w for w in wanted) else None,
        )
        found = torch.autograd.grad(y, wanted, grad.detach())
        dense = reference.sparse_linear(x, values, crow_indices, col_indices, 5, bias)
        expected = torch.autograd.grad(dense, wanted, grad.detach())
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_operators_are_registered_as_torch_wants_them(device):
    x, values, crow_indices, col_indices, bias, grad, transpose = differentiable(device)

    torch.library.opcheck(OP, (x, values, crow_indices, col_indices, 5, bias))
    torch.library.opcheck(OP, (x, values, crow_indices, col_indices, 5, None, *transpose))
    index = (crow_indices, col_indices, 7, *transpose)
    torch.library.opcheck(BACKWARD_OP, (grad, x, values, *index))
    torch.library.opcheck(BACKWARD_OP, (grad, None, values, *index))
    torch.library.opcheck(BACKWARD_OP, (grad, x, None, crow_indices, col_indices, 7))


def test_a_compiled_function_gives_the_same_gradients(device):
    x, values, crow_indices, col_indices, bias, _, transpose = differentiable(device)

    def loss(x, values, bias, transpose):
        y = ops.sparse_linear(x, values, crow_indices, col_indices, 5, bias, transpose=transpose)
        return y.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")

    for index in (None, transpose):
        expected = torch.autograd.grad(loss(x, values, bias, index), (x, values, bias))
        found = torch.autograd.grad(compiled(x, values, bias, index), (x, values, bias))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


# ---- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_its_dtype_like_torch(dtype, device):
    x, values, crow_indices, col_indices, bias, _ = case(5, 7, (3,), 0.5, torch.float32, device)
    values.requires_grad_()

    with torch.autocast(device.type, dtype):
        y = ops.sparse_linear(x.to(dtype), values, crow_indices, col_indices, 5, bias)
    y.float().sum().backward()

    assert y.dtype == dtype
    assert values.grad.dtype == torch.float32
    cast = (x.to(dtype), values.to(dtype), crow_indices, col_indices, 5, bias.to(dtype))
    assert torch.equal(y, ops.sparse_linear(*cast))


def test_autocast_leaves_float64_alone(device):
    x, values, crow_indices, col_indices, bias, _ = case(5, 7, (3,), 0.5, device=device)

    with torch.autocast(device.type, torch.bfloat16):
        y = ops.sparse_linear(x, values, crow_indices, col_indices, 5, bias)

    assert y.dtype == torch.float64


# ---- refusals ------------------------------------------------------------------------------------


def good():
    x, values, crow_indices, col_indices, bias, _ = case(4, 6, (3,), 0.5, torch.float32)
    return {
        "x": x,
        "values": values,
        "crow_indices": crow_indices,
        "col_indices": col_indices,
        "out_features": 4,
        "bias": bias,
    }


def broken(tensor, at, value):
    return tensor.clone().index_fill_(0, torch.tensor([at]), value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x: expected a torch.Tensor, got list"),
        ({"x": torch.ones(3, 6, dtype=torch.int64)}, TypeError, "x: expected float32, .*int64"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: expected at least one dimension"),
        ({"x": torch.ones(3, 6).double()}, TypeError, "values is torch.float32 but x is .*float64"),
        ({"x": torch.ones(3, 6, device="meta")}, ValueError, "values is on cpu but x is on meta"),
        ({"values": torch.ones(2)}, ValueError, "values: expected one for each of the"),
        ({"values": torch.ones(2).long()}, TypeError, "values: expected float32, .*int64"),
        ({"out_features": 5}, ValueError, "crow_indices: expected rows [+] 1 = 6 entries, got 5"),
        ({"crow_indices": torch.ones(5)}, TypeError, "crow_indices: expected int32 or int64"),
        ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \(4,\), .* got \(3,\)"),
        ({"bias": torch.ones(4).half()}, TypeError, "bias is torch.float16 but x is torch.float32"),
        ({"bias": 1.0}, TypeError, "bias: expected a torch.Tensor, got float"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        ops.sparse_linear(**{**good(), **change})


def test_a_foreign_transpose_is_refused():
    arguments = good()
    index = (arguments["crow_indices"], arguments["col_indices"])
    with pytest.raises(ValueError, match="transpose: expected .* a matrix with 6 columns"):
        ops.sparse_linear(**arguments, transpose=ops.csr_transpose(*index, 7))
    long = ops.CsrTranspose(*(field.long() for field in ops.csr_transpose(*index, 6)))
    with pytest.raises(TypeError, match="transpose is torch.int64 but col_indices is torch.int32"):
        ops.sparse_linear(**arguments, transpose=long)


@pytest.mark.parametrize(
    ("field", "at", "value", "validated", "native"),
    [
        ("crow_indices", 0, 1, "start at 0 and end at nnz", "crow_indices must rise from 0 to nnz"),
        ("crow_indices", 2, 99, "offsets that never decrease", "crow_indices must rise from 0"),
        (
            "col_indices",
            0,
            6,
            r"in \[0, 6\), got 6",
            r"col_indices must lie .*got 6",
        ),
        (
            "col_indices",
            0,
            -1,
            r"in \[0, 6\), got -1",
            r"col_indices must lie .*got -1",
        ),
        ("col_indices", 1, 0, "(duplicate|unsorted) columns in row 0", None),
    ],
)
def test_wrong_indices_are_refused(field, at, value, validated, native):
    arguments = good()
    arguments[field] = broken(arguments[field], at, value)

    with pytest.raises(ValueError, match=validated):
        ops.sparse_linear(**arguments, validate=True)
    if native is not None:  # the CPU kernels refuse what would read foreign memory in any case
        index = (arguments["crow_indices"], arguments["col_indices"], 6)
        for batch in (3, 1):
            x = torch.ones(batch, 6)
            with pytest.raises(RuntimeError, match=native):
                ops.sparse_linear(**{**arguments, "x": x})
            with pytest.raises(RuntimeError, match=native):
                BACKWARD_OP(torch.ones(batch, 4), x, None, *index)


@pytest.mark.parametrize(
    ("field", "at", "value", "message"),
    [
        (0, 1, 99, "ccol_indices must rise from 0 to nnz"),
        (1, 2, 4, r"row_indices must lie in \[0, 4\), got 4"),
        (1, 2, -1, r"row_indices must lie in \[0, 4\), got -1"),
        (2, 2, 99, r"permutation must lie in \[0, nnz\)"),
        (2, 2, -1, r"permutation must lie in \[0, nnz\)"),
    ],
)
def test_a_wrong_transpose_is_refused(field, at, value, message):
    arguments = good()
    index = (arguments["crow_indices"], arguments["col_indices"])
    transpose = list(ops.csr_transpose(*index, 6))
    transpose[field] = broken(transpose[field], at, value)

    for x in (arguments["x"], None):
        with pytest.raises(RuntimeError, match=message):
            BACKWARD_OP(torch.ones(3, 4), x, arguments["values"], *index, 6, *transpose)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crow_indices": torch.zeros(5, dtype=torch.int64)}, "crow_indices is Long but col_ind"),
        ({"values": torch.ones(1)}, "values must be as long as col_indices"),
        ({"x": torch.ones(3, 6).double()}, "x is Double but values is Float"),
        ({"x": torch.ones(3, 6).int()}, "x must be float32, float64, float16 or bfloat16, got Int"),
        ({"bias": torch.ones(3)}, r"bias must be \[out_features\] = \[4\], got 3"),
        ({"out_features": 5}, r"crow_indices must hold out_features \+ 1 = 6 entries, got 5"),
    ],
)
def test_the_operator_itself_refuses_bad_arguments(change, message, device):
    arguments = {**good(), **change}
    arguments = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.ones(3, 5)}, "the last dimension of grad must be the number of rows, 4"),
        ({"grad": torch.ones(2, 4)}, "grad and x must have the same leading dimensions"),
        ({"grad": torch.ones(3, 4).double()}, "grad is Double but x is Float"),
        ({"x": torch.ones(3, 5)}, "the last dimension of x must be in_features = 6, got 5"),
        ({"values": torch.ones(1)}, "values must be as long as col_indices"),
        ({"values": None, "x": None, "grad": torch.ones(3, 4).int()}, "grad must be float32"),
        ({"permutation": None}, "the gradient for x needs ccol_indices, row_indices and perm"),
        ({"permutation": torch.zeros(1).int()}, "permutation must be of lengths in_features"),
        ({"ccol_indices": torch.zeros(6).int()}, "must be of lengths in_features [+] 1 = 7"),
    ],
)
def test_the_backward_operator_refuses_bad_arguments(change, message, device):
    arguments = good()
    index = (arguments["crow_indices"], arguments["col_indices"])
    names = ("ccol_indices", "row_indices", "permutation")
    arguments = {
        "grad": torch.ones(3, 4),
        "x": arguments["x"],
        "values": arguments["values"],
        "crow_indices": index[0],
        "col_indices": index[1],
        "in_features": 6,
        **dict(zip(names, ops.csr_transpose(*index, 6), strict=True)),
        **change,
    }
    arguments = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        BACKWARD_OP(*arguments.values())


# ---- instruction sets ----------------------------------------------------------------------------

AGAINST_REFERENCE = """
import torch
from fullspectrum_ext import _core, ops
from fullspectrum_ext.reference import masked_matmul as reference

print(_core.active_isa())
for dtype, tolerance in (
    (torch.float64, 1e-12), (torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.3)
):
    for batch in (1, 17, 40, 64, 150):
        torch.manual_seed(0)
        weight = torch.randn(37, 1601, dtype=dtype)
        crow_indices, col_indices, values = ops.csr_from_dense(weight, torch.rand(37, 1601) < 0.2)
        x, grad = torch.randn(batch, 1601, dtype=dtype), torch.randn(batch, 37, dtype=dtype)
        index = (crow_indices, col_indices)
        transposed = (*index, 1601, *ops.csr_transpose(*index, 1601))
        backward = torch.ops.fullspectrum.sparse_linear_backward
        exact = reference.sparse_linear(x.double(), values.double(), *index, 37).to(dtype)
        found = ops.sparse_linear(x, values, *index, 37)
        torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance)
        exact = reference.sparse_linear_backward(
            grad.double(), x.double(), values.double(), *index
        )
        for found in (
            backward(grad, x, values, *transposed),
            (backward(grad, None, values, *transposed)[0], backward(grad, x, None, *transposed)[1]),
        ):
            for ours, wanted in zip(found, exact, strict=True):
                wanted = wanted.to(dtype)
                torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance)
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_the_lower_instruction_sets_agree_with_the_reference(isa):
    # Chosen once in a process, so each takes its own. The processor's best one runs in all others.
    environment = {**os.environ, "FULLSPECTRUM_ISA": isa}
    command = [sys.executable, "-P", "-c", AGAINST_REFERENCE]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    if isa == "baseline":
        assert ran.stdout.strip() == "baseline"
