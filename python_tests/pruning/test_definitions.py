"""Numbers of the methods against their definitions in NumPy or plain torch, within 1e-6.

Here are those that the method's own test file compares by its masks, or by hand alone.
"""

import copy
import itertools

import networks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext._layers import prunable_weights
from fullspectrum_ext.pruning import synflow
from fullspectrum_ext.pruning.densities import er_densities, erk_densities


def close(found, expected):
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def network(kind):
    model = networks.conv_net() if kind == "conv" else networks.mlp()
    if kind == "conv":
        model[8] = nn.Identity()  # no dropout, whose noise would differ
    data = [(x.double(), y) for x, y in networks.digits(64, 16, image=kind == "conv")]
    return model.double(), data


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_snip_is_the_derivative_by_a_factor_before_every_weight(kind):
    """The paper's own definition: |dL/dc| of y = f(c * w) where all c are 1."""
    model, data = network(kind)
    scores = networks.scores_of("snip", model, data=data)

    model = copy.deepcopy(model).train()
    weights = {name: model.get_parameter(name) for name in scores}
    factors = {
        name: torch.ones_like(weight, requires_grad=True) for name, weight in weights.items()
    }
    loss = sum(
        nn.functional.cross_entropy(
            torch.func.functional_call(
                model,
                {name: weights[name].detach() * factor for name, factor in factors.items()},
                x,
            ),
            y,
        )
        for x, y in data
    )
    derivatives = torch.autograd.grad(loss, list(factors.values()))
    for score, derivative in zip(scores.values(), derivatives, strict=True):
        close(score, derivative.abs())


