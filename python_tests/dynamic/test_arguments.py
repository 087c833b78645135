"""Groups, schedules and arguments that do not fit."""

import math

import pytest
import torch
from dynamic_courses import METHODS
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext import dynamic
from fullspectrum_ext.dynamic import DynamicSparsity, RigL, apportion


def sparse_model(backend="sparse"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.Linear(8, 4))
    masks = fs.prune(model, "uniform", sparsity=0.5, seed=0)
    return fs.sparsify(model, masks, backend=backend)


def of(model, method="set", **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return DynamicSparsity(model, optimizer, method, **{"steps": 20, "seed": 0, **options})


def test_layers_take_the_first_pattern_that_matches():
    told = []
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = {"0": dynamic.SET(every=2), "3.weight": None, "*": RigL(every=3)}
    groups = DynamicSparsity(model, optimizer, method, steps=20, seed=0, on_update=told.append)
    static = groups.masks
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(5, 12)).square().sum().backward()
        optimizer.step()
        groups.step()
    assert {(update.step, *update.layers) for update in told} == {
        (2, "0.weight"), (3, "2.weight"), (4, "0.weight"), (6, "0.weight", "2.weight"),
        (8, "0.weight"), (9, "2.weight"), (10, "0.weight"),
    }  # fmt: skip
    assert set(static) == {"0.weight", "2.weight"}
    assert groups.masks["0.weight"].ne(static["0.weight"]).any()


def test_updates_come_every_so_often_until_the_share_of_the_training():
    method = RigL(every=10, until=0.75)
    assert [step for step in range(101) if method.is_due(step, 100)] == [10, 20, 30, 40, 50, 60, 70]
    assert [step for step in range(81) if method.is_due(step, 80)] == [10, 20, 30, 40, 50]
    gradual = dynamic.GradualMagnitude(every=10, until=0.75)
    assert [step for step in range(101) if gradual.is_due(step, 100)] == [*range(10, 71, 10), 75]


def test_fractions_follow_their_formulas():
    cosine = RigL(fraction=0.4, until=0.5, floor=0.1)
    assert cosine.fraction_at(10, 100) == pytest.approx(0.1 + 0.15 * (1 + math.cos(math.pi / 5)))
    linear = RigL(fraction=0.4, anneal="linear", until=0.5)
    assert [linear.fraction_at(t, 100) for t in (0, 25, 50, 90)] == pytest.approx([0.4, 0.2, 0, 0])
    assert RigL(fraction=0.4, anneal="constant").fraction_at(70, 100) == 0.4


def test_dropped_are_the_fraction_rounded_down():
    model, told = sparse_model(), []
    found = of(model, "set", every=5, fraction=0.29, on_update=told.append)
    counts = {name: int(mask.sum()) for name, mask in found.masks.items()}
    (layers,) = [layers for _, layers in found._groups]
    drops = {layer.name: found._groups[0][0].drop(layer, _turn(0.29)) for layer in layers}
    assert {name: len(drop) for name, drop in drops.items()} == {
        name: int(0.29 * count) for name, count in counts.items()
    }


def _turn(fraction):
    return dynamic.Turn(1, 0.1, False, fraction, torch.Generator())


BAD = [
    ({"method": "rigle"}, ValueError, "did you mean 'rigl'"),
    ({"method": 3}, TypeError, "method: expected a name"),
    ({"method": "set", "evry": 3}, TypeError, "evry: method 'set' has no such option"),
    ({"method": RigL(), "every": 3}, TypeError, "every: expected options with the name"),
    ({"method": {"0": "set"}, "every": 3}, TypeError, "every: expected options with a single"),
    ({"method": {"*": "set", "0": "rigl"}}, ValueError, "'0' are taken by earlier patterns"),
    ({"method": {"head": "set"}}, ValueError, "'head' matches none of"),
    ({"method": {"*": None}}, ValueError, "expected a method for some layer"),
    ({"every": 0}, ValueError, "every: expected at least 1"),
    ({"every": 2.0}, TypeError, "every: expected an int"),
    ({"every": 50}, ValueError, "every: expected fewer than the 20 steps"),
    ({"every": 2, "fraction": 1.0}, ValueError, "fraction: expected"),
    ({"every": 2, "floor": 0.5}, ValueError, "floor: expected"),
    ({"every": 2, "anneal": "cosin"}, ValueError, "anneal: expected one of constant"),
    ({"every": 2, "until": 0.0}, ValueError, "until: expected"),
    ({"every": 2, "steps": 0}, ValueError, "steps: expected at least 1"),
    ({"every": 2, "seed": -1}, ValueError, "seed: expected"),
    ({"method": "snfs", "every": 2, "momentum": 1.0}, ValueError, "momentum: expected"),
    ({"method": "dsr", "every": 2, "threshold": 0.0}, ValueError, "threshold: expected"),
    ({"method": "mest", "every": 2, "gradient_weight": -1.0}, ValueError, "gradient_weight: exp"),
    ({"method": "gmp", "every": 2, "sparsity": 0.4}, ValueError, "at least that of the model"),
    ({"method": "gmp", "every": 2, "sparsity": 1.0}, ValueError, r"fraction in \(0, 1\)"),
    ({"method": "gmp", "every": 2, "scope": "all"}, ValueError, "scope: expected one of"),
    ({"method": "granet", "every": 2, "reached": 0.0}, ValueError, "reached: expected"),
    ({"method": "set:ramanujan", "every": 2, "candidates": 0}, ValueError, "candidates: expected"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        of(sparse_model(), **options)


def test_models_and_optimizers_that_do_not_fit():
    dense = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"found none; fullspectrum_ext\.sparsify makes"):
        of(dense)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        DynamicSparsity([], torch.optim.SGD(dense.parameters()), steps=10)
    model = sparse_model()
    with pytest.raises(ValueError, match=r"expected one that trains 0\.weight"):
        DynamicSparsity(model, torch.optim.SGD(dense.parameters()), "set", steps=10, every=2)
    with pytest.raises(ValueError, match="LBFGS"):
        DynamicSparsity(model, torch.optim.LBFGS(model.parameters()), "set", steps=10, every=2)


@pytest.mark.parametrize("method", METHODS)
def test_recurrent_layers_take_methods_that_need_no_dense_gradient(method):
    model = nn.Sequential(nn.GRU(4, 6))
    fs.sparsify(model, fs.prune(model, "random", sparsity=0.5, seed=0), backend="masked")
    options = {"every": 2, **METHODS[method]}
    made = dynamic.method.make_method(method, options)
    if made.needs_gradients or made.observes:
        message = (
            rf"{type(made).__name__} needs dense gradients, which are not to be had of "
            r"0\.weight_ih_l0 in a MaskedGRU; give it another method"
        )
        with pytest.raises(ValueError, match=message):
            of(model, made)
        return
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    found = DynamicSparsity(model, optimizer, made, steps=10, seed=0)
    before = found.masks
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(5, 3, 4))[0].square().sum().backward()
        optimizer.step()
        found.step()
    after = found.masks
    assert after != before
    assert after.nnz == (before.nnz if method != "gmp" else round(0.1 * before.numel))
    for name, mask in after.items():
        assert not model.get_parameter(name)[~mask].any()


