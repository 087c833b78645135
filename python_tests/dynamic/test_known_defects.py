"""Defects that were found in other libraries' dynamic sparse training, and the tests that ours has none.

Those without a test elsewhere have it here.
"""  # noqa: E501

import copy
import io
import re
from pathlib import Path

import pytest
import torch
from dynamic_courses import METHODS, Course
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext import dynamic
from fullspectrum_ext.nn import SparseLinear

DEFECTS = {
    "a schedule that is a tuple, and a crash at the first step (sparsimony)": [
        "dynamic/test_known_defects.py::test_every_schedule_gives_numbers_at_every_step",
    ],
    "grown weights are not zero (sparsimony's RigL)": [
        "dynamic/test_state.py::test_grown_weights_are_zero_and_then_learn",
        "dynamic/test_state.py::test_an_update_changes_topology_and_state_and_nothing_else",
    ],
    "momentum stays at places that the masks remove (rigl-torch under Adam)": [
        "dynamic/test_state.py::test_masked_places_hold_no_momentum",
    ],
    "removed weights move, for the optimizer still steps them (rigl-torch, torch.nn.utils.prune)": [
        "dynamic/test_known_defects.py::test_what_was_dropped_stays_zero_in_training",
    ],
    "masks begin with a random number of weights, and random growth drifts (ITOP, GraNet)": [
        "dynamic/test_counts.py::test_counts_are_exact_at_each_of_a_thousand_updates",
        "dynamic/test_known_defects.py::test_random_growth_gives_the_same_number_whatever_the_seed",
    ],
    "a threshold between equal magnitudes drops too many or too few (PyTorch forms of RigL)": [
        "dynamic/test_known_defects.py::test_equal_weights_are_dropped_in_exact_numbers",
        "dynamic/test_gradients.py::test_rigl_grows_what_the_dense_gradient_says_ties_included",
    ],
    "a threshold of zero makes a layer dense (GraNet)": [
        "dynamic/test_known_defects.py::test_a_layer_of_zeros_stays_as_sparse_as_it_is",
    ],
    "a loaded model gives other outputs, for the topology is not saved (SparseLab)": [
        "dynamic/test_state.py"
        "::test_a_dense_model_takes_the_state_of_a_trained_one_with_the_same_outputs",
        "dynamic/test_known_defects.py::test_a_sparse_model_takes_another_s_topology_with_its_state",
        "dynamic/test_topkast.py::test_what_is_saved_copied_or_made_dense_computes_the_same",
    ],
    "momentum stays where it was while the weights change places (SparseLab)": [
        "dynamic/test_state.py::test_an_update_changes_topology_and_state_and_nothing_else",
        "dynamic/test_known_defects.py::test_momentum_goes_with_its_weight_when_places_shift",
    ],
    "masks are drawn again when training is resumed (ITOP, GraNet, Random_Pruning on ImageNet)": [
        "dynamic/test_courses.py::test_a_resumed_training_equals_the_uninterrupted_one_bit_for_bit",
        "dynamic/test_known_defects.py::test_a_resumed_schedule_goes_on_where_it_was",
    ],
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_tests_named_are_there(defect):
    for place in DEFECTS[defect]:
        file, _, name = place.partition("::")
        text = (Path(__file__).parents[1] / file).read_text()
        assert re.search(rf"^def {name}\(", text, re.MULTILINE), place


@pytest.mark.parametrize("anneal", dynamic.method.ANNEALINGS)
@pytest.mark.parametrize("name", METHODS)
def test_every_schedule_gives_numbers_at_every_step(name, anneal):
    options = METHODS[name]
    method = dynamic.method.make_method(name, {"every": 3, "anneal": anneal, **options})
    fractions = [method.fraction_at(step, 20) for step in range(21)]
    assert all(type(fraction) is float and 0 <= fraction < 1 for fraction in fractions)
    assert fractions == sorted(fractions, reverse=True)
    assert any(method.is_due(step, 20) for step in range(21))
    Course(method=name, anneal=anneal, **{"steps": 8, "every": 2, **options}).train(8)


@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize("optimizer", ["momentum", "Adam", "AdamW"])
def test_what_was_dropped_stays_zero_in_training(optimizer, backend):
    course = Course(method="rigl", backend=backend, optimizer=optimizer, steps=40, every=5)
    began = course.dynamic.masks
    course.train(39)
    masks = course.dynamic.masks
    assert any((began[name] & ~masks[name]).any() for name in masks)
    for name, weight in course.dense().items():
        if name in masks:
            assert not weight[~masks[name]].any()


def test_random_growth_gives_the_same_number_whatever_the_seed():
    counts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 6))
        masks = fs.prune(model, "erk", sparsity=0.7)
        counts.add(tuple(int(mask.sum()) for mask in masks.values()))
        fs.sparsify(model, masks, backend="sparse")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = fs.DynamicSparsity(model, optimizer, "set", steps=9, every=1)
        assert found.step()
        assert found.masks != masks
        counts.add(tuple(int(mask.sum()) for mask in found.masks.values()))
    assert len(counts) == 1


