"""A sparse and a dense-masked network from one seed stay within rounding while they train.

In float64 the bound is tight. In float32 a ReLU whose input lies within rounding of zero may go
either way, and from there two runs part: torch's own dense network in float32 leaves its float64
run likewise (3e-3 after 20 steps of SGD, 0.7 after 200). So float32 is compared with softplus in
its place, where two hundred steps only multiply the rounding of each product.
"""

import copy

import pytest
import torch
from torch import nn

from fullspectrum_ext.experiments.models import MODELS
from fullspectrum_ext.nn import densify, sparsify

STEPS = 200
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=5e-4),
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.05),
}
# relative to the norm of each tensor
BOUND = {torch.float64: 1e-12, torch.float32: 1e-4}


def trained(model, name, dtype, shape):
    generator = torch.Generator().manual_seed(5)
    optimizer = OPTIMIZERS[name](model.parameters())
    losses = []
    for _ in range(STEPS):
        # something to learn: which of the two channels are bright
        y = torch.randint(4, (8,), generator=generator)
        x = torch.randn(8, *shape, generator=generator, dtype=torch.float64)
        x = (x + torch.stack((y % 2, y // 2), 1).view(-1, 2, 1, 1)).to(dtype)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return densify(model).state_dict(), losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("architecture", ["mlp", "resnet20"])
def test_sparse_and_masked_training_stay_together(architecture, dtype, optimizer, monkeypatch):
    if dtype == torch.float32:
        softplus = nn.functional.softplus
        monkeypatch.setattr(nn.functional, "relu", lambda x, inplace=False: softplus(x))
    shape = (2, 8, 8)
    torch.manual_seed(0)
    build = MODELS[architecture]
    model = build(shape, 4) if architecture == "mlp" else build(shape, 4, width=4)
    model = model.to(dtype)
    masks = {
        name: torch.rand(weight.shape) < 0.3
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }

    results = {
        backend: trained(
            sparsify(copy.deepcopy(model), masks, backend=backend), optimizer, dtype, shape
        )
        for backend in ("sparse", "masked")
    }

    (sparse, losses), (masked, _) = results.values()
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])  # it has learned
    worst = max(
        float((tensor - masked[key]).norm() / masked[key].norm().clamp(min=1))
        for key, tensor in sparse.items()
        if tensor.is_floating_point()
    )
    assert worst < BOUND[dtype]
    for name, mask in masks.items():
        assert not sparse[name][~mask].any()
        assert not masked[name][~mask].any()
