import os
import subprocess
import sys

import pytest
import torch
from helpers import TOPOLOGIES, random_csr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import masked_matmul as reference

OP = torch.ops.fullspectrum.sparse_conv2d.default
BACKWARD_OP = torch.ops.fullspectrum.sparse_conv2d_backward.default

PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
# Empty, one, prime; tiles, lanes and bands that do not divide; every way a kernel can lie.
CASES = {
    # batch, channels in, channels out, height, width, kernel, density, geometry
    "no image": (0, 3, 4, 5, 5, (3, 3), 0.5, {"padding": (1, 1)}),
    "one pixel": (1, 1, 1, 1, 1, (1, 1), 1.0, {}),
    "no nonzero": (3, 2, 5, 6, 7, (3, 3), 0.0, {"padding": (1, 1)}),
    "3x3": (17, 5, 7, 9, 11, (3, 3), 0.3, {"padding": (1, 1)}),
    "1x1": (5, 6, 7, 5, 9, (1, 1), 0.4, {}),
    "1x1 of stride 2": (3, 6, 4, 7, 9, (1, 1), 0.4, {"stride": (2, 2)}),
    "4x4 images": (16, 9, 8, 4, 4, (3, 3), 0.2, {"padding": (1, 1)}),
    "rectangular": (2, 4, 3, 8, 13, (2, 5), 0.3, {"stride": (3, 1), "padding": (0, 2)}),
    "stride beyond the kernel": (2, 3, 3, 9, 9, (2, 2), 0.5, {"stride": (4, 3)}),
    "dilated": (2, 3, 4, 12, 10, (3, 2), 0.5, {"dilation": (2, 3), "stride": (2, 2)}),
    "padding beyond the kernel": (2, 3, 2, 4, 5, (2, 2), 0.5, {"padding": (5, 3)}),
    "groups": (3, 6, 9, 6, 6, (3, 3), 0.4, {"groups": 3, "padding": (1, 1)}),
    "depthwise": (2, 5, 10, 7, 6, (3, 3), 0.6, {"groups": 5, "stride": (2, 1)}),
    "one tall image": (1, 2, 3, 70, 9, (3, 3), 0.5, {"padding": (1, 1)}),
    "taps far apart": (1, 2, 3, 302, 303, (2, 2), 0.7, {"dilation": (300, 300)}),
    "a wide image": (1, 3, 20, 9, 45, (3, 3), 0.5, {"padding": (1, 1)}),
    "many channels": (1, 60, 50, 4, 5, (3, 3), 0.6, {"padding": (1, 1)}),
    "many strided channels": (1, 60, 50, 7, 9, (3, 3), 0.3, {"stride": (2, 2)}),
    "groups, stride 3": (2, 6, 4, 10, 11, (3, 4), 0.6, {"stride": (3, 3), "groups": 2}),
}


def case(batch, inputs, outputs, height, width, kernel, density, geometry, dtype=torch.float64, device="cpu", index=torch.int32):  # fmt: skip # noqa: E501
    geometry = {**PLAIN, **geometry}
    cols = inputs // geometry["groups"] * kernel[0] * kernel[1]
    crow_indices, col_indices, values, _, _ = random_csr(
        outputs, cols, density, dtype, device, index
    )
    x = torch.randn(batch, inputs, height, width, dtype=torch.float64).to(device, dtype)
    bias = torch.randn(outputs, dtype=torch.float64).to(device, dtype)
    return x, values, (crow_indices, col_indices), kernel, bias, geometry


def reference_with_gradients(x, values, index, kernel, bias, geometry):
    """Output and gradients of the reference, and the output's gradient that they are for.

    The padding is added before: torch's own convolution crashes on some that is beyond the kernel.
    """
    x, values, bias = (t.detach().requires_grad_() for t in (x, values, bias))
    top, left = geometry["padding"]
    padded = torch.nn.functional.pad(x, (left, left, top, top))
    unpadded = {**geometry, "padding": (0, 0)}
    y = reference.sparse_conv2d(padded, values, *index, kernel, bias, **unpadded)
    grad = torch.randn(y.shape, dtype=torch.float64).to(y)
    return grad, (y, *torch.autograd.grad(y, (x, values, bias), grad))


