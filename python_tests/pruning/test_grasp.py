"""GraSP against its definition: by hand, by the full Hessian, by what removal really does."""

import copy

import networks
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

import fullspectrum_ext as fs
from fullspectrum_ext.pruning import prune


def squares(outputs, targets):
    return 0.5 * (outputs[:, 0] - targets).square().sum()


def one_output(weights):
    layer = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    return layer


def test_by_hand_and_with_its_sign():
    # y = w1 + w2 = -2 and t = -10: g = (8, 8), H = [[1, 1], [1, 1]], Hg = (16, 16) and the scores
    # are (-48, 16): the second is the largest, though the first one's absolute value is larger
    data = (torch.ones(1, 2), torch.tensor([-10.0]))
    masks = prune(
        one_output([-3.0, 1.0]), "grasp", density=0.5, data=data, loss=squares, temperature=1
    )
    assert masks["weight"].tolist() == [[False, True]]
    # and with t = 10 all signs are turned
    data = (torch.ones(1, 2), torch.tensor([10.0]))
    masks = prune(
        one_output([-3.0, 1.0]), "grasp", density=0.5, data=data, loss=squares, temperature=1
    )
    assert masks["weight"].tolist() == [[True, False]]


def test_a_loss_without_curvature_scores_nothing():
    layer = one_output([1.0, -2.0, 3.0, 4.0])
    data = (torch.ones(1, 4), torch.zeros(1))
    masks = prune(layer, "grasp", density=0.5, data=data, loss=lambda y, t: y.sum())
    assert masks["weight"].tolist() == [[True, True, False, False]]  # all are equal


class Recurrent(nn.Module):
    """Of networks like these torch's fast kernels have no second derivative."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.rnn(x.reshape(-1, 3, 3))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.block(self.embed(x.reshape(-1, 3, 3))).mean(1))


def small(kind):
    torch.manual_seed(0)
    networks_by_kind = {
        "mlp": lambda: nn.Sequential(
            nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4, bias=False)
        ),
        "conv": lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 4)
        ),
        "lstm": Recurrent,
        "attention": Attention,
    }
    return networks_by_kind[kind]().double()


def small_data(kind):
    torch.manual_seed(1)
    shape = (6,) if kind == "mlp" else (1, 3, 3)
    return [(torch.randn(8, *shape).double(), torch.randint(4, (8,))) for _ in range(3)]


def total_loss(model, data, names, temperature):
    """The loss over all batches as a function of the weights in a row."""
    model = copy.deepcopy(model).train()
    weights = [model.get_parameter(name) for name in names]

    def loss(vector):
        parts = vector.split([weight.numel() for weight in weights])
        given = {
            name: part.reshape(weight.shape)
            for name, part, weight in zip(names, parts, weights, strict=True)
        }
        return sum(
            nn.functional.cross_entropy(functional_call(model, given, (x,)) / temperature, y)
            for x, y in data
        )

    return loss, torch.cat([weight.detach().flatten() for weight in weights])


@pytest.mark.parametrize("kind", ["mlp", "conv", "lstm", "attention"])
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_against_the_full_hessian(kind, temperature):
    model, data = small(kind).eval(), small_data(kind)
    scores = networks.scores_of("grasp", model, data=data, temperature=temperature)
    loss, at = total_loss(model, data, list(scores), temperature)
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.functional.jacobian(loss, at)
        hessian = torch.autograd.functional.hessian(loss, at)
    expected = at * (hessian @ gradient)
    found = torch.cat([score.flatten() for score in scores.values()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert (found < 0).any()
    assert (found > 0).any()


def test_a_score_is_what_the_gradients_flow_loses():
    model, data = small("mlp"), small_data("mlp")
    scores = networks.scores_of("grasp", model, data=data, temperature=1.0)
    loss, at = total_loss(model, data, list(scores), 1.0)

    def flow(vector):
        return torch.autograd.functional.jacobian(loss, vector).square().sum()

    found = torch.cat([score.flatten() for score in scores.values()])
    for i in (0, 7, 31, 45):
        step = torch.zeros_like(at)
        step[i] = 1e-5 * at[i]  # a step towards removal is -step
        change = (flow(at - step) - flow(at + step)) / 2e-5
        assert float(change) == pytest.approx(-2 * float(found[i]), rel=1e-5, abs=1e-9)


def test_both_passes_see_the_same_batches_and_the_same_dropout():
    inputs, targets = networks.digits(96, batch=96)[0]
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 20), nn.Dropout(0.5), nn.ReLU(), nn.Linear(20, 10))
    seen = []

    def watched(outputs, targets):
        seen.append((outputs.detach().clone(), targets))
        return nn.functional.cross_entropy(outputs, targets)

    prune(model, "grasp", density=0.5, data=loader, loss=watched, seed=5)
    assert len(seen) == 6
    for (first, targets), (second, again) in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
        assert torch.equal(targets, again)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_an_output_that_cannot_be_divided_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc(x), x

    with pytest.raises(TypeError, match="divides the output .* expected a tensor, got tuple"):
        prune(Two(), "grasp", density=0.5, data=networks.digits())


def test_half_precision_is_scored_in_float32():
    model = networks.mlp().bfloat16()
    data = [(x.bfloat16(), y) for x, y in networks.digits()]
    found = networks.scores_of("grasp", model, data=data)
    wide = [(x.float(), y) for x, y in data]
    expected = networks.scores_of("grasp", model.float(), data=wide)
    for name, score in found.items():
        assert score.dtype == torch.float32
        assert torch.equal(score, expected[name])


def test_collapse_is_refused_by_name():
    model = networks.conv_net()
    nn.init.constant_(model[3].weight, 1e-8)
    data = networks.digits(image=True)
    with pytest.raises(ValueError, match=r"leaves no weight in 3\.weight"):
        prune(model, "grasp", sparsity=0.99, data=data)
    assert isinstance(
        prune(model, "grasp", sparsity=0.99, data=data, allow_collapse=True), fs.MaskSet
    )
