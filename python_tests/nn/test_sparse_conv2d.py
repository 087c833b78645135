import copy
import io
import pickle

import pytest
import torch
from torch import nn

from fullspectrum_ext import MaskSet, full_spectrum
from fullspectrum_ext.nn import SparseConv2d


def dense_layer(density=0.4, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    options = {"padding": 1, "groups": 2, **options}
    layer = nn.Conv2d(4, 6, (3, 2), dtype=dtype, **options)
    with torch.no_grad():
        mask = torch.rand(layer.weight.shape) < density
        layer.weight.mul_(mask)
    return layer, mask, options


def layer_of(density=0.4, seed=0, dtype=torch.float64, **options):
    dense, mask, options = dense_layer(density, seed, dtype, **options)
    sparse = SparseConv2d.from_dense(dense.weight, mask, dense.bias, **options)
    return sparse, dense, mask


def images(dtype=torch.float64):
    return torch.randn(2, 4, 6, 7, dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "dilation": (1, 2), "groups": 1},
        {"padding": "same"},
        {"padding": "valid", "bias": False},
        {"padding": (2, 1), "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": "valid", "padding_mode": "replicate"},
    ],
)
def test_it_is_the_dense_layer_on_the_stored_weights(options):
    dense, mask, given = dense_layer(**options)
    given.pop("bias", None)
    sparse = SparseConv2d.from_dense(dense.weight, mask, dense.bias, **given)
    x = images().requires_grad_()

    y = sparse(x)
    expected = dense(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse(x[0]), dense(x[0]), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(y.square().sum(), (x, sparse.values))
    wanted_x, wanted = torch.autograd.grad(expected.square().sum(), (x, dense.weight))
    torch.testing.assert_close(found[0], wanted_x, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found[1], wanted[mask], rtol=1e-11, atol=1e-11)


def test_what_it_holds():
    layer, dense, mask = layer_of()
    nnz = int(mask.sum())

    assert torch.equal(layer.to_dense(), dense.weight)
    assert {name for name, _ in layer.named_parameters()} == {"values", "bias"}
    state = layer.state_dict()
    assert set(state) == {"values", "bias", "crow_indices", "col_indices", "weight_shape"}
    assert state["weight_shape"].tolist() == [6, 2, 3, 2]
    assert layer.nnz == nnz == layer.values.numel()
    assert repr(layer) == (
        "SparseConv2d(4, 6, kernel_size=(3, 2), stride=(1, 1), padding=(1, 1), groups=2, "
        f"nnz={nnz}, density={nnz / 72:.4g}, bias=True)"
    )


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies_are_equal_and_independent(duplicate):
    layer, _, _ = layer_of()
    twin = duplicate(layer)
    x = images()
    assert torch.equal(layer(x), twin(x))
    with torch.no_grad():
        twin.values.zero_()
    assert bool((layer.values != 0).any())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.4, 0.9])
def test_a_state_dict_brings_its_topology_along(density, assign):
    source, dense, _ = layer_of(density=density, seed=1)
    target, _, _ = layer_of(density=0.4, seed=2)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)

    target.load_state_dict(torch.load(file, weights_only=True), assign=assign)

    assert torch.equal(target.to_dense(), dense.weight)
    x = [images().requires_grad_()]
    x.append(x[0].detach().clone().requires_grad_())
    for layer, own in zip((source, target), x, strict=True):
        layer(own).square().sum().backward()
    assert torch.equal(x[0].grad, x[1].grad)  # the transposed index goes along


def test_a_malformed_state_dict_is_refused_and_changes_nothing():
    layer, dense, _ = layer_of()
    state = layer.state_dict()
    for key, value, message in [
        ("col_indices", state["col_indices"] + 12, r"col_indices: expected values in \[0, 12\)"),
        ("crow_indices", state["crow_indices"][:-1], "crow_indices: expected rows [+] 1 = 7"),
        ("weight_shape", torch.tensor([6, 4, 3, 1]), r"weight_shape: expected \[6, 2, 3, 2\], got"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, key: value})
        assert torch.equal(layer.to_dense(), dense.weight)


def test_masks_and_spectra_see_it_as_the_dense_layer():
    sparse, dense, mask = layer_of(dtype=torch.float32, groups=1)
    model, twin = nn.Sequential(sparse), nn.Sequential(dense)
    assert torch.equal(MaskSet.from_model(model)["0.weight"], mask)
    assert full_spectrum(model).vector.tolist() == full_spectrum(twin).vector.tolist()
    from_state = MaskSet.from_state_dict(model.state_dict())
    assert torch.equal(from_state["0.weight"], mask)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_model_compiles_whole(backend):
    torch._dynamo.reset()
    model = nn.Sequential(layer_of(dtype=torch.float32)[0], nn.ReLU())
    x = images(torch.float32)
    model(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    torch.compile(model, fullgraph=True, backend=backend)(x).square().sum().backward()

    found = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_autocast():
    layer, _, _ = layer_of(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(images(torch.float32))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.values.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"col_indices": torch.tensor([0, 4])}, ValueError, r"values in \[0, 4\), got 4"),
        ({"values": torch.tensor([1, 2])}, TypeError, "values: expected float32"),
        ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        ({"groups": 2}, ValueError, "in_channels must be divisible by groups"),
        ({"padding": "all"}, ValueError, "Invalid padding string"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    good = {
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": 2,
        "crow_indices": torch.tensor([0, 1, 2]),
        "col_indices": torch.tensor([0, 1]),
        "values": torch.ones(2),
    }
    SparseConv2d(**good)
    with pytest.raises(error, match=message):
        SparseConv2d(**{**good, **change})


@pytest.mark.parametrize("shape", [(2, 2), (1, 1, 2, 2)])
def test_from_dense_refuses_what_is_no_kernel(shape):
    with pytest.raises(ValueError, match="expected .out_channels, in_channels / groups"):
        SparseConv2d.from_dense(torch.ones(shape), torch.ones(2, 2, dtype=torch.bool))