def ours_with_gradients(x, values, index, kernel, bias, geometry, grad):
    x, values, bias = (t.detach().requires_grad_() for t in (x, values, bias))
    y = ops.sparse_conv2d(x, values, *index, kernel, bias, **geometry)
    return (y, *torch.autograd.grad(y, (x, values, bias), grad))


def in_double(x, values, index, kernel, bias, geometry):
    return x.double(), values.double(), index, kernel, bias.double(), geometry


# ---- values --------------------------------------------------------------------------------------


def test_a_convolution_worked_by_hand(device):
    # two input channels, the kernels [[1, 0], [0, 10]] and [[0, 100], [0, 0]]; then an empty row
    crow_indices = torch.tensor([0, 3, 3], device=device)
    col_indices = torch.tensor([0, 3, 5], device=device)
    values = torch.tensor([1.0, 10.0, 100.0], device=device)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]], device=device)
    bias = torch.tensor([0.5, -1.0], device=device)

    y = ops.sparse_conv2d(x, values, crow_indices, col_indices, 2, bias, padding=(0, 1))

    assert y.tolist() == [[[[530.5, 641.5, 2.5]], [[-1.0, -1.0, -1.0]]]]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["i32", "i64"])
def test_float64_agrees_with_the_reference(name, index, device):
    arguments = case(*CASES[name], device=device, index=index)
    grad, expected = reference_with_gradients(*arguments)

    found = ours_with_gradients(*arguments, grad)

    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", ["3x3", "1x1", "dilated", "groups", "many channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_as_near_to_the_float64_reference_as_torch(name, dtype, device):
    arguments = case(*CASES[name], dtype=dtype, device=device)
    assert_as_near_to_float64_as_torch(arguments)


