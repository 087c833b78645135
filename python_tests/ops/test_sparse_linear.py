import os
import subprocess
import sys

import pytest
import torch
from helpers import random_csr
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import masked_matmul as reference

OP = torch.ops.fullspectrum.sparse_linear.default
GRAD_OP = torch.ops.fullspectrum.sparse_linear_grad_values.default

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
]
IDS = [f"{rows}x{cols}-{batch}-{density}" for rows, cols, batch, density in SIZES]


def case(rows, cols, batch, density, dtype=torch.float64, device="cpu", index=torch.int32):
    crow_indices, col_indices, values, _, _ = random_csr(rows, cols, density, dtype, device, index)
    x = torch.randn(*batch, cols, dtype=torch.float64).to(device, dtype)
    grad = torch.randn(*batch, rows, dtype=torch.float64).to(device, dtype)
    bias = torch.randn(rows, dtype=torch.float64).to(device, dtype)
    return x, values, crow_indices, col_indices, bias, grad


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


def test_a_gradient_worked_by_hand(device):
    crow_indices = torch.tensor([0, 1, 1, 3], device=device)
    col_indices = torch.tensor([2, 0, 1], device=device)
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], device=device)
    grad = torch.tensor([[1.0, 7.0, 10.0], [1.0, 7.0, 100.0]], device=device)

    assert GRAD_OP(grad, x, crow_indices, col_indices).tolist() == [9.0, 410.0, 520.0]


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["i32", "i64"])
def test_float64_agrees_with_the_reference(size, index, device):
    x, values, crow_indices, col_indices, bias, grad = case(*size, device=device, index=index)

    y = ops.sparse_linear(x, values, crow_indices, col_indices, size[0], bias)
    sampled = GRAD_OP(grad, x, crow_indices, col_indices)

    expected = reference.sparse_linear(x, values, crow_indices, col_indices, size[0], bias)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    expected = reference.sparse_linear_grad_values(grad, x, crow_indices, col_indices)
    torch.testing.assert_close(sampled, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_as_near_to_the_float64_reference_as_torch(size, dtype, device):
    x, values, crow_indices, col_indices, bias, grad = case(*size, dtype=dtype, device=device)
    index = (crow_indices, col_indices)

    y = ops.sparse_linear(x, values, *index, size[0], bias)
    sampled = GRAD_OP(grad, x, *index)

    assert y.dtype == sampled.dtype == dtype
    exact = reference.sparse_linear(x.double(), values.double(), *index, size[0], bias.double())
    torchs = reference.sparse_linear(x, values, *index, size[0], bias)
    assert_no_worse(y, torchs, exact, dtype)
    exact = reference.sparse_linear_grad_values(grad.double(), x.double(), *index)
    torchs = reference.sparse_linear_grad_values(grad, x, *index)
    assert_no_worse(sampled, torchs, exact, dtype)


def assert_no_worse(ours, torchs, exact, dtype):
    """The error is at most twice torch's, or one rounding of the largest element."""
    if exact.numel() == 0:
        assert ours.shape == exact.shape
        return
    floor = torch.finfo(dtype).eps * exact.abs().max()
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
    sampled = GRAD_OP(grad, x, crow_indices, col_indices)

    tolerance = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-3}
    expected = reference.sparse_linear(x, values, crow_indices, col_indices, rows, bias)
    torch.testing.assert_close(y, expected, **tolerance)
    expected = reference.sparse_linear_grad_values(grad, x, crow_indices, col_indices)
    torch.testing.assert_close(sampled, expected, **tolerance)


def test_inputs_need_not_be_contiguous(device):
    x, values, crow_indices, col_indices, bias, grad = case(9, 11, (6,), 0.4, device=device)
    strided_x, strided_grad = x.T.contiguous().T, grad.repeat(2, 1)[::2]
    strided_values = values.repeat_interleave(2)[::2]
    strided_bias = bias.repeat_interleave(3)[::3]

    y = ops.sparse_linear(strided_x, strided_values, crow_indices, col_indices, 9, strided_bias)
    sampled = GRAD_OP(strided_grad, strided_x, crow_indices, col_indices)

    assert torch.equal(y, ops.sparse_linear(x, values, crow_indices, col_indices, 9, bias))
    assert torch.equal(sampled, GRAD_OP(grad.repeat(2, 1)[::2], x, crow_indices, col_indices))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 100, 128, 200, 700])