def test_itersnip_removes_in_the_order_of_its_rounds():
    model, data = network("mlp")
    data, density, rounds = data[:1], 0.1, 3
    places = networks.scores_of("itersnip", model, data=data, density=density, rounds=rounds)
    places = torch.cat([place.flatten() for place in places.values()])

    weights = [model.get_parameter(name) for name, _ in prunable_weights(model)]
    dense = torch.cat([weight.detach().flatten() for weight in weights])
    order: list[int] = []  # the first to go first
    mask = torch.ones(dense.numel(), dtype=torch.bool)
    for turn in range(1, rounds + 1):
        with torch.no_grad():
            parts = (dense * mask).split([weight.numel() for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.copy_(part.view_as(weight))
        model.zero_grad()
        nn.functional.cross_entropy(model(data[0][0]), data[0][1]).backward()
        gradient = torch.cat([weight.grad.flatten() for weight in weights])
        scores = (dense * gradient).abs()
        left = sorted(mask.nonzero().flatten().tolist(), key=lambda i: (float(scores[i]), -i))
        going = len(left) - (
            round(density ** (turn / rounds) * dense.numel()) if turn < rounds else 0
        )
        order += left[:going]
        mask[left[:going]] = False
    expected = torch.empty(dense.numel(), dtype=torch.float64)
    expected[torch.tensor(order)] = torch.arange(1 - dense.numel(), 1, dtype=torch.float64)
    assert torch.equal(places, expected)


def test_synflow_is_the_sum_over_the_paths_through_a_weight():
    model, _ = network("mlp")
    weights = [np.abs(model[i].weight.detach().numpy()) for i in (0, 2, 4)]
    biases = [np.abs(model[i].bias.detach().numpy()) for i in (0, 2, 4)]
    into = [np.ones(64)]  # what arrives at the inputs of each layer
    for weight, bias in zip(weights, biases, strict=True):
        into.append(weight @ into[-1] + bias)
    out = [np.ones(10)]  # what a unit's output adds to the sum
    for weight in reversed(weights):
        out.insert(0, out[0] @ weight)

    linearised = synflow._linearised(copy.deepcopy(model))
    full = {name: weight.detach().clone() for name, weight in prunable_weights(linearised)}
    alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in full.items()}
    flow = synflow._flow(linearised, torch.ones(1, 64, dtype=torch.float64), full, alive)
    for layer, found in enumerate(flow.values()):
        close(found, weights[layer] * np.outer(out[layer + 1], into[layer]))


@given(
    shapes=st.lists(
        st.one_of(
            st.tuples(*[st.integers(1, 40)] * 2),
            st.tuples(*[st.integers(1, 12)] * 2, *[st.integers(1, 3)] * 2),
        ),
        min_size=1,
        max_size=6,
    ),
    density=st.floats(0.001, 0.999),
    kernel=st.booleans(),
)
def test_erdos_renyi_densities_by_bisection(shapes, density, kernel):
    """The layers have min(1, e * raw) with the one e that meets the budget."""
    sizes = np.array([np.prod(shape) for shape in shapes], dtype=float)
    counted = [shape if kernel else shape[:2] for shape in shapes]
    raw = np.array([sum(shape) / np.prod(shape) for shape in counted])
    low, high = 0.0, float(1 / raw.min())
    for _ in range(200):
        middle = (low + high) / 2
        over = (np.minimum(1, middle * raw) * sizes).sum() > density * sizes.sum()
        low, high = (low, middle) if over else (middle, high)
    densities = (erk_densities if kernel else er_densities)(shapes, density)
    assert densities == pytest.approx(np.minimum(1, low * raw), abs=1e-9)


@pytest.mark.parametrize("estimator", ["relaxed", "vr_pge"])
def test_probmasks_gradients_written_out(estimator):
    model, data = network("mlp")
    plain, (x, y) = copy.deepcopy(model), data[0]
    probmask = fs.ProbMask(model, density=0.5, steps=10, estimator=estimator, seed=5)
    for number, score in enumerate(probmask.scores.values()):
        generator = torch.Generator().manual_seed(number)
        score.data = 0.05 + 0.9 * torch.rand(score.shape, generator=generator, dtype=torch.float64)
    probmask.steps_done = 4
    found_loss = probmask.backward(lambda: nn.functional.cross_entropy(model(x), y))
    found = {name: score.grad.clone() for name, score in probmask.scores.items()}
    found_weights = {name: model.get_parameter(name).grad.clone() for name in found}

    generator = torch.Generator().manual_seed(5)
    weights = {name: model.get_parameter(name).detach().requires_grad_() for name in found}
    scores = {name: probmask.scores[name].detach().requires_grad_() for name in found}
    losses, masks = [], []
    for _ in range(2):
        mask = {}
        for name, s in scores.items():
            u = torch.rand(s.shape, generator=generator).double()
            if estimator == "relaxed":
                noise = torch.log(u / (1 - u))
                mask[name] = torch.sigmoid((torch.log(s / (1 - s)) + noise) / (1 - 0.97 * 0.4))
            else:
                mask[name] = (u < s.detach()).double()
        masked = {name: weights[name] * mask[name] for name in weights}
        output = torch.func.functional_call(plain, masked, x)
        losses.append(nn.functional.cross_entropy(output, y))
        masks.append(mask)
    mean = sum(losses) / 2
    close(found_loss, mean.detach())
    wanted = [*weights.values(), *(scores.values() if estimator == "relaxed" else ())]
    gradients = list(torch.autograd.grad(mean, wanted))
    if estimator == "vr_pge":
        for name, s in scores.items():
            s = s.detach()
            gradients.append(
                sum(
                    (loss.detach() - mean.detach()) * (mask[name] - s) / (s * (1 - s)).sqrt()
                    for loss, mask in zip(losses, masks, strict=True)
                )
            )
    for got, expected in zip([*found_weights.values(), *found.values()], gradients, strict=True):
        close(got, expected)


@pytest.mark.parametrize("compete", ["layer", "network"])
@pytest.mark.parametrize("fitness", ["weight", "gradient", "both"])
def test_the_fitness_of_every_start_written_out(fitness, compete):
    model, data = network("conv")
    kstarts = fs.KStarts(
        model, sparsity=0.8, steps=4, rounds=1, fitness=fitness, compete=compete, seed=0
    )
    names = [name for name, _ in prunable_weights(model)]
    summed = dict.fromkeys(names, 0)
    for x, y in data[:3]:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        kstarts.step()
        summed = {n: g + model.get_parameter(n).grad.abs().numpy() for n, g in summed.items()}
    weights = {n: model.get_parameter(n).detach().abs().numpy() for n in names}
    for start, group in itertools.product(range(10), kstarts._groups.values()):
        expected = 0.0
        measures = {"weight": [weights], "gradient": [summed], "both": [weights, summed]}
        for values in measures[fitness]:
            inside = sum((values[n] * kstarts._starts[start][n].numpy()).sum() for n in group)
            expected += inside / sum(values[n].sum() for n in group)
        assert kstarts._fitness_of(start, group) == pytest.approx(expected, rel=1e-9)


def test_how_far_weights_have_moved_written_out():
    model, data = network("conv")
    dissipating = fs.DissipatingGradients(model, sparsity=0.8, steps=4, rounds=1)
    names = [name for name, _ in prunable_weights(model)]
    start = {name: model.get_parameter(name).detach().numpy().copy() for name in names}
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for x, y in data[:3]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        dissipating.step()
    for name in names:
        now = model.get_parameter(name).detach().numpy()
        close(dissipating._moved(name), np.abs(now - start[name]) / (np.abs(start[name]) + 1e-12))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual_pruning_written_out(scope):
    torch.manual_seed(0)
    # sizes of which every density below is a whole number
    model = nn.Sequential(
        nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 40), nn.ReLU(), nn.Linear(40, 16)
    ).double()
    plain = copy.deepcopy(model)
    data = [(x.double(), y) for x, y in networks.digits(96, 8)]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, plain)]
    pruning = fs.GradualPruning(
        model, optimizers[0], sparsity=0.9, begin=2, end=10, every=2, scope=scope
    )
    weights = dict(prunable_weights(plain))
    masks = {name: torch.ones_like(weight) for name, weight in weights.items()}
    groups = [[name] for name in weights] if scope == "layer" else [list(weights)]
    for step, (x, y) in enumerate(data, start=1):
        for each, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(each(x), y).backward()
            optimizer.step()
        pruning.step()
        density = 1 - 0.9 * (1 - (1 - (step - 2) / 8) ** 3)
        for group in groups if step in {4, 6, 8, 10} else ():
            values = torch.cat([(weights[name] * masks[name]).abs().flatten() for name in group])
            smallest_kept = values.sort().values[-round(density * values.numel())]
            for name in group:
                masks[name] = (weights[name].abs() * masks[name] >= smallest_kept).double()
        for name, weight in weights.items():
            weight.data *= masks[name]
            assert torch.equal(masks[name].bool(), pruning.masks[name])
            close(model.get_parameter(name).detach(), weight.detach())
    assert pruning.masks.nnz == 896