def assert_as_near_to_float64_as_torch(arguments, *, long_sums=False):
    """The error is at most twice torch's, or one rounding of the largest element.

    Where torch is lucky with the one long sum there is, twice its error says little: for long sums
    one rounding in float32 of the largest sum of its terms' magnitudes is granted as well.
    """
    grad, torchs = reference_with_gradients(*arguments)
    found = ours_with_gradients(*arguments, grad)

    dtype = grad.dtype
    exact, magnitudes = (in_float64(f, *arguments, grad) for f in (torch.clone, torch.abs))
    for ours, other, wanted, sums in zip(found, torchs, exact, magnitudes, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == wanted.shape
        if wanted.numel() == 0:
            continue
        floor = torch.finfo(dtype).eps * wanted.abs().max()
        floor += long_sums * torch.finfo(torch.float32).eps * sums.max()
        error, torch_error = ((t.double() - wanted).abs().max() for t in (ours, other))
        assert error <= 2 * torch_error + floor


def in_float64(change, x, values, index, kernel, bias, geometry, grad):
    """Output and gradients of the reference in float64, of changed numbers."""
    numbers = [change(t.detach().double()).requires_grad_() for t in (x, values, bias)]
    top, left = geometry["padding"]
    padded = torch.nn.functional.pad(numbers[0], (left, left, top, top))
    unpadded = {**geometry, "padding": (0, 0)}
    y = reference.sparse_conv2d(padded, numbers[1], *index, kernel, numbers[2], **unpadded)
    return y, *torch.autograd.grad(y, numbers, change(grad.double()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits_is_read_and_written_as_torch_does(dtype, device):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    crow_indices, col_indices = torch.tensor([0, 1]), torch.tensor([0])
    for scale in (1.0, 0.7, 1e-3):
        x = numbers.view(1, 1, 256, 256).to(device)
        values = torch.tensor([scale], dtype=dtype, device=device)
        y = ops.sparse_conv2d(x, values, crow_indices.to(device), col_indices.to(device), 1)
        expected = (x.float() * values.float()).to(dtype)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def draw_case(data, dtype):
    """Draw sizes, geometry and topology; strides, dilation and padding may go beyond the image."""

    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * size for size in pair(1, 5))
    kernel, stride, dilation, padding = pair(1, 5), pair(1, 3), pair(1, 3), pair(0, 6)
    height, width = pair(1, 12)
    assume(height + 2 * padding[0] > dilation[0] * (kernel[0] - 1))
    assume(width + 2 * padding[1] > dilation[1] * (kernel[1] - 1))
    batch = data.draw(st.sampled_from([0, 1, 2, 7, 16, 17, 33]))
    density = data.draw(st.sampled_from([0.05, 0.5]))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    mask = torch.rand(outputs, inputs // groups * kernel[0] * kernel[1]) < density
    mask = TOPOLOGIES[data.draw(st.sampled_from(list(TOPOLOGIES)))](mask)
    weight, x, bias = (
        torch.randn(size, dtype=torch.float64).to(dtype)
        for size in (mask.shape, (batch, inputs, height, width), outputs)
    )
    crow_indices, col_indices, values = ops.csr_from_dense(weight, mask)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    return x, values, (crow_indices, col_indices), kernel, bias, geometry


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape_agrees_with_the_reference(data):
    arguments = draw_case(data, torch.float64)
    grad, expected = reference_with_gradients(*arguments)
    found = ours_with_gradients(*arguments, grad)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_shape_is_as_near_to_float64_as_torch(data, dtype):
    assert_as_near_to_float64_as_torch(draw_case(data, dtype), long_sums=True)


@pytest.mark.parametrize("name", ["3x3", "depthwise", "1x1 of stride 2", "many channels"])
def test_images_may_lie_in_memory_in_any_order(name, device):
    arguments = case(*CASES[name], device=device)
    grad, expected = reference_with_gradients(*arguments)
    x, *others = arguments
    last = torch.channels_last
    orders = (
        (x.contiguous(memory_format=last), grad),
        (x, grad.contiguous(memory_format=last)),
        (x.contiguous(memory_format=last), grad.contiguous(memory_format=last)),
        (x.transpose(2, 3).contiguous().transpose(2, 3), grad.repeat(2, 1, 1, 1)[::2]),
    )
    for own_x, own_grad in orders[:3]:
        found = ours_with_gradients(own_x, *others, own_grad)
        for ours, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-11)
        if own_x is not x:
            assert all(t.is_contiguous(memory_format=last) for t in found[:2])
    found = ours_with_gradients(orders[3][0], *others, orders[3][1][: len(x)].contiguous())
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-11)
    expanded = torch.ones((), dtype=grad.dtype, device=grad.device).expand(grad.shape)
    torch.testing.assert_close(
        ours_with_gradients(x, *others, expanded),
        ours_with_gradients(x, *others, expanded.contiguous()),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((2, 4), 1), ((2, 3), 3)])
def test_padding_in_words(kernel, dilation, device):
    x, values, index, _, bias, _ = case(2, 3, 4, 7, 8, kernel, 0.5, {}, device=device)
    dense = ops.csr_to_dense(*index, values, (4, 3 * kernel[0] * kernel[1])).view(4, 3, *kernel)
    for padding in ("same", "valid"):
        y = ops.sparse_conv2d(x, values, *index, kernel, bias, padding=padding, dilation=dilation)
        wanted = torch.nn.functional.conv2d(x, dense, bias, padding=padding, dilation=dilation)
        torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)


