"""Where dense gradients are largest, against the dense gradient itself."""

import pytest
import torch
from dynamic_courses import METHODS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fullspectrum_ext as fs
from fullspectrum_ext import dynamic

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (6, 7)),
    "linear, sequences": (lambda: nn.Linear(7, 5), (2, 3, 7)),
    "linear, one vector": (lambda: nn.Linear(7, 5), (7,)),
    "conv": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 6, 5)),
    "conv, one image": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "conv, strided": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=1), (2, 3, 6, 5)),
    "conv, dilated, groups": (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2), (2, 4, 7, 8)),
    "conv, same": (lambda: nn.Conv2d(3, 4, (2, 4), padding="same"), (2, 3, 6, 5)),
    "conv, circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"),
        (2, 3, 6, 5),
    ),
}


def whole_numbers(*shape, most=2):
    return torch.randint(-most, most + 1, shape).double()


# torch's own words on the even kernel
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize("name", LAYERS)
def test_rigl_grows_what_the_dense_gradient_says_ties_included(name, backend):
    make, shape = LAYERS[name]
    torch.manual_seed(3)
    dense = make().double()
    mask = torch.rand(dense.weight.shape) < 0.4
    with torch.no_grad():
        dense.weight.copy_(whole_numbers(*mask.shape) + 0.25).mul_(mask)
    model = nn.Sequential(make().double())
    model[0].load_state_dict(dense.state_dict())
    fs.sparsify(model, {"0.weight": mask}, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rigl = fs.DynamicSparsity(
        model, optimizer, "rigl", steps=10, every=1, fraction=0.5, anneal="constant"
    )
    for _ in range(3):  # whole numbers: exact, with many ties
        x = whole_numbers(*shape)
        with torch.no_grad():
            dense.weight.copy_(model[0].to_dense() if backend == "sparse" else model[0].weight)
        output = dense(x)
        grad = whole_numbers(*output.shape)
        dense.weight.grad = None
        output.backward(grad)
        model(x).backward(grad)
        optimizer.step()
        rigl.step()

        kept = mask.flatten().clone()
        count = int(0.5 * int(kept.sum()))
        at = kept.nonzero().flatten()
        order = dense.weight.detach().flatten()[at].abs().argsort(descending=True, stable=True)
        kept[at[order[len(at) - count :]]] = False
        scores = dense.weight.grad.flatten().abs().masked_fill(kept, -1)
        assert len(scores.unique()) < len(scores) / 2  # there are ties
        kept[scores.argsort(descending=True, stable=True)[:count]] = True
        mask = kept.view(mask.shape)
        assert torch.equal(rigl.masks["0.weight"], mask)


@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_dense_gradient_that_snfs_takes(name, backend):
    make, shape = LAYERS[name]
    dense = make().double()
    model = nn.Sequential(make().double())
    model[0].load_state_dict(dense.state_dict())
    fs.sparsify(model, {"0.weight": torch.ones(dense.weight.shape)}, backend=backend)
    (layer,) = dynamic.layer.dynamic_layers(model).values()
    layer.tap.open()
    for _ in range(2):
        x = torch.randn(*shape, dtype=torch.float64)
        dense(x).square().sum().backward()
        model(x).square().sum().backward()
    torch.testing.assert_close(layer.tap.dense(), dense.weight.grad.flatten(1))


class _Largest(TorchDispatchMode):
    """Sees how many elements the largest result has."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
        return results


# snfs holds a dense momentum, topkast all weights in the host's memory, as the papers say
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"snfs", "topkast"}))
def test_nothing_as_large_as_the_dense_weight_is_made(method):
    model = nn.Sequential(nn.Linear(512, 512))
    fs.sparsify(model, {"0.weight": torch.rand(512, 512) < 0.02}, backend="sparse")
    optimizer = torch.optim.Adam(model.parameters())
    options = {**METHODS[method]} | ({"sparsity": 0.99} if "sparsity" in METHODS[method] else {})
    found = fs.DynamicSparsity(
        model, optimizer, method, steps=9, every=1, explored=True, seed=0, **options
    )
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 512)).square().sum().backward()
        optimizer.step()
        with _Largest() as largest:
            assert found.step()
    assert largest.numel < 512 * 512 / 4


def test_passes_without_gradients_do_not_count():
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    fs.sparsify(model, {"0.weight": torch.eye(2, 3)}, backend="sparse")
    (layer,) = dynamic.layer.dynamic_layers(model).values()
    layer.tap.open()
    with torch.no_grad():
        model(torch.ones(4, 3).double())
    model(torch.ones(4, 3).double())  # no backward pass
    assert layer.tap.is_empty
    model(torch.ones(1, 3).double()).sum().backward()
    assert not layer.tap.is_empty
    assert layer.tap.dense().tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("backend", ["sparse", "masked"])
def test_autocast_gradients_are_found_in_its_type(backend):
    model = nn.Sequential(nn.Linear(16, 8))
    fs.sparsify(model, {"0.weight": torch.rand(8, 16) < 0.4}, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rigl = fs.DynamicSparsity(model, optimizer, "rigl", steps=9, every=1)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 16)).float().square().sum().backward()
    optimizer.step()
    assert rigl.step()


def test_an_update_whose_gradients_overflow_is_left_out():
    model = nn.Sequential(nn.Linear(16, 8))
    fs.sparsify(model, {"0.weight": torch.rand(8, 16) < 0.4}, backend="sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    rigl = fs.DynamicSparsity(model, optimizer, "rigl", steps=9, every=1)
    before, weights = rigl.masks, model[0].values.detach().clone()
    scaler.scale(model(torch.full((4, 16), 1e6)).square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not rigl.step()
    assert rigl.masks == before
    assert torch.equal(model[0].values, weights)
    scaler.update(1.0)
    optimizer.zero_grad()
    scaler.scale(model(torch.randn(4, 16)).square().sum()).backward()
    scaler.step(optimizer)
    assert rigl.step()
    assert rigl.masks != before


def test_random_places_are_all_those_that_are_free():
    model = nn.Sequential(nn.Linear(4, 3))
    mask = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
    fs.sparsify(model, {"0.weight": mask}, backend="sparse")
    (layer,) = dynamic.layer.dynamic_layers(model).values()
    generator = torch.Generator().manual_seed(0)
    drop = torch.tensor([1, 4])  # at 3 and 10
    free = [1, 2, 4, 5, 6, 7, 11]
    assert layer.random_places(drop, 9, generator).tolist() == sorted([*free, 3, 10])
    assert layer.random_places(drop, 7, generator, again=False).tolist() == free
    few = {int(layer.random_places(drop, 1, generator)) for _ in range(200)}
    assert few == {*free, 3, 10}
