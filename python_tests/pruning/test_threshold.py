import copy

import pytest
import torch
from torch import nn

from fullspectrum_ext.pruning import ThresholdPruning, magnitude_quantiles
from fullspectrum_ext.pruning.threshold import rising_threshold


def network(kind=nn.LSTM):
    torch.manual_seed(0)
    return nn.ModuleDict({"recurrent": kind(4, 12), "head": nn.Linear(12, 2)})


def train(model, optimizer, pruning, steps):
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(step))
        model["head"](model["recurrent"](x)[0][-1]).square().sum().backward()
        optimizer.step()
        pruning.step()


def test_the_threshold_by_hand():
    # theta = 2 * 7 * 2 / (2 * 4 + 3 * 2) = 2: one a step before the ramp, one and a half from it on
    found = [rising_threshold(t, 7.0, 10, 14, 16, 2) for t in range(10, 16)]
    assert found == pytest.approx([1, 2, 3, 4, 5 + 1.5, 5 + 3])


def test_a_case_by_hand():
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -8, 3, -4, 5, 6, 7, 2]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruning = ThresholdPruning(
        model, optimizer, {"0.weight": 7.0}, begin=10, ramp=14, end=16, every=2
    )
    kept = {}
    for step in range(1, 21):
        pruning.step()
        kept[step] = model[0].weight[0].tolist()
    assert kept[11] == [1, -8, 3, -4, 5, 6, 7, 2]  # nothing at the first step, nor between
    assert kept[12] == kept[13] == [0, -8, 3, -4, 5, 6, 7, 0]  # a threshold of 3
    assert kept[14] == kept[20] == [0, -8, 0, 0, 0, 0, 7, 0]  # of 6.5; none at the end itself


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_each_recurrent_weight_has_its_own_threshold_and_never_comes_back(kind):
    model = network(kind)
    with torch.no_grad():
        model["recurrent"].weight_hh_l0 *= 10  # layers of another scale are pruned alike
    quantiles = magnitude_quantiles(model, exclude="head")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    pruning = ThresholdPruning(model, optimizer, quantiles, begin=0, ramp=500, end=1000, every=100)
    assert list(pruning.masks) == ["recurrent.weight_ih_l0", "recurrent.weight_hh_l0"]
    before = pruning.masks
    for step in range(10):
        for _ in range(99):
            pruning.step()
        train(model, optimizer, pruning, [step])
        masks = pruning.masks
        for name, mask in masks.items():
            assert not bool((mask & ~before[name]).any())
            assert torch.equal(model.get_parameter(name) != 0, mask)
        before = masks
    for mask in before.values():
        assert 0.1 < float(mask.float().mean()) < 0.35  # a threshold of 0.88 q


def test_a_resumed_training_goes_on_to_the_same_bits():
    def begin():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        quantiles = magnitude_quantiles(model)
        return (
            model,
            optimizer,
            ThresholdPruning(model, optimizer, quantiles, begin=0, ramp=4, end=8, every=2),
        )

    whole, half, resumed = begin(), begin(), begin()
    train(*whole, range(10))
    train(*half, range(5))
    states = copy.deepcopy([part.state_dict() for part in half])
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    train(*resumed, range(5, 10))
    expected = whole[0].state_dict()
    assert all(torch.equal(value, expected[k]) for k, value in resumed[0].state_dict().items())
    assert whole[2].masks.sparsity > 0.5


@pytest.mark.parametrize(
    ("quantiles", "steps", "words"),
    [
        ({"head.weight": 1.0}, (5, 5, 9), "begin, ramp, end, every: expected 0 <= begin < ramp"),
        ({"head.weight": -1.0}, (0, 5, 9), r"quantiles\['head.weight'\]: expected a number >= 0"),
        ({"tail.weight": 1.0}, (0, 5, 9), "include: the pattern 'tail.weight' matches none"),
    ],
)
def test_wrong_arguments_are_refused(quantiles, steps, words):
    model = network()
    begin, ramp, end = steps
    with pytest.raises(ValueError, match=words):
        ThresholdPruning(
            model, torch.optim.SGD(model.parameters()), quantiles, begin=begin, ramp=ramp, end=end
        )


def test_a_threshold_that_empties_a_layer_is_refused():
    model = network()
    pruning = ThresholdPruning(
        model,
        torch.optim.SGD(model.parameters()),
        {"head.weight": 1e9},
        begin=0,
        ramp=1,
        end=3,
        every=1,
    )
    with pytest.raises(ValueError, match="the threshold after 1 steps leaves no weight in head"):
        pruning.step()
    with pytest.raises(ValueError, match=r"fraction: expected a number in \(0, 1\), got 1"):
        magnitude_quantiles(network(), 1)
