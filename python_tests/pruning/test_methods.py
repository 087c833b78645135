"""Each method against its definition, worked by hand or written out plainly."""

import copy
import itertools

import networks
import pytest
import torch
from torch import nn

from fullspectrum_ext.pruning import prune, synflow
from fullspectrum_ext.pruning.densities import layer_counts


def test_magnitude_by_hand():
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -5.0, 0.0, 2.0], [3.0, -0.2, 2.0, -2.0]]))
    masks = prune(layer, "magnitude", sparsity=0.5)
    # 5, 3, and of the three twos the first two
    assert masks["weight"].int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]


def test_magnitude_per_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.mul_(100)
    masks = prune(model, "magnitude", sparsity=0.75, allow_collapse=True)
    assert [int(mask.sum()) for mask in masks.values()] == [8, 0]
    masks = prune(model, "magnitude", sparsity=0.5, scope="layer")
    assert [int(mask.sum()) for mask in masks.values()] == [8, 8]


@pytest.mark.parametrize("method", ["uniform", "er", "erk"])
def test_fixed_layer_counts(method):
    model = networks.mlp()
    counts = [
        [int(mask.sum()) for mask in prune(model, method, sparsity=0.9, seed=seed).values()]
        for seed in range(3)
    ]
    assert counts[0] == counts[1] == counts[2]
    densities = [count / size for count, size in zip(counts[0], (19200, 30000, 1000), strict=True)]
    if method == "uniform":
        assert densities == pytest.approx([0.1, 0.1, 0.1], abs=1e-3)
    else:  # raw densities 364/19200, 400/30000, 110/1000, for matrices the same in both
        assert densities[1] < densities[0] < densities[2] <= 1
        assert densities[0] / densities[1] == pytest.approx((364 / 19200) / (400 / 30000), rel=1e-2)


def test_er_counts_units_and_erk_the_kernel_too():
    model = networks.conv_net()
    shapes = {name: weight.shape for name, weight in model.named_parameters() if weight.dim() > 1}
    for method in ("er", "erk"):
        masks = prune(model, method, sparsity=0.9)
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        assert counts == layer_counts(shapes, masks.meta["density"], method)
    # 1 -> 16 and 16 -> 32 channels of 3 x 3: raw densities 17/16 and 48/512, of which the first is
    # 11.3 times the second, or 23/144 and 54/4608, 13.6 times
    er, erk = (prune(model, m, sparsity=0.95, include=["0", "3"]) for m in ("er", "erk"))
    ratios = [float(m["0.weight"].float().mean() / m["3.weight"].float().mean()) for m in (er, erk)]
    assert ratios == pytest.approx([11.33, 13.63], rel=0.02)


def test_random_counts_vary_between_layers_but_not_much():
    model = networks.mlp()
    counts = [
        int(prune(model, "random", sparsity=0.9, seed=seed)["0.weight"].sum()) for seed in range(8)
    ]
    assert len(set(counts)) > 1
    # hypergeometric with mean 1920 and standard deviation 32.6
    assert all(abs(count - 1920) < 5 * 33 for count in counts)


@pytest.mark.parametrize("method", ["random", "uniform", "er", "erk"])
def test_random_positions_are_spread_evenly(method):
    model = nn.Linear(100, 100)
    hits = sum(prune(model, method, sparsity=0.8, seed=seed)["weight"].int() for seed in range(50))
    halves = [hits[:50].sum(), hits[50:].sum(), hits[:, :50].sum(), hits[:, 50:].sum()]
    assert all(abs(int(half) - 50000) < 5 * 71 for half in halves)  # 5 standard deviations
    assert int(hits.max()) < 30  # the mean is 10, the standard deviation 2.8


def plain_snip(model, batches):
    model = copy.deepcopy(model).train()
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    for inputs, targets in batches:
        nn.functional.cross_entropy(model(inputs), targets).backward()
    return torch.cat([(weight * weight.grad).abs().flatten() for weight in weights])


def test_snip_against_its_definition():
    model, batches = networks.mlp(), networks.digits()
    masks = prune(model, "snip", sparsity=0.95, data=batches)
    scores = plain_snip(model, batches)
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert kept.sum() == 2510
    assert scores[kept].min() >= scores[~kept].max()
    # the batches are summed before the absolute value: one batch alone scores differently
    assert masks != prune(model, "snip", sparsity=0.95, data=batches[0])


def test_snip_normalises_by_the_batch_not_by_fresh_running_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 10)
    ).eval()
    data = networks.digits()
    masks = prune(model, "snip", sparsity=0.9, data=data)
    scores = plain_snip(model, data)
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert scores[kept].min() >= scores[~kept].max()