def test_the_work_of_any_number_of_threads_gives_the_reference(threads, batch):
    x, values, crow_indices, col_indices, bias, grad = case(150, 90, (batch,), 0.3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = ops.sparse_linear(x, values, crow_indices, col_indices, 150, bias)
        sampled = GRAD_OP(grad, x, crow_indices, col_indices)
        again = ops.sparse_linear(x, values, crow_indices, col_indices, 150, bias)
        sampled_again = GRAD_OP(grad, x, crow_indices, col_indices)
    finally:
        torch.set_num_threads(before)

    assert torch.equal(y, again)
    assert torch.equal(sampled, sampled_again)
    expected = reference.sparse_linear(x, values, crow_indices, col_indices, 150, bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    expected = reference.sparse_linear_grad_values(grad, x, crow_indices, col_indices)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-11)


def test_one_long_row_among_empty_ones(device):
    mask = torch.zeros(200, 150, dtype=torch.bool)
    mask[77] = True
    weight = torch.randn(200, 150, dtype=torch.float64)
    index = ops.csr_from_dense(weight.to(device), mask.to(device))
    x = torch.randn(70, 150, dtype=torch.float64, device=device)
    grad = torch.randn(70, 200, dtype=torch.float64, device=device)

    y = ops.sparse_linear(x, index[2], *index[:2], 200)
    sampled = GRAD_OP(grad, x, *index[:2])

    expected = reference.sparse_linear(x, index[2], *index[:2], 200)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sampled, grad[:, 77] @ x, rtol=1e-12, atol=1e-12)


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


def test_derivatives_of_the_gradient_operator(device):
    x, _, crow_indices, col_indices, _, grad, transpose = differentiable(device)

    def sampled(grad, x):
        return GRAD_OP(grad, x, crow_indices, col_indices, *transpose)

    assert torch.autograd.gradcheck(sampled, (grad, x))
    assert torch.autograd.gradgradcheck(sampled, (grad, x))


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
    torch.library.opcheck(GRAD_OP, (grad, x, crow_indices, col_indices))
    torch.library.opcheck(GRAD_OP, (grad, x, crow_indices, col_indices, *transpose))


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
        with pytest.raises(RuntimeError, match=native):
            ops.sparse_linear(**arguments)
        with pytest.raises(RuntimeError, match=native):
            GRAD_OP(
                torch.ones(3, 4), arguments["x"], arguments["crow_indices"],
                arguments["col_indices"],
            )  # fmt: skip


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
    ("grad", "message"),
    [
        (torch.ones(3, 5), "the last dimension of grad must be the number of rows, 4, got 5"),
        (torch.ones(2, 4), "grad and x must have the same leading dimensions"),
        (torch.ones(3, 4).double(), "grad is Double but x is Float"),
    ],
)
def test_the_gradient_operator_refuses_bad_arguments(grad, message, device):
    arguments = [good()[name].to(device) for name in ("x", "crow_indices", "col_indices")]
    with pytest.raises(RuntimeError, match=message):
        GRAD_OP(grad.to(device), *arguments)


# ---- instruction sets ----------------------------------------------------------------------------

AGAINST_REFERENCE = """
import torch
from fullspectrum_ext import _core, ops
from fullspectrum_ext.reference import masked_matmul as reference

print(_core.active_isa())
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
    for batch in (1, 17, 40, 64, 150):
        torch.manual_seed(0)
        weight = torch.randn(37, 53, dtype=dtype)
        crow_indices, col_indices, values = ops.csr_from_dense(weight, torch.rand(37, 53) < 0.4)
        x, grad = torch.randn(batch, 53, dtype=dtype), torch.randn(batch, 37, dtype=dtype)
        index = (crow_indices, col_indices)
        for found, expected in (
            (
                ops.sparse_linear(x, values, *index, 37),
                reference.sparse_linear(x, values, *index, 37),
            ),
            (
                torch.ops.fullspectrum.sparse_linear_grad_values(grad, x, *index),
                reference.sparse_linear_grad_values(grad, x, *index),
            ),
        ):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
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
