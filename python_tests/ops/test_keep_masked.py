import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import masked_matmul

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (3, 0), (5, 7), (2, 3, 3, 3), (70001,)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_reference_bit_for_bit(device, dtype, shape):
    x = torch.randn(shape, dtype=dtype).to(device)
    mask = (torch.rand(shape) < 0.6).to(device)
    expected = masked_matmul.keep_masked_(x.clone(), mask)

    found = ops.keep_masked_(x, mask)

    assert found is x
    assert torch.equal(x, expected)


@given(st.lists(st.tuples(st.floats(width=32), st.booleans())))
def test_it_selects_whatever_the_values_are(pairs):
    x = torch.tensor([value for value, _ in pairs], dtype=torch.float32)
    mask = torch.tensor([kept for _, kept in pairs], dtype=torch.bool)
    before = x.clone()

    ops.keep_masked_(x, mask)

    assert torch.equal(x[mask].view(torch.int32), before[mask].view(torch.int32))
    assert torch.equal(x[~mask].view(torch.int32), torch.zeros_like(x[~mask], dtype=torch.int32))


def test_opcheck(device):
    x, mask = torch.randn(4, 5, device=device), torch.rand(4, 5, device=device) < 0.5
    torch.library.opcheck(torch.ops.fullspectrum.keep_masked_.default, (x, mask))


@pytest.mark.parametrize(
    ("x", "mask", "error", "message"),
    [
        ([1.0], torch.ones(1) > 0, TypeError, "x: expected a torch.Tensor, got list"),
        (torch.ones(1).int(), torch.ones(1) > 0, TypeError, "x: expected float32"),
        (torch.ones(1), torch.ones(1), TypeError, "mask: expected bool, got torch.float32"),
        (torch.ones(2, 3), torch.ones(6) > 0, ValueError, r"shape of x, \(2, 3\), got \(6,\)"),
        (torch.ones(2, 3).T, torch.ones(3, 2) > 0, ValueError, "x, mask: expected contiguous"),
        (torch.ones(2, device="meta"), torch.ones(2) > 0, ValueError, "mask is on cpu but x"),
    ],
)
def test_bad_arguments_are_refused(x, mask, error, message):
    with pytest.raises(error, match=message):
        ops.keep_masked_(x, mask)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.ones(2).int(), torch.ones(2) > 0, "keep_masked_: expected float32"),
        (torch.ones(2), torch.ones(2), "mask must be bool, got Float"),
        (torch.ones(2, 3), torch.ones(3, 2) > 0, "mask must have the shape of x"),
        (torch.ones(2, 3).T, torch.ones(3, 2) > 0, "must be contiguous"),
    ],
)
def test_the_operator_itself_refuses_them_too(device, x, mask, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fullspectrum.keep_masked_.default(x.to(device), mask.to(device))
