"""What an update changes, and that it changes nothing else."""

import copy

import pytest
import torch
from dynamic_courses import METHODS, OPTIMIZERS, Course
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.nn import SparseLinear
from fullspectrum_ext.ops import csr_to_dense

BEGINS = {("Adagrad", "sum"): 0.25}


def as_dense(layer, held, fill):
    """What is held by weight, written into the dense weight's places."""
    if not isinstance(layer, SparseLinear):
        return held.clone()
    index = layer.crow_indices, layer.col_indices
    there = csr_to_dense(*index, torch.ones_like(held), layer.weight_shape) == 1
    return torch.where(there, csr_to_dense(*index, held, layer.weight_shape), fill)


def picture(course, name):
    """All of a course: by layer the dense weights and states, and a copy of everything else."""
    layers, params = {}, set()
    for layer in (course.model[0], course.model[2]):
        weight = layer.values if isinstance(layer, SparseLinear) else layer.weight
        held = {"": (weight.detach(), 0.0)}
        for key, value in course.optimizer.state[weight].items():
            if torch.is_tensor(value) and value.shape == weight.shape:
                held[key] = value, BEGINS.get((name, key), 0.0)
        layers[layer] = {key: as_dense(layer, *pair) for key, pair in held.items()}, weight
        params.add(weight)
    rest = [
        (parameter, parameter.detach().clone(), copy.deepcopy(course.optimizer.state[parameter]))
        for parameter in course.model.parameters()
        if parameter not in params
    ]
    scalars = {
        (weight, key): copy.deepcopy(value)
        for _, weight in layers.values()
        for key, value in course.optimizer.state[weight].items()
        if not torch.is_tensor(value) or value.shape != weight.shape
    }
    options = [{**group, "params": None} for group in course.optimizer.param_groups]
    return layers, rest, scalars, copy.deepcopy(options)


GROWS_FIRST, GROWS_NOTHING = {"mest:soft"}, {"gmp"}
REMEMBERS = {"topkast"}  # what weights were that come again


@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize(
    ("method", "name"),
    [
        *((method, name) for method in ("set", "rigl") for name in OPTIMIZERS),
        *((method, "Adam") for method in METHODS if method not in {"set", "rigl"}),
    ],
)
def test_an_update_changes_topology_and_state_and_nothing_else(method, name, backend):
    options = {"steps": 20, "every": 5, **METHODS[method]}
    course = Course(method=method, backend=backend, optimizer=name, **options).train(4)
    x, y = torch.randn(8, 20, dtype=torch.float64), torch.randint(10, (8,))
    nn.functional.cross_entropy(course.model(x), y).backward()
    course.optimizer.step()
    layers, rest, scalars, options = picture(course, name)
    masks, identities = stored(course), [id(p) for p in course.model.parameters()]
    assert course.dynamic.step()

    assert [id(p) for p in course.model.parameters()] == identities
    after = stored(course)
    now_layers, now_rest, now_scalars, now_options = picture(course, name)
    for (layer, (before, weight)), key in zip(layers.items(), masks, strict=True):
        stayed = masks[key] & after[key]
        grown = after[key] & ~masks[key]
        gone = masks[key] & ~after[key]
        assert gone.any() or method in GROWS_FIRST
        assert grown.any() or method in GROWS_NOTHING
        found, now_weight = now_layers[layer]
        assert now_weight is weight
        assert found.keys() == before.keys()
        assert len(found) > 1
        for state, tensor in before.items():
            begin = BEGINS.get((name, state), 0.0)
            begins = ~stayed if state or method not in REMEMBERS else gone
            assert (found[state][begins] == begin).all(), state
            assert torch.equal(found[state][stayed], tensor[stayed]), state
            assert (tensor[gone] != begin).any() or not gone.any(), state  # something to lose
    for (parameter, value, state), (same, now, now_state) in zip(rest, now_rest, strict=True):
        assert same is parameter
        assert torch.equal(now, value)
        assert now_state.keys() == state.keys()
        assert all(
            torch.equal(torch.as_tensor(now_state[k]), torch.as_tensor(state[k])) for k in state
        )
    assert now_scalars.keys() == scalars.keys()
    assert all(
        torch.equal(torch.as_tensor(now_scalars[k]), torch.as_tensor(scalars[k])) for k in scalars
    )
    assert now_options == options