def test_layers_without_channels(device):
    none = torch.empty(0, device=device)
    no_column = torch.empty(0, dtype=torch.int32, device=device)
    x = torch.ones(2, 0, 4, 4, device=device, requires_grad=True)
    rows = torch.zeros(4, dtype=torch.int32, device=device)
    bias = torch.arange(3.0, device=device)
    y = ops.sparse_conv2d(x, none, rows, no_column, 3, bias)
    assert torch.equal(y, bias.view(1, 3, 1, 1).expand(2, 3, 2, 2))
    y.sum().backward()
    x = torch.ones(2, 3, 4, 4, device=device, requires_grad=True)
    y = ops.sparse_conv2d(x, none, rows[:1], no_column, 3)
    assert y.shape == (2, 0, 2, 2)
    y.sum().backward()
    assert not x.grad.any()


def test_a_column_may_come_several_times_in_a_row(device):
    row = torch.tensor([0, 0, 4, 4, 4, 7, 9, 9])  # of two input channels, 3x3
    crow_indices = torch.arange(0, 33, 8, dtype=torch.int32, device=device)
    col_indices = row.repeat(4).to(device, torch.int32)
    values = torch.randn(32, dtype=torch.float64, device=device)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, device=device)
    weight = torch.zeros(4, 18, dtype=torch.float64, device=device)
    rows = torch.arange(4, device=device).repeat_interleave(8)
    weight.index_put_((rows, col_indices.long()), values, accumulate=True)
    weight = weight.view(4, 2, 3, 3).requires_grad_()
    x.requires_grad_()
    dense = torch.nn.functional.conv2d(x, weight, stride=2, padding=1)
    grad = torch.randn_like(dense)
    grad_x, grad_weight = torch.autograd.grad(dense, (x, weight), grad)
    wanted = (dense, grad_x, grad_weight.view(4, 18)[rows, col_indices.long()])

    index = (crow_indices, col_indices)
    geometry = {**PLAIN, "stride": (2, 2), "padding": (1, 1)}
    found = ours_with_gradients(x, values, index, 3, x.new_zeros(4), geometry, grad)

    torch.testing.assert_close(found[:3], wanted, rtol=1e-12, atol=1e-12)


def test_a_number_that_is_not_finite_reaches_only_what_meets_it(device, request):
    # of a 3x3 kernel the taps (0, 0) and (1, 1); with stride 2 nothing meets the last row
    index = (torch.tensor([0, 2], device=device), torch.tensor([0, 4], device=device))
    values = torch.tensor([1.0, 2.0], device=device)
    x = torch.ones(1, 1, 6, 6, device=device)
    x[..., 0, 0], x[..., 5, :] = torch.inf, torch.nan
    geometry = {**PLAIN, "stride": (2, 2)}

    found = ours_with_gradients(
        x, values, index, 3, torch.zeros(1, device=device), geometry, torch.ones(1, 1, 2, 2).to(x)
    )

    y, grad_x, grad_values, _ = (t.isfinite().flatten().tolist() for t in found)
    assert y == [False, True, True, True]
    assert all(grad_x)
    # on the CPU a tap that meets none of them multiplies them by a gradient of zero
    assert grad_values == [False, request.node.callspec.params["device"] != "cpu"]


def test_one_full_row_among_empty_ones(device):
    mask = torch.zeros(30, 90, dtype=torch.bool)
    mask[17] = True
    fields = ops.csr_from_dense(
        torch.randn(30, 90, dtype=torch.float64).to(device), mask.to(device)
    )
    x = torch.randn(3, 10, 6, 6, dtype=torch.float64, device=device)
    arguments = (x, fields[2], fields[:2], (3, 3), x.new_zeros(30), PLAIN)
    grad, expected = reference_with_gradients(*arguments)
    for ours, wanted in zip(ours_with_gradients(*arguments, grad), expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 16, 50])
