import dataclasses

import pytest
import torch
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.experiments import RunFolder, TrainConfig, train
from fullspectrum_ext.experiments.data import FirstPass, load_data
from fullspectrum_ext.experiments.models import build_model

MODEL = {"teacher-linear": "linear", "teacher-mlp": "mlp"}


@pytest.fixture(scope="module", params=MODEL)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def dataset(name):
    return load_data(name)


def planted(name, dataset, seed=0):
    model = build_model(MODEL[name], dataset.shape, dataset.classes, seed)
    dataset.teacher.plant(model)
    return model


def test_classes_are_those_of_the_teacher(name, dataset):
    model = build_model(MODEL[name], dataset.shape, 10, 0)
    model.load_state_dict(dict(dataset.teacher.parameters))

    for part in (dataset.train, dataset.validation, dataset.test):
        assert torch.equal(model(part.x).argmax(1), part.y)
        assert part.y.bincount(minlength=10).min() > len(part.y) / 40
    assert not (dataset.train.x[:1000] == dataset.validation.x).any()


def test_the_support_is_what_95_percent_leave_and_every_unit_is_in_it(dataset):
    teacher = dataset.teacher

    assert teacher.masks.nnz == round(0.05 * teacher.masks.numel)
    for layer, mask in teacher.masks.items():
        assert torch.equal(teacher.parameters[layer] != 0, mask)
        assert mask.any(1).all()
    if teacher.planted:
        assert all(mask.any(0).all() for mask in teacher.masks.values())


def test_recovery_is_the_share_of_the_support(dataset):
    truth = dataset.teacher.masks
    complement = fs.MaskSet({name: ~mask for name, mask in truth.items()})
    everything = fs.MaskSet({name: torch.ones_like(mask) for name, mask in truth.items()})
    (first, *_) = truth

    assert dataset.teacher.recovered(truth) == 1
    assert dataset.teacher.recovered(everything) == 1
    assert dataset.teacher.recovered(complement) == 0
    half = {name: mask.clone() for name, mask in truth.items()}
    rows, cols = half[first].nonzero(as_tuple=True)
    half[first][rows[:10], cols[:10]] = False
    assert dataset.teacher.recovered(fs.MaskSet(half)) == (truth.nnz - 10) / truth.nnz


def test_masks_of_other_weights_are_refused(dataset):
    with pytest.raises(ValueError, match="masks: expected those of"):
        dataset.teacher.recovered(fs.MaskSet({"fc.weight": torch.ones(2, 2)}))


def test_chance_finds_its_density_and_gradients_find_more(name, dataset):
    model = planted(name, dataset)
    data = FirstPass(dataset.train, 1000, 0)
    chance, snip = (
        dataset.teacher.recovered(fs.prune(model, method, sparsity=0.95, data=data, seed=0))
        for method in ("random", "snip")
    )

    assert chance == pytest.approx(0.05, abs=0.03)
    assert snip > 0.12


def test_a_planted_teacher_is_a_part_of_the_network_and_the_rest_stays():
    dataset = load_data("teacher-mlp")
    before = build_model("mlp", (64,), 10, 0)
    model = planted("teacher-mlp", dataset)

    for name, mask in dataset.teacher.masks.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight[mask], dataset.teacher.parameters[name][mask])
        assert torch.equal(weight[~mask], before.get_parameter(name)[~mask])
    masked = fs.sparsify(model, dataset.teacher.masks, backend="masked")
    assert torch.equal(masked(dataset.test.x).argmax(1), dataset.test.y)


def test_the_linear_teacher_is_not_planted():
    dataset = load_data("teacher-linear")
    model = planted("teacher-linear", dataset)

    assert torch.equal(model.fc.weight, build_model("linear", (256,), 10, 0).fc.weight)


def test_a_network_of_another_shape_is_refused(name, dataset):
    with pytest.raises(ValueError, match="model: expected the teacher's parameter"):
        dataset.teacher.plant(nn.Linear(3, 3))


def test_training_finds_the_support_of_the_linear_teacher():
    dataset = load_data("teacher-linear")
    model = planted("teacher-linear", dataset)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for x, y in (batch for _ in range(4) for batch in FirstPass(dataset.train, 200, 0)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    assert dataset.teacher.recovered(fs.prune(model, "magnitude", sparsity=0.95)) > 0.9


def test_jobs_record_what_was_recovered(tmp_path, name, dataset):
    config = TrainConfig(
        data=name, model=MODEL[name], methods=("random",), seeds=(0,), epochs=1, batch_size=2000
    )
    (run,) = train(config, RunFolder(tmp_path / "run"))["runs"]

    masks = fs.prune(planted(name, dataset), "random", sparsity=0.95, seed=0)
    assert run["support_recovered"] == dataset.teacher.recovered(masks)

    digits = dataclasses.replace(config, data="digits", model="mlp", batch_size=2000)
    (run,) = train(digits, RunFolder(tmp_path / "digits"))["runs"]
    assert "support_recovered" not in run
