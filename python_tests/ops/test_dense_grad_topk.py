import hashlib
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from helpers import random_csr
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import _core, ops
from fullspectrum_ext.reference import topology as reference

OP = torch.ops.fullspectrum.dense_grad_topk.default
CONV_OP = torch.ops.fullspectrum.conv2d_dense_grad_topk.default


def integers(*shape, dtype=torch.float32, device="cpu", bound=3):
    """Small integers: their products and sums are exact, and many are equal."""
    return torch.randint(-bound, bound + 1, shape).to(device, dtype)


def assert_top(found, gradient, index, k):
    positions, values = reference.largest_outside(gradient, *index, k)
    assert found.positions.tolist() == positions.tolist()
    assert torch.equal(found.values, values)


# ---- linear --------------------------------------------------------------------------------------


def test_a_case_worked_by_hand(device):
    # the gradient: [[4, 3], [8, 6]], of which 8 is stored
    grad = torch.tensor([[1.0, 2.0]], device=device)
    x = torch.tensor([[4.0, 3.0]], device=device)
    crow_indices = torch.tensor([0, 0, 1], device=device)
    col_indices = torch.tensor([0], device=device)

    found = ops.dense_grad_topk(grad, x, crow_indices, col_indices, 2)

    assert found.positions.tolist() == [0, 3]
    assert found.values.tolist() == [4.0, 6.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["i32", "i64"])
def test_exact_products_give_the_reference_bit_for_bit(dtype, index, device):
    crow_indices, col_indices, _, _, _ = random_csr(37, 53, 0.3, device=device, index=index)
    grad = integers(6, 37, dtype=dtype, device=device)
    x = integers(6, 53, dtype=dtype, device=device)
    exact = (grad.double().T @ x.double()).to(dtype)
    free = 37 * 53 - col_indices.numel()

    for k in (0, 1, 17, 400, free - 1, free):
        found = ops.dense_grad_topk(grad, x, crow_indices, col_indices, k)
        assert found.values.dtype == dtype
        assert_top(found, exact, (crow_indices, col_indices), k)


def test_several_tiles_give_the_reference_bit_for_bit(device):
    # more entries than the 2^18 of a tile; a small k and a large one
    rows, cols = 600, 500
    crow_indices, col_indices, _, _, _ = random_csr(rows, cols, 0.02, device=device)
    grad, x = integers(3, rows, device=device), integers(3, cols, device=device, bound=50)
    index = (crow_indices, col_indices)

    for k in (500, 80_000):
        found = ops.dense_grad_topk(grad, x, *index, k)
        assert_top(found, grad.T @ x, index, k)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 150),
    cols=st.integers(0, 70),
    batch=st.integers(0, 5),
    density=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape_gives_the_reference_bit_for_bit(rows, cols, batch, density, share, seed):
    crow_indices, col_indices, _, _, _ = random_csr(rows, cols, density, seed=seed)
    torch.manual_seed(seed)
    grad, x = integers(batch, rows), integers(batch, cols)
    k = round(share * (rows * cols - col_indices.numel()))

    found = ops.dense_grad_topk(grad, x, crow_indices, col_indices, k)

    assert_top(found, grad.T @ x, (crow_indices, col_indices), k)


def test_generic_products_are_ranked_up_to_rounding(device):
    crow_indices, col_indices, _, mask, _ = random_csr(90, 110, 0.1, device=device)
    grad, x = torch.randn(2, 20, 90, device=device), torch.randn(2, 20, 110, device=device)
    exact = (grad.double().reshape(40, 90).T @ x.double().reshape(40, 110)).flatten()

    found = ops.dense_grad_topk(grad, x, crow_indices, col_indices, 500)

    torch.testing.assert_close(found.values.double(), exact[found.positions], rtol=0, atol=1e-4)
    left = exact.abs().masked_fill(mask.flatten(), 0)
    left[found.positions] = 0
    assert not mask.flatten()[found.positions].any()
    assert found.values.abs().min() > left.max() - 1e-4


def test_an_empty_batch_has_zero_gradients_taken_by_position(device):
    crow_indices = torch.tensor([0, 1, 3], device=device)
    col_indices = torch.tensor([1, 0, 2], device=device)
    empty = (torch.ones(0, 2, device=device), torch.ones(0, 3, device=device))

    found = ops.dense_grad_topk(*empty, crow_indices, col_indices, 2)

    assert found.positions.tolist() == [0, 2]
    assert found.values.tolist() == [0.0, 0.0]


