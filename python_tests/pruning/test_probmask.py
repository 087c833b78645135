import copy
import itertools
import math

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.pruning import ProbMask

ESTIMATORS = ["relaxed", "vr_pge"]


def network(kind):
    return networks.conv_net() if kind == "conv" else networks.mlp()


class Training:
    """A model, its optimizer and ProbMask, some steps on."""

    def __init__(self, kind="mlp", steps=20, **options):
        self.model = network(kind)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        options = {"sparsity": 0.9, "seed": 3, "learning_rate": 0.1, **options}
        self.probmask = ProbMask(self.model, steps=steps, **options)
        self.batches = itertools.cycle(networks.digits(image=kind == "conv"))
        self.losses = []

    def run(self, steps):
        for x, y in itertools.islice(self.batches, steps):
            self.optimizer.zero_grad()
            loss = self.probmask.backward(lambda x=x, y=y: F.cross_entropy(self.model(x), y))
            self.optimizer.step()
            self.probmask.step()
            self.losses.append(float(loss))
        return self


def total(probmask):
    return sum(float(score.detach().double().sum()) for score in probmask.scores.values())


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_it_learns_and_ends_with_exactly_as_many_weights_as_asked(kind, estimator):
    training = Training(kind, steps=60, estimator=estimator).run(60)
    masks = training.probmask.finish()
    weights = {n: p for n, p in training.model.named_parameters() if n in masks}
    assert list(masks) == [name for name, p in weights.items() if p.dim() > 1]
    assert masks.nnz == round((1 - 0.9) * masks.numel)
    for name, mask in masks.items():
        assert mask.shape == weights[name].shape
    fall = 0.7 if estimator == "relaxed" else 1.0  # which is dense at first
    assert sum(training.losses[-8:]) < fall * sum(training.losses[:8])
    # neither the beginning's choice nor that of magnitude
    assert masks != fs.prune(training.model, "magnitude", sparsity=0.9, allow_collapse=True)
    assert masks.meta["method"] == "probmask"
    fs.sparsify(training.model, masks, allow_empty=True)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_expected_count_meets_the_budget_of_every_step(estimator):
    training = Training(steps=25, estimator=estimator)
    probmask = training.probmask
    size, count = 50_200, round(50_200 * (1 - 0.9))
    for step in range(1, 26):
        before = total(probmask)
        training.run(1)
        done = step / 25
        if estimator == "relaxed":
            left = 1 - (min(max(done, 0.16), 0.6) - 0.16) / (0.6 - 0.16)
            expected = count + (size - count) * left**3
        else:
            expected = count
        assert probmask.budget == pytest.approx(expected)
        assert total(probmask) <= expected + 1e-7 * size
        if expected < before - 0.05 * size:  # no step of Adam is as large
            assert total(probmask) == pytest.approx(expected, abs=1e-7 * size)
        for score in probmask.scores.values():
            assert score.min() >= 0
            assert score.max() <= 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(estimator):
    states = []
    for seed in (3, 3, 4):
        training = Training("conv", estimator=estimator, seed=seed).run(20)
        states.append((training.model.state_dict(), training.probmask.finish(allow_collapse=True)))
    for name, tensor in states[0][0].items():
        assert torch.equal(tensor, states[1][0][name])
    assert states[0][1] == states[1][1]
    assert states[0][1] != states[2][1]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_resumed_training_gives_the_same_bits(estimator, tmp_path):
    whole = Training(estimator=estimator).run(8)
    state = {
        "model": whole.model.state_dict(),
        "optimizer": whole.optimizer.state_dict(),
        "probmask": whole.probmask.state_dict(),
    }
    torch.save(state, tmp_path / "state.pt")
    whole.run(12)
    resumed = Training(estimator=estimator, seed=99)
    resumed.run(2)  # what it did before must not matter
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(state["model"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.probmask.load_state_dict(state["probmask"])
    resumed.batches = itertools.cycle(networks.digits())
    next(itertools.islice(resumed.batches, 7, None))
    resumed.run(12)
    for mine, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for name, score in whole.probmask.scores.items():
        assert torch.equal(score, resumed.probmask.scores[name])
    assert whole.probmask.masks == resumed.probmask.masks


def one_weight(score, **options):
    """y = w m x with w = 3, and its ProbMask, whose one score is set."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[0].weight, 3.0)
    probmask = ProbMask(model, density=1.0, steps=10, seed=5, **options)
    nn.init.constant_(probmask.scores["0.weight"], score)
    return model, probmask


@pytest.mark.parametrize("steps_done", [0, 7])
def test_the_relaxed_gradient_worked_by_hand(steps_done):
    model, probmask = one_weight(0.3)
    probmask.steps_done = steps_done
    tau = 1 - 0.97 * steps_done / 10
    probmask.backward(lambda: model(torch.tensor([[2.0]])).sum())

    generator = torch.Generator().manual_seed(5)
    expected_w, expected_s = 0.0, 0.0
    for _ in range(2):
        u = float(torch.rand(1, 1, generator=generator))
        noise = math.log(u / (1 - u))
        m = 1 / (1 + math.exp(-(math.log(0.3 / 0.7) + noise) / tau))
        expected_w += 2 * m / 2
        expected_s += 2 * 3 * m * (1 - m) / tau / (0.3 * 0.7) / 2
    assert float(model[0].weight.grad) == pytest.approx(expected_w, rel=1e-4)
    assert float(probmask.scores["0.weight"].grad) == pytest.approx(expected_s, rel=1e-3)


def test_a_score_of_one_or_zero_can_still_move():
    for score in (0.0, 1.0):
        model, probmask = one_weight(score)
        probmask.backward(lambda model=model: model(torch.tensor([[2.0]])).sum())
        gradient = float(probmask.scores["0.weight"].grad)
        assert gradient > 0
        assert math.isfinite(gradient)


def test_vr_pge_is_unbiased(monkeypatch):
    """Averaged over all pairs of masks, the estimate is the derivative of the expected loss."""
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    probmask = ProbMask(model, density=1.0, steps=10, estimator="vr_pge", seed=0)
    s = torch.tensor([[0.2, 0.5, 0.9]])
    probmask.scores["0.weight"].data.copy_(s)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    cases = [torch.tensor([case]) for case in itertools.product([0.0, 1.0], repeat=3)]

    def loss_at(mask):
        return ((x * model[0].weight.detach() * mask).sum() - 1).square()

    probabilities = s.clone().double().requires_grad_()
    chance = [torch.where(case > 0, probabilities, 1 - probabilities).prod() for case in cases]
    expected_loss = sum(p * loss_at(case) for p, case in zip(chance, cases, strict=True))
    (derivative,) = torch.autograd.grad(expected_loss, probabilities)

    estimate = torch.zeros(1, 3)
    for first, second in itertools.product(range(8), repeat=2):
        script = iter([cases[first], cases[second]])
        monkeypatch.setattr(probmask, "_draw", lambda _score, script=script: next(script))
        probmask.scores["0.weight"].grad = None
        probmask.backward(lambda: (model(x) - 1).square().sum())
        weight = float(chance[first].detach() * chance[second].detach())
        estimate += weight * probmask.scores["0.weight"].grad
    expected = derivative.float() * (s * (1 - s)).sqrt()
    torch.testing.assert_close(estimate, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("train_weights", [True, False])
def test_it_finds_the_weights_that_matter(estimator, train_weights):
    generator = torch.Generator().manual_seed(1)
    teacher = torch.zeros(1, 20)
    teacher[0, [2, 7, 11, 18]] = 1.0
    model = nn.Sequential(nn.Linear(20, 1, bias=False))
    nn.init.constant_(model[0].weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    probmask = ProbMask(
        model,
        density=0.2,
        steps=200,
        estimator=estimator,
        train_weights=train_weights,
        learning_rate=0.03 if estimator == "relaxed" else 0.01,
        seed=0,
    )
    for _ in range(200):
        x = torch.randn(64, 20, generator=generator)
        optimizer.zero_grad()
        probmask.backward(lambda x=x: F.mse_loss(model(x), x @ teacher.T))
        optimizer.step()
        probmask.step()
    assert torch.equal(probmask.finish()["0.weight"], teacher != 0)


def test_masks_are_drawn_as_often_as_their_probability_says():
    model, probmask = one_weight(0.3, estimator="vr_pge")
    drawn = [float(model(torch.ones(1, 1)).detach()) for _ in range(2000)]
    assert set(drawn) == {0.0, 3.0}
    assert sum(drawn) / 3 / 2000 == pytest.approx(0.3, abs=0.04)


def test_it_computes_with_the_most_probable_weights_in_evaluation_mode():
    training = Training("conv").run(15)
    model, masks = training.model.eval(), training.probmask.masks
    x = networks.digits(image=True)[0][0]
    found = model(x)
    assert torch.equal(found, model(x))
    assert torch.equal(found, training.model(x))
    training.probmask.finish(allow_collapse=True)
    assert not torch.equal(model(x), found)
    masks.apply(model)
    assert torch.equal(model(x), found)


def test_the_model_is_its_own_again_between_calls_and_after():
    model = networks.mlp()
    names, own = list(model.state_dict()), dict(model.named_parameters())
    probmask = ProbMask(model, sparsity=0.5, steps=3)
    x = torch.rand(2, 64)
    assert not torch.equal(model.train()(x), model(x))  # another mask
    assert list(model.state_dict()) == names
    assert all(model.get_parameter(name) is parameter for name, parameter in own.items())
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.rand(2, 3))
    assert all(model.get_parameter(name) is parameter for name, parameter in own.items())
    probmask.finish()
    assert torch.equal(model(x), model(x))


def test_a_copy_of_the_model_has_all_of_its_weights():
    training = Training().run(12)
    copied = copy.deepcopy(training.model)
    x = torch.rand(3, 64)
    found = copied(x)
    assert torch.equal(found, copied(x))
    assert not torch.equal(found, training.model(x))
    training.probmask.finish(allow_collapse=True)
    assert torch.equal(found, training.model(x))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_supermask_leaves_the_weights_alone(estimator):
    training = Training("conv", train_weights=False, estimator=estimator)
    before = copy.deepcopy(training.model.state_dict())
    scores = {name: score.detach().clone() for name, score in training.probmask.scores.items()}
    training.run(20)
    for name, score in training.probmask.scores.items():
        assert torch.equal(training.model.get_parameter(name), before[name])
        assert not torch.equal(score, scores[name])
    assert not torch.equal(training.model[1].weight, before["1.weight"])  # of the normalisation
    masks = training.probmask.finish(allow_collapse=True)
    assert masks.nnz == round((1 - 0.9) * masks.numel)


class Recurrent(nn.Module):
    """Two recurrent layers and a linear one."""

    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(5, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_weights_of_recurrent_layers_are_masked_for_the_time_of_a_call(kind):
    torch.manual_seed(0)
    model, x = Recurrent(kind), torch.rand(4, 7, 5)
    dense, weights = model(x), dict(model.named_parameters())
    probmask = ProbMask(model, density=0.5, steps=2, estimator="vr_pge", seed=0)
    plain = copy.deepcopy(model)
    drawn = []
    for _ in range(2):
        found, masks = model(x), probmask._drawn
        drawn.append(masks)
        with torch.no_grad():
            for name, mask in masks.items():
                plain.get_parameter(name).copy_(weights[name] * mask)
        expected = plain(x)
        assert torch.equal(found, expected)
        for output, network in ((found, model), (expected, plain)):
            network.zero_grad()
            output.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter is weights[name]
            assert torch.equal(parameter.grad, plain.get_parameter(name).grad * masks.get(name, 1))
    assert len(masks) == 5
    assert all(not torch.equal(drawn[0][name], drawn[1][name]) for name in masks)
    model.eval()
    sparse = fs.sparsify(copy.deepcopy(model), probmask.masks, backend="masked")
    assert torch.equal(model(x), sparse(x))
    probmask.finish()
    assert torch.equal(model(x), dense)


@pytest.mark.parametrize("train_weights", [True, False])
def test_the_scores_of_recurrent_layers_learn(train_weights):
    torch.manual_seed(0)
    model, x = Recurrent(nn.LSTM), torch.rand(16, 7, 5)
    y = x.sum((1, 2)).argsort().argsort() % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probmask = ProbMask(model, density=0.5, steps=30, seed=0, train_weights=train_weights)
    start = copy.deepcopy(model.state_dict())
    for _ in range(30):
        optimizer.zero_grad()
        probmask.backward(lambda: F.cross_entropy(model(x), y))
        optimizer.step()
        probmask.step()
    for name, score in probmask.scores.items():
        assert score.detach().unique().numel() > 1
        assert torch.equal(model.get_parameter(name), start[name]) != train_weights
    masks = probmask.finish()
    assert masks.nnz == round(0.5 * masks.numel)


def test_a_shared_weight_has_one_mask():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = Tied()
    probmask = ProbMask(model, density=0.5, steps=2, estimator="vr_pge", seed=0)
    assert list(probmask.scores) == ["a.weight"]
    found = model(torch.eye(4))
    mask = probmask._drawn["a.weight"]
    weight = model.a.weight * mask
    torch.testing.assert_close(found, weight.T @ weight.T)
    assert 0 < int(mask.sum()) < 16


def test_include_and_exclude_choose_what_is_masked():
    model = networks.mlp()
    probmask = ProbMask(model, sparsity=0.9, steps=1, exclude="4")
    assert list(probmask.scores) == ["0.weight", "2.weight"]
    assert probmask.finish().nnz == round(49_200 * (1 - 0.9))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "sparsity, density: expected exactly one of them, got neither"),
        ({"sparsity": 1.0}, ValueError, r"sparsity: expected a fraction in \[0, 1\), got 1.0"),
        ({"sparsity": 0.5, "steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"sparsity": 0.5, "steps": 1.5}, TypeError, "steps: expected an int, got float"),
        ({"sparsity": 0.5, "estimator": "ste"}, ValueError, "estimator: expected one of relaxed"),
        ({"sparsity": 0.5, "seed": -1}, ValueError, "seed: expected an integer in"),
        ({"sparsity": 0.5, "include": "x"}, ValueError, "include: the pattern 'x' matches none"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ProbMask(networks.mlp(), **{"steps": 3, **options})


def test_wrong_use_is_refused():
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got str"):
        ProbMask("model", sparsity=0.5, steps=3)
    model = networks.mlp()
    probmask = ProbMask(model, sparsity=0.5, steps=3)
    with pytest.raises(ValueError, match="step: expected gradients of the scores"):
        probmask.step()
    with pytest.raises(ValueError, match="forward: expected it to call the model, in training"):
        probmask.backward(lambda: torch.ones(()))
    with pytest.raises(ValueError, match="forward: expected a scalar loss, got Tensor"):
        probmask.backward(lambda: model(torch.rand(2, 64)))
    other = ProbMask(networks.conv_net(), sparsity=0.5, steps=3)
    with pytest.raises(ValueError, match="state: expected scores for the weights of this model"):
        probmask.load_state_dict(other.state_dict())
    probmask.backward(lambda: model(torch.rand(2, 64)).sum() * math.nan)
    with pytest.raises(ValueError, match="the scores became NaN in step 1"):
        probmask.step()


def test_a_layer_without_weights_is_named():
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 1))
    probmask = ProbMask(model, sparsity=0.99, steps=3)
    nn.init.constant_(probmask.scores["1.weight"], 0.5)
    with pytest.raises(ValueError, match=r"leaves no weight in 1.weight"):
        probmask.finish()
    assert probmask.finish(allow_collapse=True).nnz == round(2550 * 0.01)
