"""Whole trainings: the two kinds of layers side by side, killed and resumed."""

import io

import pytest
import torch
from dynamic_courses import METHODS, OPTIMIZERS, Course, conv, mlp

from fullspectrum_ext import dynamic


def test_every_method_is_tested():
    assert set(METHODS) == set(dynamic.methods())


@pytest.mark.parametrize("method", METHODS)
def test_sparse_and_masked_layers_take_the_same_course(method):
    """Convolutions and a linear layer, for 200 steps."""
    courses = [
        Course(conv, backend, method, steps=200, every=5, **METHODS[method])
        for backend in ("sparse", "masked")
    ]
    changes = 0
    for _ in range(20):
        before = courses[0].dynamic.masks
        sparse, masked = (course.train(10).dynamic.masks for course in courses)
        assert sparse == masked
        changes += sparse != before
    assert changes > 3
    sparse, masked = (course.dense() for course in courses)
    for name, tensor in sparse.items():
        torch.testing.assert_close(tensor, masked[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sparse_and_masked_layers_take_the_same_course_with(optimizer):
    sparse, masked = (
        Course(mlp, backend, "rigl", optimizer, steps=60).train(60)
        for backend in ("sparse", "masked")
    )
    assert sparse.dynamic.masks == masked.dynamic.masks
    expected = masked.dense()
    for name, tensor in sparse.dense().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_equals_the_uninterrupted_one_bit_for_bit(method, backend):
    options = {"steps": 24, "every": 4, "explored": True, **METHODS[method]}
    whole = Course(mlp, backend, method, "Adam", **options)
    files = []
    for _ in range(24):  # killed after any step, next to updates and away from them
        file = io.BytesIO()
        torch.save(whole.state(), file)
        files.append(file)
        whole.train(1)
    expected = whole.state()
    for step in (3, 4, 5, 12, 23):
        files[step].seek(0)
        state = torch.load(files[step], weights_only=True)
        resumed = Course(mlp, backend, method, "Adam", **options).load(state).train(24 - step)
        assert_same(resumed.state(), expected)


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def test_the_same_seed_gives_the_same_course_and_another_one_does_not():
    first, again, other = (Course(method="set", seed=seed).train(20).dense() for seed in (3, 3, 4))
    assert_same(dict(again), dict(first))
    assert any(not torch.equal(other[name], first[name]) for name in first)


def test_nothing_is_left_on_model_and_optimizer_after_the_last_update():
    course = Course(steps=20, every=5)
    course.train(4)
    assert len(course.model[0]._forward_hooks) == 1
    assert len(course.optimizer._optimizer_step_pre_hooks) == 1
    course.train(16)
    assert not course.model[0]._forward_hooks
    assert not course.optimizer._optimizer_step_pre_hooks
    course = Course(steps=20, every=5).train(4)
    course.dynamic.remove()
    assert not course.model[0]._forward_hooks
    assert not course.optimizer._optimizer_step_pre_hooks