def test_infinity_and_nan_rank_above_numbers(device):
    x = torch.tensor([[1.0, -torch.inf, torch.nan, 2.0, -torch.nan]], device=device)
    crow_indices = torch.tensor([0, 0], device=device)
    col_indices = torch.empty(0, dtype=torch.int64, device=device)
    grad = torch.ones(1, 1, device=device)

    ranked = [
        ops.dense_grad_topk(grad, x, crow_indices, col_indices, k).positions.tolist()
        for k in range(1, 5)
    ]

    assert ranked == [[2], [2, 4], [1, 2, 4], [1, 2, 3, 4]]


def test_micro_batches_are_given_as_one_batch(device):
    crow_indices, col_indices, _, _, _ = random_csr(20, 30, 0.2, device=device)
    grads = [integers(4, 20, device=device) for _ in range(3)]
    xs = [integers(4, 30, device=device) for _ in range(3)]
    accumulated = sum(grad.T @ x for grad, x in zip(grads, xs, strict=True))

    found = ops.dense_grad_topk(torch.cat(grads), torch.cat(xs), crow_indices, col_indices, 50)

    assert_top(found, accumulated, (crow_indices, col_indices), 50)


def test_inputs_may_be_strided_and_require_gradients(device):
    crow_indices, col_indices, _, _, _ = random_csr(20, 30, 0.2, device=device)
    grad, x = integers(8, 20, device=device), integers(8, 30, device=device)
    strided_grad = grad.T.contiguous().T.requires_grad_()
    strided_x = x.repeat_interleave(2, dim=1)[:, ::2].requires_grad_()

    found = ops.dense_grad_topk(strided_grad, strided_x, crow_indices, col_indices, 40)

    assert not found.values.requires_grad
    assert_top(found, grad.T @ x, (crow_indices, col_indices), 40)


def test_the_same_bits_each_time_at_any_number_of_threads():
    index = random_csr(700, 900, 0.05)[:2]
    grad, x = torch.randn(16, 700), torch.randn(16, 900)
    exact_grad, exact_x = integers(16, 700), integers(16, 900)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 1, 2, 5):
            torch.set_num_threads(threads)
            found.append(ops.dense_grad_topk(grad, x, *index, 9000))
            exact = ops.dense_grad_topk(exact_grad, exact_x, *index, 9000)
            assert_top(exact, exact_grad.T @ exact_x, index, 9000)
    finally:
        torch.set_num_threads(before)

    for other in found[1:]:
        assert torch.equal(found[0].positions, other.positions)
        assert torch.equal(found[0].values, other.values)


# ---- the bounds that say which products are computed on the CPU ----------------------------------


def operands(kind):
    """Gradients and inputs that are hard to bound from small integers."""
    torch.manual_seed(3)
    rows, cols, batch = 130, 170, {"one": 1, "long": 3000}.get(kind, 33)
    grad, x = torch.randn(batch, rows), torch.randn(batch, cols)
    if kind == "ranges":  # of lines and within lines
        grad *= 10.0 ** torch.empty(batch, rows).uniform_(-9, 3)
        x *= 10.0 ** torch.empty(1, cols).uniform_(-9, 3)
    elif kind == "cancellation":
        grad[1::2] = -grad[:-1:2] * (1 + 1e-6)
        x[1::2] = x[:-1:2]
    elif kind == "one sample":
        grad[7] *= 1e4
        x[9] *= 1e4
    elif kind == "equal":
        grad, x = torch.ones(batch, rows), torch.ones(batch, cols) * 0.3
    elif kind == "zeros":
        grad[:, ::2], x[:, 10:] = 0, 0
    elif kind == "tiny":  # products that are denormal, or zero
        grad, x = grad * 1e-20, x * 1e-20
    elif kind == "denormal":
        grad = grad * 1e-40
    elif kind == "huge":  # products that are infinite
        grad[:, :9] *= 1e30
        x[:, :5] *= 1e20
    elif kind == "not finite":
        grad[3, 5], x[4, 6], x[5, 7] = torch.nan, torch.inf, -torch.inf
    return grad, x


KINDS = ["normal", "one", "long", "ranges", "cancellation", "one sample", "equal", "zeros", "tiny"]
KINDS += ["denormal", "huge", "not finite"]


