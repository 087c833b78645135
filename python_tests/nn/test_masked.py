import pytest
import torch
from torch import nn

from fullspectrum_ext.nn import MaskedConv2d, MaskedLinear


@pytest.mark.parametrize(
    ("layer", "masked", "shape"),
    [
        (nn.Linear(6, 4), MaskedLinear, (3, 6)),
        (nn.Linear(6, 4, bias=False), MaskedLinear, (6,)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), MaskedConv2d, (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), MaskedConv2d, (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, (1, 3), dilation=2, bias=False), MaskedConv2d, (2, 4, 7, 7)),
    ],
    ids=["linear", "no bias", "grouped", "circular", "dilated"],
)
def test_it_is_the_layer_with_the_weights_removed(layer, masked, shape):
    mask = torch.rand_like(layer.weight) < 0.5
    x = torch.randn(shape)
    weight = layer.weight
    with torch.no_grad():
        expected_weight = weight * mask

    found = masked(layer, mask)
    y = found(x)
    y.square().sum().backward()

    assert found.weight is weight
    assert torch.equal(weight, expected_weight)
    assert torch.equal(y, layer(x))
    assert torch.equal(weight.grad == 0, ~mask)
    assert f"nnz={int(mask.sum())}" in repr(found)


def test_no_random_number_is_drawn():
    layer = nn.Conv2d(1, 1, 3)
    state = torch.get_rng_state()
    MaskedConv2d(layer, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    assert torch.equal(state, torch.get_rng_state())


def test_removed_weights_get_no_gradient_even_beside_an_overflow():
    layer = MaskedLinear(nn.Linear(2, 1, bias=False), torch.tensor([[True, False]]))
    layer(torch.tensor([[1.0, float("inf")]])).nan_to_num().sum().backward()
    assert float(layer.weight.grad[0, 1]) == 0


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 2), TypeError, "mask: expected bool, got torch.float32"),
        (torch.ones(2, 3) > 0, ValueError, r"mask: expected .* \(2, 2\), got \(2, 3\)"),
        ([[True]], TypeError, "mask: expected a torch.Tensor, got list"),
    ],
)
def test_bad_masks_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        MaskedLinear(nn.Linear(2, 2), mask)
