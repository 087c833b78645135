"""gradcheck of every layer, and bits that do not change from one process to the next."""

import hashlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from fullspectrum_ext.nn import MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear, sparsify


def linear(cls):
    weight = torch.randn(5, 7, dtype=torch.float64)
    dense = nn.Linear(7, 5).double()
    mask = torch.rand(5, 7) < 0.4
    layer = cls(dense, mask) if cls is MaskedLinear else cls.from_dense(weight, mask, dense.bias)
    return layer, torch.randn(3, 7, dtype=torch.float64)


def conv2d(cls):
    dense = nn.Conv2d(2, 4, (2, 3), stride=2, padding=1, groups=2).double()
    mask = torch.rand_like(dense.weight) < 0.4
    if cls is MaskedConv2d:
        layer = cls(dense, mask)
    else:
        layer = cls.from_dense(dense.weight, mask, dense.bias, stride=2, padding=1, groups=2)
    return layer, torch.randn(1, 2, 3, 4, dtype=torch.float64)


@pytest.mark.parametrize("build", [linear, conv2d])
@pytest.mark.parametrize("form", ["sparse", "masked"])
def test_derivatives_of_a_layer(build, form):
    classes = {linear: (SparseLinear, MaskedLinear), conv2d: (SparseConv2d, MaskedConv2d)}
    layer, x = build(classes[build][form == "masked"])
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def output(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    if form == "masked":  # the numerical derivative must not leave the mask
        with torch.no_grad():
            y = output(x, *parameters)
        free = layer.weight.detach()[layer.mask].requires_grad_()

        def output_of_kept(x, kept, bias):
            weight = torch.zeros_like(layer.weight).masked_scatter(layer.mask, kept)
            return output(x, *(weight if name == "weight" else bias for name in names))

        assert torch.equal(output_of_kept(x, free, layer.bias), y)
        function, inputs = output_of_kept, (x.requires_grad_(), free, layer.bias)
    else:
        function, inputs = output, (x.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(function, inputs)
    if form == "sparse":  # of a masked one in test_masked.py
        assert torch.autograd.gradgradcheck(function, inputs)


def digest_of_training(threads):
    """Train a network of both kinds of layers; return a digest of all its bits."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    masks = {
        name: torch.rand(weight.shape) < 0.2
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }
    sparsify(model, masks, backend="sparse")
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        x, y = torch.randn(20, 3, 12, 12), torch.randint(10, (20,))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    bits = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    return hashlib.sha256(bits).hexdigest()


def test_training_gives_the_same_bits_in_another_process_at_1_and_2_threads():
    before = torch.get_num_threads()
    try:
        expected = [digest_of_training(threads) for threads in (1, 2)]
    finally:
        torch.set_num_threads(before)
    child = f"""
import sys
sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
from test_derivatives import digest_of_training
print(*(digest_of_training(threads) for threads in (1, 2)))
"""
    found = subprocess.run(
        [sys.executable, "-P", "-c", child], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == expected