def assert_chosen_from_all_products(kind):
    """Check small choices by what the operator gives where nothing is left out."""
    grad, x = operands(kind)
    rows, cols = grad.shape[1], x.shape[1]
    crow_indices, col_indices, _, mask, _ = random_csr(rows, cols, 0.1, seed=1)
    index = (crow_indices, col_indices)
    all_of_them = ops.dense_grad_topk(grad, x, *index, rows * cols - col_indices.numel())
    gradient = torch.zeros(rows, cols)
    gradient[~mask] = all_of_them.values
    for k in (1, 50, 700, 6000):
        found = ops.dense_grad_topk(grad, x, *index, k)
        positions, values = reference.largest_outside(gradient, *index, k)
        assert found.positions.tolist() == positions.tolist(), (kind, k)
        torch.testing.assert_close(found.values, values, rtol=0, atol=0, equal_nan=True)
    return all_of_them.values


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_are_those_of_all_products(kind):
    values = assert_chosen_from_all_products(kind)

    if kind in {"normal", "long", "one sample"}:
        grad, x = (tensor.double() for tensor in operands(kind))
        mask = random_csr(grad.shape[1], x.shape[1], 0.1, seed=1)[3]
        largest = (grad.abs().T @ x.abs())[~mask]
        assert ((values.double() - (grad.T @ x)[~mask]).abs() <= 1e-6 * largest).all()


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set_chooses_from_all_products(isa):
    here = pathlib.Path(__file__).parent
    code = """
import hashlib, test_dense_grad_topk as tests
values = [tests.assert_chosen_from_all_products(kind).nan_to_num() for kind in tests.KINDS]
print(hashlib.sha256(b"".join(v.numpy().tobytes() for v in values)).hexdigest())
"""
    path = f"{os.environ.get('PYTHONPATH', '')}:{here.parent}:{here}".lstrip(":")
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "FULLSPECTRUM_ISA": isa, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    if isa == "avx512" and _core.active_isa() == "avx512_vnni":  # the same products
        values = [assert_chosen_from_all_products(kind).nan_to_num() for kind in KINDS]
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values))
        assert result.stdout.strip() == digest.hexdigest()


