import copy
import io
import pickle

import pytest
import torch
from helpers import random_csr
from torch import nn

from fullspectrum_ext.nn import SparseLinear


def layer_of(rows=5, cols=7, density=0.4, dtype=torch.float64, seed=0, device="cpu"):
    _, _, _, mask, dense = random_csr(rows, cols, density, dtype, device, seed=seed)
    bias = torch.arange(rows, dtype=dtype, device=device)
    return SparseLinear.from_dense(dense, mask, bias), dense


def assert_same_layer(a, b, x):
    assert torch.equal(a(x), b(x))
    for layer in (a, b):
        layer.zero_grad()
    xs = [x.clone().requires_grad_() for _ in range(2)]
    for layer, own in zip((a, b), xs, strict=True):
        layer(own).square().sum().backward()
    assert torch.equal(xs[0].grad, xs[1].grad)  # the transposed index goes along
    assert torch.equal(a.values.grad, b.values.grad)


def test_it_is_the_dense_layer_on_the_stored_weights(device):
    layer, dense = layer_of(device=device)
    x = torch.randn(3, 7, dtype=torch.float64, device=device, requires_grad=True)
    reference = dense.clone().requires_grad_()

    layer(x).square().sum().backward()
    grad_x, x.grad = x.grad, None
    nn.functional.linear(x, reference, layer.bias).square().sum().backward()

    assert torch.equal(layer.to_dense(), dense)
    torch.testing.assert_close(grad_x, x.grad, rtol=1e-12, atol=1e-12)
    expected = reference.grad[dense != 0]
    torch.testing.assert_close(layer.values.grad, expected, rtol=1e-12, atol=1e-12)


def test_what_it_holds():
    layer, dense = layer_of()
    nnz = int((dense != 0).sum())

    assert {name for name, _ in layer.named_parameters()} == {"values", "bias"}
    state = layer.state_dict()
    assert set(state) == {"values", "bias", "crow_indices", "col_indices", "in_features"}
    assert state["in_features"] == 7
    assert layer.nnz == nnz == layer.values.numel()
    assert f"in_features=7, out_features=5, nnz={nnz}, density={nnz / 35:.4g}" in repr(layer)


def test_a_given_parameter_is_used_as_it_is():
    layer, _ = layer_of()
    again = SparseLinear(7, 5, layer.crow_indices, layer.col_indices, layer.values, layer.bias)
    assert again.values is layer.values
    assert again.bias is layer.bias


def test_to_dense_is_differentiable():
    layer, dense = layer_of()
    weights = torch.randn_like(dense)
    (layer.to_dense() * weights).sum().backward()
    assert torch.equal(layer.values.grad, weights[dense != 0])


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies_are_equal_and_independent(duplicate):
    layer, _ = layer_of()
    x = torch.randn(3, 7, dtype=torch.float64)
    twin = duplicate(layer)
    assert_same_layer(layer, twin, x)
    with torch.no_grad():
        twin.values.zero_()
    assert bool((layer.values != 0).any())


def test_dtype_changes_leave_the_topology_alone():
    layer, dense = layer_of()
    half = copy.deepcopy(layer).to(torch.bfloat16)

    assert half.values.dtype == half.bias.dtype == torch.bfloat16
    assert half.crow_indices.dtype == half.permutation.dtype == torch.int32
    y = half(torch.ones(2, 7, dtype=torch.bfloat16))
    expected = nn.functional.linear(torch.ones(2, 7).double(), dense, layer.bias)
    torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.05)


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.4, 0.9])
def test_a_state_dict_brings_its_topology_along(density, assign):
    source, dense = layer_of(density=density, seed=1)
    target, _ = layer_of(density=0.4, seed=2)
    parameter = target.values
    target.values.grad = torch.ones_like(target.values)

    target.load_state_dict(saved_and_loaded(source.state_dict()), assign=assign)

    assert torch.equal(target.to_dense(), dense)
    assert_same_layer(source, target, torch.randn(3, 7, dtype=torch.float64))
    if not assign:
        assert target.values is parameter
    assert target.nnz == source.nnz


def test_a_malformed_state_dict_is_refused_and_changes_nothing():
    layer, dense = layer_of()
    state = layer.state_dict()
    for key, value, message in [
        ("col_indices", state["col_indices"] + 7, r"col_indices: expected values in \[0, 7\)"),
        ("crow_indices", state["crow_indices"][:-1], "crow_indices: expected rows [+] 1 = 6"),
        ("values", state["values"][:-1], "values: expected one for each of"),
        ("values", "no tensor", "values: expected a torch.Tensor, got str"),
        ("in_features", torch.tensor(8), "in_features: expected 7, got 8"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, key: value})
        assert torch.equal(layer.to_dense(), dense)
    with pytest.raises(RuntimeError, match="Missing key.*crow_indices"):
        layer.load_state_dict({k: v for k, v in state.items() if k != "crow_indices"})
    with pytest.raises(RuntimeError, match="net: col_indices: expected"):
        nn.ModuleDict({"net": layer}).load_state_dict({
            f"net.{k}": v + 7 if k == "col_indices" else v for k, v in state.items()
        })


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_model_compiles_whole(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # not what earlier code left
    torch._dynamo.reset()
    model = nn.Sequential(layer_of(dtype=torch.float32)[0], nn.ReLU())
    x = torch.randn(3, 7)
    model(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    compiled(x).square().sum().backward()

    found = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_autocast():
    layer, _ = layer_of(dtype=torch.float32)
    x = torch.randn(3, 7)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(layer(x)[:, :1].expand(3, 7))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.values.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"col_indices": torch.tensor([0, 3])}, ValueError, r"values in \[0, 3\), got 3"),
        ({"col_indices": torch.tensor([[0, 1]])}, ValueError, "col_indices: expected one dimen"),
        ({"crow_indices": torch.tensor([0, 3, 2])}, ValueError, "never decrease, row 1 does"),
        ({"values": torch.tensor([1, 2])}, TypeError, "values: expected float32"),
        ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        ({"bias": torch.ones(2).half()}, TypeError, "bias is torch.float16 but values"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    good = {
        "in_features": 3,
        "out_features": 2,
        "crow_indices": torch.tensor([0, 1, 2]),
        "col_indices": torch.tensor([0, 1]),
        "values": torch.ones(2),
        "bias": None,
    }
    SparseLinear(**good)
    with pytest.raises(error, match=message):
        SparseLinear(**{**good, **change})
