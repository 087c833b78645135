import io
import math

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn import sparsify
from fullspectrum_ext.spectral import effective_masks, full_spectrum
from fullspectrum_ext.spectral.paths import chain_of


def test_by_hand():
    masks = {
        "a": torch.tensor([[1, 1], [0, 0], [1, 0]]).bool(),  # nothing reaches unit 1
        "b": torch.tensor([[1, 1, 0], [0, 1, 0]]).bool(),  # unit 2 reaches nothing
    }
    before = {name: mask.clone() for name, mask in masks.items()}
    found = effective_masks(masks)
    assert found["a"].tolist() == [[True, True], [False, False], [False, False]]
    assert found["b"].tolist() == [[True, False, False], [False, False, False]]
    assert all(torch.equal(masks[name], before[name]) for name in masks)
    layers = full_spectrum(masks, chain=True).layers
    assert (layers["a"].effective_density, layers["b"].effective_density) == (2 / 6, 1 / 6)
    assert (layers["a"].density, layers["b"].density) == (3 / 6, 3 / 6)
    assert layers["a"].live_density == 3 / 4
    assert math.isnan(full_spectrum(masks).layers["a"].effective_density)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.05, 0.2, 0.5]))
def test_an_edge_stays_just_when_the_output_depends_on_it(seed, density):
    """Paths are counted by the gradient of a network of ones, as SynFlow does."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False), nn.Flatten(),
        nn.Linear(12, 5, bias=False), nn.Linear(5, 2, bias=False),
    ).double()  # fmt: skip
    masks = {}
    for name, weight in model.named_parameters():
        masks[name] = torch.rand(weight.shape) < density
        weight.data = masks[name].double()
    assert chain_of(model, masks)
    model(torch.ones(1, 2, 4, 4, dtype=torch.float64)).sum().backward()
    for name, mask in effective_masks(masks).items():
        assert torch.equal(mask, masks[name] & (model.get_parameter(name).grad > 0))


def test_the_structure_is_seen_in_sequential_models_only():
    for model in (networks.mlp(), networks.conv_net(), nn.Sequential(networks.mlp())):
        layers = full_spectrum(model).layers.values()
        assert all(layer.effective_density == 1 for layer in layers)
    masks = MaskSet({"0.weight": torch.rand(300, 64) < 0.01, "4.weight": torch.rand(10, 100) < 0.1})
    sparse = full_spectrum(sparsify(networks.mlp(), masks, backend="sparse"))
    assert 0 < sparse.layers["2.weight"].effective_density < 1

    class OwnPool(nn.MaxPool2d):
        pass

    pooled = networks.conv_net()
    pooled[2] = OwnPool(2)
    assert full_spectrum(pooled).layers["9.weight"].effective_density == 1

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    class Odd(nn.Module):
        pass

    shared = nn.Linear(4, 4)
    for model in (
        Residual(nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(3, 3), Odd(), nn.Linear(3, 3)),
        nn.Sequential(shared, shared),
        nn.Sequential(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 2)),
        nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 2)),  # several places
        nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)),
    ):
        layers = full_spectrum(model).layers.values()
        assert all(math.isnan(layer.effective_density) for layer in layers)


def test_in_table_and_dict():
    masks = {"a": torch.ones(4, 4), "b": torch.cat([torch.ones(4, 3), torch.zeros(4, 1)], 1)}
    chain, plain = full_spectrum(masks, chain=True), full_spectrum(masks)
    texts = []
    for spectrum in (chain, plain):
        console = Console(width=120, file=io.StringIO())
        console.print(spectrum.table())
        texts.append(console.file.getvalue())
    assert "eff." in texts[0]
    assert "eff." not in texts[1]
    assert "bound" in texts[0]
    assert chain.to_dict()["layers"]["a"]["effective_density"] == 0.75
    assert plain.to_dict()["layers"]["a"]["effective_density"] is None


def test_layers_that_do_not_fit():
    with pytest.raises(ValueError, match="chain: b has 3 taps, which the 2 outputs"):
        full_spectrum({"a": torch.ones(2, 4), "b": torch.ones(4, 3)}, chain=True)