def test_a_sample_unlike_the_whole_does_no_harm():
    # 1024 rows are sampled, here every other one: all that is large stands there
    rows, cols, k = 2048, 40, 30_000
    grad, x = torch.randn(3, rows), torch.randn(3, cols)
    grad[:, 1::2] *= 1e-3
    index = (torch.zeros(rows + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    gradient = torch.empty(rows, cols)
    gradient.view(-1)[:] = ops.dense_grad_topk(grad, x, *index, rows * cols).values

    for shift in (0, 1):
        found = ops.dense_grad_topk(grad.roll(shift, 1), x, *index, k)
        assert_top(found, gradient.roll(shift, 0), index, k)


def test_as_many_rows_and_columns_as_fill_no_group():
    for rows, cols in ((1, 1), (9, 47), (8, 48), (7, 49), (17, 96), (3, 1000)):
        grad, x = integers(5, rows), integers(5, cols)
        index = random_csr(rows, cols, 0.2)[:2]
        k = (rows * cols - index[1].numel()) // 3
        found = ops.dense_grad_topk(grad, x, *index, k)
        assert_top(found, grad.T @ x, index, k)


# ---- convolution ---------------------------------------------------------------------------------

CONVOLUTIONS = [
    # images, in, out, height, width, kernel, stride, padding, dilation, groups
    (2, 3, 5, 7, 6, 3, 1, 1, 1, 1),
    (1, 4, 6, 9, 8, (3, 2), (2, 1), (0, 1), (1, 2), 2),
    (3, 6, 12, 5, 5, 1, 2, 0, 1, 6),  # 2 outputs a group
    (2, 5, 5, 6, 6, 3, 1, 2, 2, 5),  # depthwise
    (0, 3, 4, 5, 5, 3, 1, 1, 1, 1),
    (2, 4, 260, 4, 4, 3, 1, 1, 1, 2),  # several tiles on the CPU
    (2, 2, 160, 3, 3, 1, 1, 0, 1, 2),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_convolution_gives_the_reference_bit_for_bit(case, memory_format, device):
    images, inputs, outputs, height, width, kernel, stride, padding, dilation, groups = case
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    shape = (outputs, inputs // groups, *kernel)
    x = integers(images, inputs, height, width, device=device).to(memory_format=memory_format)
    weight = torch.zeros(shape, device=device, requires_grad=True)
    y = torch.nn.functional.conv2d(x, weight, **geometry)
    grad = integers(*y.shape, device=device).to(memory_format=memory_format)
    (gradient,) = torch.autograd.grad(y, weight, grad)
    cols = weight[0].numel()
    crow_indices, col_indices, _, _, _ = random_csr(outputs, cols, 0.2, device=device)
    index = (crow_indices, col_indices)

    for k in (1, (outputs * cols - col_indices.numel()) // 2):
        found = ops.conv2d_dense_grad_topk(grad, x, *index, k, kernel, **geometry)
        assert_top(found, gradient.reshape(outputs, cols), index, k)


@pytest.mark.parametrize("rows_a_group", [150, 70])
def test_a_convolution_of_several_tiles_gives_the_reference(rows_a_group):
    outputs, inputs = 2 * rows_a_group, 2 * 512
    x, grad = integers(1, inputs, 3, 3), integers(1, outputs, 3, 3)
    weight = torch.zeros(outputs, 512, 3, 3, requires_grad=True)
    y = torch.nn.functional.conv2d(x, weight, padding=1, groups=2)
    (gradient,) = torch.autograd.grad(y, weight, grad)
    index = random_csr(outputs, 512 * 9, 0.01)[:2]

    found = ops.conv2d_dense_grad_topk(grad, x, *index, 5000, 3, padding=1, groups=2)

    assert_top(found, gradient.reshape(outputs, -1), index, 5000)


def test_a_convolution_in_bfloat16_is_computed_in_float32(device):
    x, grad = (integers(2, 3, 5, 5, device=device, bound=9) for _ in range(2))
    index = random_csr(3, 27, 0.2, device=device)[:2]

    narrow = ops.conv2d_dense_grad_topk(grad.bfloat16(), x.bfloat16(), *index, 20, 3, padding=1)
    wide = ops.conv2d_dense_grad_topk(grad, x, *index, 20, 3, padding=1)

    assert narrow.positions.tolist() == wide.positions.tolist()
    assert torch.equal(narrow.values, wide.values.bfloat16())


# ---- memory --------------------------------------------------------------------------------------

ROWS, COLS = 4096, 4096
# VmHWM, not ru_maxrss: the latter begins at the parent's.
CHILD = f"""
import torch
from fullspectrum_ext import ops
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
torch.set_num_threads(2)
rows, cols = {ROWS}, {COLS}
grad, x = torch.randn(8, rows), torch.randn(8, cols)
crow_indices = torch.arange(0, 200 * rows + 1, 200, dtype=torch.int32)
col_indices = torch.arange(0, 4000, 20, dtype=torch.int32).repeat(rows)
def run(k):
    before = memory("VmRSS")
    ops.dense_grad_topk(grad, x, crow_indices, col_indices, k)
    return memory("VmHWM") - before
run(10)
print(run(200_000))
"""


def test_peak_memory_is_far_below_the_dense_gradient():
    child = subprocess.run(
        [sys.executable, "-P", "-c", CHILD], capture_output=True, text=True, check=True
    )
    dense = 4 * ROWS * COLS
    assert int(child.stdout) < dense / 5, f"{int(child.stdout) >> 20} MiB of {dense >> 20} dense"


# ---- torch's own checks --------------------------------------------------------------------------


def test_opcheck(device):
    index = random_csr(6, 8, 0.3, device=device)[:2]
    grad, x = torch.randn(4, 6, device=device), torch.randn(4, 8, device=device)
    torch.library.opcheck(OP, (grad, x, *index, 5))

    index = random_csr(6, 18, 0.3, device=device)[:2]
    grad = torch.randn(2, 6, 4, 4, device=device)
    x = torch.randn(2, 2, 4, 4, device=device)
    pairs = ([3, 3], [1, 1], [1, 1], [1, 1])
    torch.library.opcheck(CONV_OP, (grad, x, *index, 5, *pairs, 1))


def test_it_compiles(device):
    index = random_csr(6, 8, 0.3, device=device)[:2]
    grad, x = integers(4, 6, device=device), integers(4, 8, device=device)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def largest(grad, x):
        return ops.dense_grad_topk(grad, x, *index, 5)

    found = largest(grad, x)
    assert_top(found, grad.T @ x, index, 5)


# ---- refusals ------------------------------------------------------------------------------------


def good():
    return {
        "grad": torch.ones(3, 2),
        "x": torch.ones(3, 4),
        "crow_indices": torch.tensor([0, 1, 2]),
        "col_indices": torch.tensor([0, 3]),
        "k": 2,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 7}, ValueError, "k: expected at most the 6 positions .* got 7"),
        ({"k": -1}, ValueError, "k: expected at least 0, got -1"),
        ({"k": 2.0}, TypeError, "k: expected an int, got float"),
        ({"grad": [1.0]}, TypeError, "grad: expected a torch.Tensor"),
        ({"grad": torch.ones(3, 2).double()}, TypeError, "grad is torch.float64 but x is"),
        ({"x": torch.ones(3, 4).int()}, TypeError, "x: expected float32"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: expected at least 1 dim"),
        ({"grad": torch.ones(2, 2)}, ValueError, r"leading dimensions of x, \(3,\), got \(2,\)"),
        ({"grad": torch.ones(3, 5)}, ValueError, "crow_indices: expected rows . 1 = 6 .* got 3"),
        ({"crow_indices": torch.ones(3)}, TypeError, "crow_indices: expected int32 or int64"),
        ({"col_indices": torch.tensor([0, 9]), "validate": True}, ValueError, "got 9"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        ops.dense_grad_topk(**{**good(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 7}, "number of positions outside the topology, 6, got 7"),
        ({"grad": torch.ones(3, 5)}, "must be the number of rows, 2, got 5"),
        ({"grad": torch.ones(2, 2)}, "the same leading dimensions"),
        ({"x": torch.ones(3, 4).double()}, "grad is Float but x is Double"),
        ({"grad": torch.ones(3, 2).int(), "x": torch.ones(3, 4).int()}, "x must be float32, .*Int"),
    ],
)
def test_the_operator_itself_refuses_bad_arguments(change, message, device):
    arguments = {**good(), **change}
    arguments = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments.values())


def test_the_cpu_kernel_refuses_indices_that_would_read_foreign_memory():
    with pytest.raises(RuntimeError, match=r"col_indices must lie in \[0, 4\), got 9"):
        ops.dense_grad_topk(**{**good(), "col_indices": torch.tensor([0, 9])})


def good_convolution():
    return {
        "grad": torch.ones(2, 4, 3, 3),
        "x": torch.ones(2, 2, 5, 5),
        "crow_indices": torch.tensor([0, 1, 1, 1, 1]),
        "col_indices": torch.tensor([0]),
        "k": 2,
        "kernel_size": 3,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 72}, ValueError, "at most the 71 positions .* got 72"),
        ({"grad": torch.ones(2, 4, 3)}, ValueError, "grad: expected at least 4 dimensions"),
        ({"grad": torch.ones(1, 4, 3, 3)}, ValueError, "grad and x: expected .*n, out, h_out"),
        ({"grad": torch.ones(2, 4, 3, 2)}, ValueError, r"height and width \(3, 3\) .* \(3, 2\)"),
        ({"groups": 3}, ValueError, "groups: expected a divisor of the channels, 2 in and 4 out"),
        ({"groups": 0}, ValueError, "groups: expected at least 1, got 0"),
        ({"stride": (1, 1, 1)}, ValueError, "stride: expected one int or two"),
        ({"padding": -1}, ValueError, "padding: expected at least 0, got -1"),
        ({"dilation": 1.5}, TypeError, "dilation: expected an int, got float"),
    ],
)
def test_bad_convolutions_are_refused(change, error, message):
    ops.conv2d_dense_grad_topk(**good_convolution())
    with pytest.raises(error, match=message):
        ops.conv2d_dense_grad_topk(**{**good_convolution(), **change})


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, torch.ones(2, 4, 3), r"grad must be \[n, c_out, h_out, w_out\]"),
        (0, torch.ones(2, 5, 3, 3), "as many channels as there are rows, 4, got 5"),
        (0, torch.ones(2, 4, 2, 3), "grad must be 3 long in dimension 2 .* got 2"),
        (6, [0, 1], "stride and dilation must be positive"),
        (9, 3, "groups must divide the channels of x and of grad, 2 and 4, got 3"),
    ],
)
def test_the_convolution_operator_itself_refuses_bad_arguments(at, value, message, device):
    arguments = [*good_convolution().values()][:5]
    arguments = [a.to(device) if torch.is_tensor(a) else a for a in arguments]
    arguments += [[3, 3], [1, 1], [0, 0], [1, 1], 1]
    arguments[at] = value.to(device) if torch.is_tensor(value) else value
    with pytest.raises(RuntimeError, match=message):
        CONV_OP(*arguments)