def test_every_division_among_threads_gives_the_reference_and_the_same_bits(threads, batch):
    arguments = case(batch, 20, 30, 12, 10, (3, 3), 0.4, {"padding": (1, 1)})
    grad, expected = reference_with_gradients(*arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, again = (ours_with_gradients(*arguments, grad) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    for ours, same, wanted in zip(found, again, expected, strict=True):
        assert torch.equal(ours, same)
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-10)


# ---- derivatives ---------------------------------------------------------------------------------

SMALL = (1, 2, 4, 3, 3, (2, 3), 0.5, {"stride": (2, 1), "padding": (1, 1), "groups": 2})


def differentiable(device):
    x, values, index, kernel, bias, geometry = case(*SMALL, device=device)
    cols = x.shape[1] // geometry["groups"] * kernel[0] * kernel[1]
    transpose = ops.csr_transpose(*index, cols)
    x, values, bias = (t.requires_grad_() for t in (x, values, bias))
    return x, values, index, kernel, bias, geometry, transpose


@pytest.mark.parametrize("transposed", [True, False])
def test_first_and_second_derivatives(transposed, device):
    x, values, index, kernel, bias, geometry, transpose = differentiable(device)

    def layer(x, values, bias):
        return ops.sparse_conv2d(
            x, values, *index, kernel, bias, **geometry, transpose=transpose if transposed else None
        )

    assert torch.autograd.gradcheck(layer, (x, values, bias))
    assert torch.autograd.gradgradcheck(layer, (x, values, bias))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_derivatives_of_the_gradient_operator(needs, device):
    x, values, index, kernel, bias, geometry, transpose = differentiable(device)
    y = ops.sparse_conv2d(x, values, *index, kernel, bias, **geometry)
    grad = torch.randn_like(y).requires_grad_()

    def gradients(grad, x, values):
        both = BACKWARD_OP(grad, x, values, *index, kernel, *geometry.values(), *needs, *transpose)
        return tuple(t for t, needed in zip(both, needs, strict=True) if needed)

    assert torch.autograd.gradcheck(gradients, (grad, x, values))
    assert torch.autograd.gradgradcheck(gradients, (grad, x, values))


def test_only_the_gradients_asked_for_are_computed(device):
    x, values, index, kernel, bias, geometry, _ = differentiable(device)
    y = reference.sparse_conv2d(x, values, *index, kernel, bias, **geometry)
    grad = torch.randn_like(y)
    for wanted in ([x], [values], [bias], [x, bias], [values, x]):
        x_, values_ = (t if any(t is w for w in wanted) else t.detach() for t in (x, values))
        y = ops.sparse_conv2d(x_, values_, *index, kernel, bias, **geometry)
        found = torch.autograd.grad(y, wanted, grad)
        dense = reference.sparse_conv2d(x, values, *index, kernel, bias, **geometry)
        expected = torch.autograd.grad(dense, wanted, grad)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_operators_are_registered_as_torch_wants_them(order, device):
    x, values, index, kernel, bias, geometry, transpose = differentiable(device)
    x = x.detach().contiguous(memory_format=order).requires_grad_()
    shape = list(geometry.values())
    grad = torch.randn_like(OP(x, values, *index, kernel, bias, *shape)).requires_grad_()

    torch.library.opcheck(OP, (x, values, *index, kernel, bias, *shape))
    torch.library.opcheck(OP, (x, values, *index, kernel, None, *shape, *transpose))
    for needs in ((True, True), (False, True), (True, False)):
        arguments = (grad, x, values, *index, kernel, *shape, *needs, *transpose)
        torch.library.opcheck(BACKWARD_OP, arguments)


def test_a_compiled_function_gives_the_same_gradients(device):
    x, values, index, kernel, bias, geometry, transpose = differentiable(device)

    def loss(x, values, bias, transpose):
        y = ops.sparse_conv2d(x, values, *index, kernel, bias, **geometry, transpose=transpose)
        return y.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for fields in (None, transpose):
        expected = torch.autograd.grad(loss(x, values, bias, fields), (x, values, bias))
        found = torch.autograd.grad(compiled(x, values, bias, fields), (x, values, bias))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


# ---- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_its_dtype_like_torch(dtype, device):
    x, values, index, kernel, bias, geometry = case(*SMALL, dtype=torch.float32, device=device)
    values.requires_grad_()

    with torch.autocast(device.type, dtype):
        y = ops.sparse_conv2d(x.to(dtype), values, *index, kernel, bias, **geometry)
        double = ops.sparse_conv2d(
            x.double(), values.double(), *index, kernel, bias.double(), **geometry
        )
    y.float().sum().backward()

    assert y.dtype == dtype
    assert double.dtype == torch.float64
    assert values.grad.dtype == torch.float32
    cast = (x.to(dtype), values.to(dtype), *index, kernel, bias.to(dtype))
    assert torch.equal(y, ops.sparse_conv2d(*cast, **geometry))


# ---- refusals ------------------------------------------------------------------------------------


def good():
    x, values, index, kernel, bias, _ = case(2, 2, 4, 5, 5, (3, 3), 0.5, {}, dtype=torch.float32)
    return {
        "x": x,
        "values": values,
        "crow_indices": index[0],
        "col_indices": index[1],
        "kernel_size": kernel,
        "bias": bias,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 1.0}, TypeError, "x: expected a torch.Tensor, got float"),
        ({"x": torch.ones(2, 5, 5)}, ValueError, r"x: expected \[batch, in_channels, height, wid"),
        ({"x": torch.ones(2, 2, 5, 5).int()}, TypeError, "x: expected float32, .*int32"),
        ({"x": torch.ones(2, 2, 5, 5).double()}, TypeError, "values is .*float32 but x is .*64"),
        ({"x": torch.ones(2, 2, 2, 5)}, ValueError, "kernel_size: spans 3 .* the padded input's 2"),
        ({"values": torch.ones(2)}, ValueError, "values: expected one for each of the"),
        ({"crow_indices": torch.zeros(5)}, TypeError, "crow_indices: expected int32 or int64"),
        ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \(4,\), .* got \(3,\)"),
        ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size: expected an int or two, got \(3"),
        ({"kernel_size": 0}, ValueError, "kernel_size: expected at least 1, got 0"),
        ({"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
        ({"stride": 1.5}, TypeError, "stride: expected an int, got float"),
        ({"padding": -1}, ValueError, "padding: expected at least 0, got -1"),
        ({"padding": "all"}, ValueError, 'padding: expected numbers, "same" or "valid", got'),
        ({"padding": "same", "stride": 2}, ValueError, 'padding: "same" is for stride 1'),
        ({"dilation": 0}, ValueError, "dilation: expected at least 1, got 0"),
        ({"groups": 3}, ValueError, "groups: expected a divisor of the 2 input and the 4 output"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    ops.sparse_conv2d(**good())
    with pytest.raises(error, match=message):
        ops.sparse_conv2d(**{**good(), **change})


@pytest.mark.parametrize(
    ("field", "at", "value", "validated", "native"),
    [
        ("crow_indices", 0, 1, "start at 0 and end at nnz", "crow_indices must rise from 0 to nnz"),
        ("crow_indices", 2, 99, "offsets that never decrease", "crow_indices must rise from 0"),
        ("col_indices", 0, 18, r"in \[0, 18\), got 18", "col_indices must lie .*got 18"),
        ("col_indices", 0, -1, r"in \[0, 18\), got -1", "col_indices must lie .*got -1"),
    ],
)
def test_wrong_indices_are_refused(field, at, value, validated, native):
    arguments = good()
    arguments[field] = arguments[field].clone().index_fill_(0, torch.tensor([at]), value)
    x, values, *others = arguments.values()
    shape = [(1, 1), (0, 0), (1, 1), 1]

    with pytest.raises(ValueError, match=validated):
        ops.sparse_conv2d(**arguments, validate=True)
    with pytest.raises(RuntimeError, match=native):
        ops.sparse_conv2d(**arguments)
    with pytest.raises(RuntimeError, match=native):
        BACKWARD_OP(torch.ones(2, 4, 3, 3), x, values, *others[:3], *shape, True, True)


def test_columns_out_of_order_are_a_matrix_all_the_same():
    x, values, (crow_indices, _), kernel, bias, geometry = case(*CASES["many channels"])
    index = (crow_indices, torch.randint(0, 540, values.shape, dtype=torch.int32))
    y = ops.sparse_conv2d(x, values, *index, kernel, bias, **geometry)
    rows = ops.csr_row_indices(*index).long()
    weight = torch.zeros(50, 540, dtype=torch.float64)
    weight.index_put_((rows, index[1].long()), values, accumulate=True)
    wanted = torch.nn.functional.conv2d(x, weight.view(50, 60, 3, 3), bias, padding=1)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crow_indices": torch.zeros(5, dtype=torch.int64)}, "crow_indices is Long but col_ind"),
        ({"values": torch.ones(1)}, "values must be as long as col_indices"),
        ({"x": torch.ones(2, 2, 5, 5).double()}, "x is Double but values is Float"),
        ({"x": torch.ones(2, 2, 5)}, "x must be .batch, channels, height, width., got 3"),
        (
            {"x": torch.ones(2, 2, 2, 5)},
            "the kernel spans 3 pixels, more than the padded input's 2",
        ),
        ({"kernel_size": (3,)}, "kernel_size must hold two integers"),
        ({"bias": torch.ones(3)}, r"bias must be \[out_channels\] = \[4\], got 3"),
        ({"stride": (0, 1)}, "stride must be at least 1, got 0"),
        ({"groups": 3}, "groups = 3 must divide the 2 input and the 4 output channels"),
    ],
)
def test_the_operator_itself_refuses_bad_arguments(change, message, device):
    arguments = {**good(), **PLAIN, **change}
    arguments = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments.values())


def test_the_gradient_operator_refuses_bad_arguments(device):
    arguments = {k: v.to(device) if torch.is_tensor(v) else v for k, v in good().items()}
    fields = list(arguments.values())[:-1]
    grad = torch.ones(2, 4, 3, 3, device=device)
    for wrong, message in (
        (grad[:, :3], r"grad must have the shape of the output, \[2, 4, 3, 3\]"),
        (grad.double(), "grad is Double but x is Float"),
    ):
        with pytest.raises(RuntimeError, match=message):
            BACKWARD_OP(wrong, *fields, *PLAIN.values(), False, True)


# ---- instruction sets ----------------------------------------------------------------------------

AGAINST_REFERENCE = """
import sys
sys.path[:0] = sys.argv[1:]
import torch
from fullspectrum_ext import _core
from test_sparse_conv2d import CASES, case, in_double, ours_with_gradients, reference_with_gradients

print(_core.active_isa())
for dtype, tolerance in (
    (torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)
):
    for name in CASES:
        arguments = case(*CASES[name], dtype=dtype)
        grad, expected = reference_with_gradients(*in_double(*arguments))
        found = ours_with_gradients(*arguments, grad.to(dtype))
        for ours, wanted in zip(found, expected, strict=True):
            scale = wanted.abs().max().clamp(min=1) if wanted.numel() else 1
            ours = ours.double() / scale
            torch.testing.assert_close(ours, wanted / scale, rtol=0, atol=tolerance)
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_the_lower_instruction_sets_agree_with_the_reference(isa):
    # Chosen once in a process, so each takes its own. The processor's best one runs in all others.
    here = os.path.dirname(__file__)
    environment = {**os.environ, "FULLSPECTRUM_ISA": isa}
    # -P: the package as installed, not its source folder
    command = [sys.executable, "-P", "-c", AGAINST_REFERENCE, here, os.path.dirname(here)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    if isa == "baseline":
        assert ran.stdout.strip() == "baseline"