def stored(course):
    """Which weights are trained."""
    masks = fs.MaskSet.from_model(course.model)
    return {name: masks[name] for name in course.dynamic.masks}


@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_in_place_of_a_step_moves_nothing(name, backend):
    course = Course(method="rigl", backend=backend, optimizer=name, steps=20, every=5).train(4)
    x, y = torch.randn(8, 20, dtype=torch.float64), torch.randint(10, (8,))
    nn.functional.cross_entropy(course.model(x), y).backward()
    before = [p.detach().clone() for p in course.model.parameters()]
    state = copy.deepcopy(course.optimizer.state_dict()["state"])
    course.optimizer.step()
    for parameter, was in zip(course.model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
    for index, held in course.optimizer.state_dict()["state"].items():
        for key, value in held.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[index][key])), key
    assert course.dynamic.step()
    # and the next one is a step again
    nn.functional.cross_entropy(course.model(x), y).backward()
    course.optimizer.step()
    bias = course.model[0].bias
    assert any(not torch.equal(bias, was) for was in before if was.shape == bias.shape)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_places_hold_no_momentum(name):
    """rigl-torch under Adam keeps first moments at places that its masks remove."""
    course = Course(method="rigl", backend="masked", optimizer=name, steps=40, every=5).train(37)
    layers = course.model[0], course.model[2]
    for layer, mask in zip(layers, course.dynamic.masks.values(), strict=True):
        assert not layer.weight[~mask].any()
        for key, value in course.optimizer.state[layer.weight].items():
            if torch.is_tensor(value) and value.shape == mask.shape:
                assert (value[~mask] == BEGINS.get((name, key), 0.0)).all()


def test_grown_weights_are_zero_and_then_learn():
    """sparsimony's RigL leaves all grown weights at other values than 0."""
    course = Course(method="rigl", steps=20, every=5).train(4)
    before = course.dynamic.masks
    course.train(1)
    grown = {name: mask & ~before[name] for name, mask in course.dynamic.masks.items()}
    dense = [course.model[i].to_dense().detach() for i in (0, 2)]
    assert all(not weight[new].any() for weight, new in zip(dense, grown.values(), strict=True))
    course.train(1)
    dense = [course.model[i].to_dense().detach() for i in (0, 2)]
    assert all(weight[new].all() for weight, new in zip(dense, grown.values(), strict=True))


def test_a_dense_model_takes_the_state_of_a_trained_one_with_the_same_outputs():
    """SparseLab saves values and no topology, so that a loaded model computes something else."""
    course = Course(method="set", steps=20, every=2).train(19)
    fresh = fs.load_sparse_state_dict(Course().build(), course.model.state_dict())
    x = torch.randn(5, 20, dtype=torch.float64)
    assert torch.equal(fresh(x), course.model(x))


def test_learning_rate_schedulers_go_on_working():
    course = Course(method="rigl", steps=40, every=5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(course.optimizer, 40)
    for _ in range(40):
        course.train(1)
        scheduler.step()
    assert course.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("backend", ["sparse", "masked"])
def test_an_average_that_follows_is_that_of_the_same_weights(backend):
    course = Course(method="set", backend=backend, steps=20, every=5)
    average = torch.optim.swa_utils.AveragedModel(course.model)
    course.dynamic.follow(average.module)
    expected, masks = None, course.dynamic.masks
    for count in range(20):
        course.train(1)
        dense = as_dense_weight(course.model[0])
        new = course.dynamic.masks
        if expected is not None:  # what has gone is forgotten, what has come begins at 0
            stayed = masks["0.weight"] & new["0.weight"]
            expected = expected * stayed + (dense - expected * stayed) / (count + 1)
        else:
            expected = dense
        average.update_parameters(course.model)
        masks = new
        assert fs.MaskSet.from_model(average.module) == masks
        torch.testing.assert_close(as_dense_weight(average.module[0]), expected)


def as_dense_weight(layer):
    return (layer.to_dense() if isinstance(layer, SparseLinear) else layer.weight).detach().clone()


def test_only_a_copy_can_follow():
    course, other = Course(), Course()
    course.train(5)
    with pytest.raises(ValueError, match=r"copy: expected the topology of the model in 0\.weight"):
        course.dynamic.follow(other.model)
    with pytest.raises(ValueError, match=r"copy: expected a sparse or masked layer 0\.weight"):
        course.dynamic.follow(torch.nn.Sequential(torch.nn.Linear(20, 30)))