@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize("method", ["set", "rigl", "itop:rigl", "mest"])
def test_equal_weights_are_dropped_in_exact_numbers(method, backend):
    told = []
    model = nn.Sequential(nn.Linear(10, 8)).double()
    mask = torch.rand(8, 10) < 0.5
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    fs.sparsify(model, {"0.weight": mask}, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    dynamic_one = fs.DynamicSparsity(
        model, optimizer, method, steps=9, every=1, fraction=0.3, anneal="constant",
        on_update=told.append,
    )  # fmt: skip
    (layer,) = dynamic.layer.dynamic_layers(model).values()
    last = mask.flatten().nonzero().flatten()[-int(0.3 * int(mask.sum())) :]
    model(torch.ones(2, 10, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert dynamic_one.step()
    assert layer.nnz == int(mask.sum())
    after = dynamic_one.masks["0.weight"]
    gone = (mask & ~after).flatten().nonzero().flatten()
    assert set(gone.tolist()) <= set(last.tolist())  # of equal ones the last
    assert told[0].layers["0.weight"].dropped == told[0].layers["0.weight"].grown


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"topkast"}))  # it has other weights
def test_a_layer_of_zeros_stays_as_sparse_as_it_is(method):
    course = Course(method=method, steps=20, every=1, **METHODS[method])
    before = course.dynamic.masks.nnz
    with torch.no_grad():
        for layer in (course.model[0], course.model[2]):
            layer.values.zero_()
    course.train(1)
    most = {"mest:soft": 1.2}.get(method, 1.0)
    assert course.dynamic.masks.nnz <= most * before
    if method not in {"granet", "gmp"}:
        assert course.dynamic.masks.nnz >= before


@pytest.mark.parametrize("method", ["set", "rigl", "topkast"])
def test_a_sparse_model_takes_another_s_topology_with_its_state(method):
    course = Course(method=method, steps=20, every=2).train(15)
    other = Course(method="set", steps=20, every=3, seed=9).train(3)
    assert other.dynamic.masks != course.dynamic.masks
    file = io.BytesIO()
    torch.save(course.model.state_dict(), file)
    file.seek(0)
    other.model.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(5, 20, dtype=torch.float64)
    assert torch.equal(other.model(x), course.model(x))


def test_momentum_goes_with_its_weight_when_places_shift():
    """A dropped weight before others moves all that come after it by one place."""
    weight = torch.tensor([[0.1, 5.0, 6.0, 7.0, 0.0]])
    model = nn.Sequential(SparseLinear.from_dense(weight, weight != 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
    rigl = fs.DynamicSparsity(
        model, optimizer, "itop:rigl", steps=9, every=1, fraction=0.25, anneal="constant"
    )
    model(torch.tensor([[0.0, 2.0, 3.0, 4.0, 9.0]])).sum().backward()
    optimizer.step()
    momentum = optimizer.state[model[0].values]["momentum_buffer"]
    assert momentum.tolist() == [0.0, 2.0, 3.0, 4.0]
    assert rigl.step()
    assert model[0].col_indices.tolist() == [1, 2, 3, 4]
    assert optimizer.state[model[0].values]["momentum_buffer"].tolist() == [2.0, 3.0, 4.0, 0.0]


def test_a_resumed_schedule_goes_on_where_it_was():
    """Of a cosine that began anew, the next update would be as large as the first."""
    told = []
    options = {"method": "rigl", "steps": 40, "every": 5, "fraction": 0.5}
    whole = Course(**options, on_update=told.append).train(19)
    state = copy.deepcopy(whole.state())
    whole.train(1)
    again = []
    resumed = Course(**options, on_update=again.append).load(state).train(1)
    assert again == [told[-1]]
    assert again[0].step == 20
    method = resumed.dynamic._groups[0][0]
    for layer in again[0].layers.values():
        assert layer.dropped <= int(method.fraction_at(20, 40) * layer.before) < 0.2 * layer.before