def test_no_backward_pass_is_said():
    model = sparse_model()
    rigl = of(model, "rigl", every=1)
    with pytest.raises(RuntimeError, match="no gradient of the layers was seen"):
        rigl.step()
    assert rigl.steps_done == 0


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_a_compiled_model_takes_the_same_course(method):
    masks = []
    for backend in (None, "aot_eager"):
        torch._dynamo.reset()
        model = sparse_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        compiled = model if backend is None else torch.compile(model, backend=backend)
        found = DynamicSparsity(model, optimizer, method, steps=20, every=3, seed=0)
        generator = torch.Generator().manual_seed(0)
        listened = []
        for _ in range(10):
            x = torch.randn(4, 12, generator=generator)
            optimizer.zero_grad()
            listened.append(found.is_listening)
            (model if found.is_listening else compiled)(x).square().mean().backward()
            optimizer.step()
            found.step()
        masks.append(found.masks)
        assert listened == [method == "rigl" and step % 3 == 0 for step in range(1, 11)]
    assert masks[0] == masks[1]


def test_a_layer_that_took_no_part_keeps_its_topology():
    model = sparse_model()
    optimizer, told = torch.optim.SGD(model.parameters(), lr=0.1), []
    rigl = DynamicSparsity(model, optimizer, "rigl", steps=9, every=1, on_update=told.append)
    model[0](torch.randn(5, 12)).square().sum().backward()
    optimizer.step()
    assert rigl.step()
    assert list(told[0].layers) == ["0.weight"]


def test_a_closure_is_refused_where_a_step_is_skipped():
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rigl = DynamicSparsity(model, optimizer, "rigl", steps=9, every=2)
    optimizer.step(lambda: model(torch.randn(5, 12)).square().sum())
    rigl.step()
    with pytest.raises(ValueError, match="closure would bring its gradients back"):
        optimizer.step(lambda: 0.0)


def test_the_state_of_another_model_is_refused():
    state = of(sparse_model(), every=2).state_dict()
    with pytest.raises(ValueError, match="expected that of the same layers"):
        of(sparse_model(), {"0": dynamic.SET(every=2)}).load_state_dict(state)
    with pytest.raises(ValueError, match="expected that of the same layers"):
        of(sparse_model(), every=2, explored=True).load_state_dict(state)


def test_a_method_cannot_empty_a_layer():
    class All(dynamic.Method):
        def drop(self, layer, turn):
            return torch.arange(layer.nnz)

        def budgets(self, layers, drops):
            return [0] * len(layers)

    model = sparse_model()
    found = of(model, All(every=1))
    before = found.masks
    with pytest.raises(ValueError, match=r"0\.weight would lose all of its weights"):
        found.step()
    assert found.masks == before


def test_names_are_registered_once():
    with pytest.raises(ValueError, match="there is a method 'set' already"):
        dynamic.register_method("set")


def test_models_can_be_copied_and_saved_next_to_an_update(tmp_path):
    model = sparse_model()
    rigl = of(model, "rigl", every=1)
    torch.save(model, tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt", weights_only=False)[0].nnz == model[0].nnz
    rigl.remove()


@pytest.mark.parametrize(
    ("total", "shares", "most", "expected"),
    [
        (0, [1.0], [3], [0]),
        (5, [1.0, 1.0], [9, 9], [3, 2]),
        (6, [0.0, 0.0], [1, 9], [1, 5]),
        (7, [5.0, 1.0, 1.0], [2, 9, 3], [2, 3, 2]),
        (3, [1.0, 0.0], [1, 9], [1, 2]),
        (12, [1.0, 1.0], [6, 6], [6, 6]),
    ],
)
def test_apportion(total, shares, most, expected):
    assert apportion(total, shares, most) == expected


def test_apportion_refuses_more_than_there_is_room():
    with pytest.raises(ValueError, match="expected at most 3"):
        apportion(4, [1.0, 1.0], [1, 2])
