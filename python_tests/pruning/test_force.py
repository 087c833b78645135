"""Iterative SNIP and FORCE against their definitions, by hand and written out plainly."""

import copy

import networks
import pytest
import torch
from torch import nn

from fullspectrum_ext.pruning import prune
from fullspectrum_ext.pruning.batches import Batches


def test_by_hand_what_was_pruned_returns_to_force_alone():
    # Two samples, y = (w1 + w2, w3 + w4) = (3, 7), targets (-6, 8): residuals (9, -1), scores
    # |w * residual| = (9, 18, 3, 4). Round one of two keeps half: w1, w2. Then y = (3, 0), residual
    # (9, -8), and the scores with the weights as they were are (9, 18, 24, 32).
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    inputs = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    data = (inputs, torch.tensor([-6.0, 8.0]))

    def kept(method, rounds, density=0.25):
        return (
            prune(layer, method, density=density, data=data, loss=squares, rounds=rounds)["weight"]
            .int()
            .tolist()[0]
        )

    assert kept("itersnip", 1) == kept("force", 1) == [0, 1, 0, 0]
    assert kept("itersnip", 2) == [0, 1, 0, 0]
    assert kept("force", 2) == [0, 0, 0, 1]


def squares(outputs, targets):
    return 0.5 * (outputs[:, 0] - targets).square().sum()


def plain(model, data, density, rounds, *, returns):
    """Both algorithms, written out; the batch of every round is the same one."""
    model = copy.deepcopy(model).train()
    weights = [p for p in model.parameters() if p.dim() > 1]
    dense = [weight.detach().clone() for weight in weights]
    total = sum(weight.numel() for weight in weights)
    mask = torch.ones(total, dtype=torch.bool)
    for k in range(1, rounds + 1):
        model.zero_grad()
        with torch.no_grad():
            parts = mask.split([weight.numel() for weight in weights])
            for weight, was, part in zip(weights, dense, parts, strict=True):
                weight.copy_(was * part.reshape(was.shape))
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        scores = torch.cat([
            (was * weight.grad).abs().flatten() for was, weight in zip(dense, weights, strict=True)
        ])
        allowed = scores if returns else scores.masked_fill(~mask, -1)
        keep = allowed.argsort(descending=True, stable=True)[
            : round(density ** (k / rounds) * total)
        ]
        mask = torch.zeros(total, dtype=torch.bool)
        mask[keep] = True
    return mask, scores


@pytest.mark.parametrize("image", [False, True], ids=["mlp", "conv"])
@pytest.mark.parametrize("method", ["itersnip", "force"])
def test_against_the_algorithm_written_out(method, image):
    model = (networks.conv_net() if image else networks.mlp()).double()
    if image:
        model[8] = nn.Identity()  # no dropout, whose noise would differ
    data = networks.digits(128, batch=128, image=image)
    data = [(x.double(), y) for x, y in data]
    mask, scores = plain(model, data[0], 0.1, 8, returns=method == "force")
    masks = prune(model, method, density=0.1, data=data, rounds=8)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), mask)
    once = prune(model, method, density=0.1, data=data, rounds=1)
    assert once == prune(model, "snip", density=0.1, data=data)
    assert once != masks
    if method == "force":
        found = networks.scores_of("force", model, data=data, density=0.1, rounds=8)
        found = torch.cat([score.flatten() for score in found.values()])
        torch.testing.assert_close(found, scores, rtol=1e-6, atol=1e-6 * float(scores.max()))


@pytest.mark.parametrize("method", ["itersnip", "force"])
def test_each_round_draws_fresh_batches(method, monkeypatch):
    seen = []
    draw = Batches.draw

    def spy(self, count, generator):
        batches = draw(self, count, generator)
        seen.append([tuple(inputs.sum(1).tolist()) for inputs, _ in batches])
        return batches

    monkeypatch.setattr(Batches, "draw", spy)
    prune(networks.mlp(), method, density=0.1, data=networks.digits(), rounds=4)
    assert [len(batches) for batches in seen] == [1, 1, 1, 1]
    assert len({batches[0] for batches in seen}) == 4
    seen.clear()
    prune(
        networks.mlp(), method, density=0.1, data=networks.digits(), rounds=2, batches_per_round=3
    )
    assert [len(batches) for batches in seen] == [3, 3]


def test_a_weight_that_is_gone_stays_gone():
    model, data = networks.mlp(), networks.digits()
    scores = networks.scores_of("itersnip", model, data=data, density=0.1, rounds=5)
    found = torch.cat([score.flatten() for score in scores.values()])
    # the places of all weights, of which the first tenth are those that stay
    assert sorted(found.tolist()) == list(range(1 - len(found), 1))
    masks = prune(model, "itersnip", density=0.1, data=data, rounds=5, seed=0)
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert torch.equal(kept, found > -5020)


@pytest.mark.parametrize("method", ["itersnip", "force"])
def test_counts_of_every_scope(method):
    model, data = networks.mlp(), networks.digits()
    for scope in ("layer", "er", "erk"):
        masks = prune(model, method, sparsity=0.95, data=data, scope=scope)
        other = prune(model, "random", sparsity=0.95, scope=scope)
        assert [int(mask.sum()) for mask in masks.values()] == [
            int(m.sum()) for m in other.values()
        ]


def test_forces_collapse_is_refused_by_name():
    model = networks.conv_net()
    with pytest.raises(ValueError, match=r"leaves no weight in .*3\.weight"):
        prune(model, "force", sparsity=0.995, data=networks.digits(image=True), seed=1)
