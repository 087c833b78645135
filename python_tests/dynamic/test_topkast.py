"""Top-KAST: by hand, against its definition over dense weights, and what a model of it stores."""

import copy
import io

import pytest
import torch
from dynamic_courses import Course, conv, mlp
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.nn import SparseLinear
from fullspectrum_ext.ops import csr_to_dense

BACKENDS = ["sparse", "masked"]


def linear(weight, backend):
    weight = torch.tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return fs.sparsify(nn.Sequential(layer), {"0.weight": weight != 0}, backend=backend)


def stored(model, index=0):
    """All weights that a layer trains, in dense form."""
    layer = model[index]
    if not isinstance(layer, SparseLinear):
        return layer.weight.detach().clone()
    values = layer.values.detach().clone()
    dense = csr_to_dense(layer.crow_indices, layer.col_indices, values, layer._matrix)
    return dense.view(layer.weight_shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_update_by_hand(backend):
    model = linear([[4.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    found = fs.DynamicSparsity(
        model, optimizer, "topkast", steps=6, every=1, backward=1.5, penalty=0.1, seed=0
    )
    generator, bound = torch.Generator().manual_seed(0), 8**-0.5
    drawn = torch.empty(8, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
    third, fourth = (drawn[2:].abs().argsort(descending=True)[:2] + 2).tolist()
    assert found.masks["0.weight"].nonzero()[:, 1].tolist() == [0, 1]
    assert stored(model)[0].nonzero().flatten().tolist() == [0, 1, third]
    x = torch.zeros(1, 8, dtype=torch.float64)
    x[0, 1], x[0, third] = 2.0, 5.0
    output = model(x)
    assert output.item() == -6.0  # without the third
    output.backward(torch.full((1, 1), -1.0, dtype=torch.float64))
    optimizer.step()
    # a penalty of w within A, of w over the density 2 / 8 besides
    learnt = torch.zeros(1, 8, dtype=torch.float64)
    learnt[0, 0] = 4 - 0.1 * 4
    learnt[0, 1] = -3 + 2 + 0.1 * 3
    learnt[0, third] = drawn[third] + 5 - 0.4 * drawn[third]
    torch.testing.assert_close(stored(model), learnt)
    assert found.step()
    assert found.masks["0.weight"].nonzero()[:, 1].tolist() == [0, third]
    torch.testing.assert_close(stored(model), learnt)

    # the second shrinks below what was never trained, and waits outside
    optimizer.zero_grad()
    x = torch.zeros(1, 8, dtype=torch.float64)
    x[0, 1] = 1.0
    gradient = learnt[0, 1] - 0.4 * learnt[0, 1] - 0.01
    model(x).backward(gradient.view(1, 1))
    optimizer.step()
    assert stored(model)[0, 1].item() == pytest.approx(0.01)
    assert found.step()
    assert stored(model)[0].nonzero().flatten().tolist() == sorted([0, third, fourth])
    assert stored(model)[0, fourth] == drawn[fourth]
    assert found.state_dict()["methods"][0]["weights"]["0.weight"][0, 1] == pytest.approx(0.01)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", [1, 3])
def test_the_course_is_that_of_its_definition_over_dense_weights(every, backend):
    torch.manual_seed(0)
    initial = torch.randn(5, 12, dtype=torch.float64) * (torch.rand(5, 12) < 0.2)
    count = int(initial.count_nonzero())
    model = linear(initial.tolist(), backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = fs.DynamicSparsity(
        model, optimizer, "topkast", steps=30, every=every, backward=2.5, penalty=0.05, seed=7
    )
    bound = 12**-0.5
    dense = torch.empty(5, 12, dtype=torch.float64)
    dense.uniform_(-bound, bound, generator=torch.Generator().manual_seed(7))
    dense = torch.where(initial != 0, initial, dense)
    seen = set()
    for step in range(1, 31):
        if (step - 1) % every == 0:
            order = dense.abs().flatten().argsort(descending=True, stable=True)
            forward, backward = (torch.zeros(60, dtype=torch.bool) for _ in range(2))
            forward[order[:count]] = backward[order[: int(2.5 * count)]] = True
            forward, backward = forward.view(5, 12), backward.view(5, 12)
        assert torch.equal(found.masks["0.weight"], forward)
        torch.testing.assert_close(stored(model), dense * backward)
        seen.add(tuple(forward.flatten().tolist()))
        x, y = torch.randn(4, 12, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
        used = (dense * forward).requires_grad_()
        (nn.functional.linear(x, used) - y).square().sum().backward()
        penalty = 0.05 * dense * torch.where(forward, 1, 60 / count)
        dense = dense - 0.1 * (used.grad + penalty) * backward
        optimizer.zero_grad()
        (model(x) - y).square().sum().backward()
        optimizer.step()
        assert found.step() == (step % every == 0 or step == 30)
    assert len(seen) > 5
    # at the end the network has what it computed with, and no more
    assert torch.equal(found.masks["0.weight"], forward)
    torch.testing.assert_close(stored(model), dense * forward)
    assert fs.MaskSet.from_model(model) == found.masks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("build", [mlp, conv], ids=["mlp", "conv"])
def test_what_is_saved_copied_or_made_dense_computes_the_same(build, backend):
    course = Course(build, backend, "topkast", "Adam", steps=20, every=2).train(7)
    assert fs.MaskSet.from_model(course.model).nnz > 1.9 * course.dynamic.masks.nnz
    shape = (5, 20) if build is mlp else (5, 3, 6, 6)
    x = torch.randn(shape, dtype=torch.float64)
    model = course.model.eval()
    expected = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = fs.load_sparse_state_dict(build(), torch.load(file, weights_only=True)).eval()
    assert torch.equal(fresh(x), expected)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), expected)
    found = fs.densify(twin)
    torch.testing.assert_close(found(x), expected)
    assert fs.MaskSet.from_model(found).nnz == course.dynamic.masks.nnz


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_average_that_follows_computes_with_the_same_weights(backend):
    course = Course(mlp, backend, "topkast", steps=20, every=4)
    average = torch.optim.swa_utils.AveragedModel(course.model, avg_fn=lambda _mean, new, _n: new)
    course.dynamic.follow(average.module)
    x = torch.randn(5, 20, dtype=torch.float64)
    for _ in range(20):
        course.train(1)
        # what came has its stored value there too, though the average has not seen it yet
        if course.dynamic.steps_done % 4 == 0:
            assert torch.equal(stored(average.module) != 0, stored(course.model) != 0)
        average.update_parameters(course.model)
        assert torch.equal(average.module(x), course.model(x))


def test_recurrent_layers_compute_with_the_largest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.GRU(4, 6)).double()
    fs.sparsify(model, fs.prune(model, "random", sparsity=0.7, seed=0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = fs.DynamicSparsity(model, optimizer, "topkast", steps=4, every=2, seed=0)
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    reference = nn.GRU(4, 6).double()
    for step in range(4):
        reference.load_state_dict({
            name: value.detach() for name, value in model[0].named_parameters()
        })
        with torch.no_grad():
            for name, mask in found.masks.items():
                reference.get_parameter(name.removeprefix("0.")).mul_(mask)
        torch.testing.assert_close(model(x)[0], reference(x)[0])
        optimizer.zero_grad()
        model(x)[0].square().sum().backward()
        optimizer.step()
        assert found.step() == (step % 2 == 1)
    assert fs.MaskSet.from_model(model) == found.masks


def test_gradient_accumulation_adds_the_penalty_once():
    found = []
    for parts in (1, 2):
        model = linear([[4.0, -3.0, 0.0, 0.0]], "sparse")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fs.DynamicSparsity(model, optimizer, "topkast", steps=4, every=2, penalty=0.5, seed=0)
        for x in torch.eye(4, dtype=torch.float64).chunk(parts):
            model(x).square().sum().backward()
        optimizer.step()
        found.append(stored(model))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backward": 0.5}, "backward: expected a number of at least 1"),
        ({"penalty": -1.0}, "penalty: expected a number of at least 0"),
    ],
)
def test_bad_options_are_named(options, message):
    model = linear([[4.0, -3.0, 0.0, 0.0]], "sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        fs.DynamicSparsity(model, optimizer, "topkast", steps=4, every=2, **options)


def test_a_closure_is_refused():
    model = linear([[4.0, -3.0, 0.0, 0.0]], "sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fs.DynamicSparsity(model, optimizer, "topkast", steps=4, every=2)
    with pytest.raises(ValueError, match="expected no closure at a step whose gradients"):
        optimizer.step(lambda: 0.0)