@pytest.mark.parametrize("image", [False, True], ids=["mlp", "conv"])
def test_taylor1_is_the_number_that_snip_is(image):
    model = networks.conv_net() if image else networks.mlp()
    data = networks.digits(image=image)
    taylor, snip = (networks.scores_of(method, model, data=data) for method in ("taylor1", "snip"))
    assert all(torch.equal(taylor[name], snip[name]) for name in snip)


def test_snip_in_half_precision_does_not_round_scores_to_zero():
    model = networks.mlp().bfloat16()
    data = [(x.bfloat16(), y) for x, y in networks.digits()]
    masks = prune(model, "snip", sparsity=0.5, data=data)
    reference = prune(model.float(), "snip", sparsity=0.5, data=networks.digits())
    same = sum(int((masks[name] == reference[name]).sum()) for name in masks)
    assert same > 0.9 * masks.numel


def plain_synflow(model, shape, density, rounds):
    """The paper's algorithm 1, written out for a model of Linear, Conv2d and BatchNorm layers."""
    model = copy.deepcopy(model).double().eval()
    state = {k: v.abs() for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    weights = [m.weight for m in model if isinstance(m, (nn.Linear, nn.Conv2d))]
    total = sum(weight.numel() for weight in weights)
    for k in range(1, rounds + 1):
        model.zero_grad()
        model(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
        scores = torch.cat([(w * w.grad).flatten() for w in weights])
        keep = scores.argsort(descending=True, stable=True)[
            : round(density ** (k / rounds) * total)
        ]
        mask = torch.zeros(total, dtype=torch.bool)
        mask[keep] = True
        with torch.no_grad():
            for w, m in zip(weights, mask.split([w.numel() for w in weights]), strict=True):
                w.mul_(m.reshape(w.shape))
    return mask


@pytest.mark.parametrize("image", [False, True], ids=["mlp", "conv"])
@pytest.mark.parametrize("sparsity", [0.9, 0.99])
def test_synflow_against_its_definition(image, sparsity):
    model = networks.conv_net() if image else networks.mlp()
    shape = (1, 8, 8) if image else (64,)
    masks = prune(model, "synflow", sparsity=sparsity, rounds=20, input_shape=shape)
    expected = plain_synflow(model, shape, 1 - sparsity, 20)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), expected)
    assert all(mask.any() for mask in masks.values())


@pytest.mark.parametrize("image", [False, True], ids=["mlp", "conv"])
@pytest.mark.parametrize("density", [1.0, 0.2])
def test_synflow_conserves_the_flow_through_every_hidden_unit(image, density):
    # Tanaka et al., theorem 1: what a unit's bias adds flows in as the weights do.
    model = networks.conv_net() if image else networks.mlp()
    ones = torch.ones(1, *((1, 8, 8) if image else (64,)), dtype=torch.float64)
    model = synflow._linearised(copy.deepcopy(model))
    names = [name for name, weight in model.named_parameters() if weight.dim() > 1]
    full = {name: model.get_parameter(name).detach().clone() for name in names}
    alive = {name: torch.rand(weight.shape) < density for name, weight in full.items()}
    flow = synflow._flow(model, ones, full, alive)
    parameters = dict(model.named_parameters())
    model.zero_grad()
    model(ones).sum().backward()
    for before, after in itertools.pairwise(names):
        coming = flow[before].flatten(1).sum(1)
        bias = parameters.get(before.replace("weight", "bias"))
        if bias is not None:
            coming = coming + (bias * bias.grad).detach()
        units = coming.numel()
        going = flow[after].reshape(flow[after].shape[0], units, -1).sum((0, 2))
        torch.testing.assert_close(coming, going, rtol=1e-9, atol=1e-9 * float(going.max()))
        assert float(going.max()) > 0


def test_synflow_takes_the_shape_from_the_data():
    model = networks.conv_net()
    given = prune(model, "synflow", sparsity=0.9, rounds=3, input_shape=(1, 8, 8))
    assert given == prune(
        model, "synflow", sparsity=0.9, rounds=3, data=networks.digits(image=True)
    )


def test_synflow_refuses_a_network_of_tokens():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10))
    data = (torch.randint(10, (4,)), torch.randint(10, (4,)))
    with pytest.raises(ValueError, match="sends ones through the network, .* takes torch.int64"):
        prune(model, "synflow", sparsity=0.5, data=data)


def test_synflow_survives_a_network_whose_flow_leaves_float32():
    layers = [layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)
    masks = prune(model, "synflow", sparsity=0.9, rounds=3, input_shape=(64,))
    assert masks.nnz == 12288
    assert all(mask.any() for mask in masks.values())
