"""One update of each method, worked out by hand, on truly sparse and on masked layers."""

import pytest
import torch
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext import dynamic
from fullspectrum_ext.nn import SparseLinear

BACKENDS = ["sparse", "masked"]


def linear(weight, backend):
    """A network of one linear layer whose zeros are not kept."""
    weight = torch.tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return fs.sparsify(nn.Sequential(layer), {"0.weight": weight != 0}, backend=backend)


def weights(model, index=0):
    layer = model[index]
    dense = layer.to_dense() if isinstance(layer, SparseLinear) else layer.weight
    return dense.detach().tolist()


def mask(model, name="0.weight"):
    return fs.MaskSet.from_model(model)[name].int().tolist()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1.0)


def backward(model, x, grad):
    """A backward pass in which the output's gradient is ``grad``."""
    output = model(torch.tensor(x, dtype=torch.float64))
    output.backward(torch.tensor(grad, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rigl_drops_the_smallest_and_grows_the_steepest_and_skips_the_step(backend):
    model = linear([[1.0, -0.2, 0.0, 0.0], [0.0, 0.5, -3.0, 0.0]], backend)
    optimizer = sgd(model)
    rigl = fs.DynamicSparsity(
        model, optimizer, "rigl", steps=10, every=1, fraction=0.5, anneal="constant"
    )
    # dense gradient [[5, 5, 5, 10], [-1, -1, -1, -2]]: of the two dropped, -0.2 comes back
    backward(model, [[1.0, 1.0, 1.0, 2.0]], [[5.0, -1.0]])
    optimizer.step()
    assert weights(model) == [[1.0, -0.2, 0.0, 0.0], [0.0, 0.5, -3.0, 0.0]]
    assert rigl.step()
    assert mask(model) == [[1, 1, 0, 1], [0, 0, 1, 0]]
    assert weights(model) == [[1.0, -0.2, 0.0, 0.0], [0.0, 0.0, -3.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rigl_of_equal_gradients_takes_the_first_and_of_equal_weights_the_last(backend):
    model = linear([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]], backend)
    optimizer = sgd(model)
    rigl = fs.DynamicSparsity(
        model, optimizer, "rigl", steps=10, every=1, fraction=0.5, anneal="constant"
    )
    backward(model, [[1.0, 1.0, 1.0, 1.0]], [[1.0, 1.0]])
    optimizer.step()
    rigl.step()
    assert mask(model) == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert weights(model) == [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_several_backward_passes_count_together(backend):
    model = linear([[1.0, 0.1, 0.0, 0.0]], backend)
    optimizer = sgd(model)
    rigl = fs.DynamicSparsity(
        model, optimizer, "rigl", steps=10, every=1, fraction=0.5, anneal="constant"
    )
    backward(model, [[0.0, 0.0, 3.0, -2.0]], [[1.0]])
    backward(model, [[0.0, 0.0, -3.0, -2.0]], [[1.0]])  # 0 and -4 together
    optimizer.step()
    rigl.step()
    assert mask(model) == [[1, 0, 0, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_set_keeps_the_largest_and_fills_up_at_random(backend):
    model = linear([[4.0, 3.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]], backend)
    optimizer = sgd(model)
    found = fs.DynamicSparsity(model, optimizer, "set", steps=10, every=1, fraction=0.5, seed=0)
    backward(model, [[0.0, 0.0, 0.0, 0.0]], [[1.0, 1.0]])
    optimizer.step()
    found.step()
    after = torch.tensor(mask(model)).bool()
    assert after[0, :2].all()
    assert after.sum() == 4
    expected = torch.tensor([[4.0, 3.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]]) * after
    assert weights(model) == expected.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_itop_takes_the_step_and_grows_by_gradient(backend):
    model = linear([[1.0, 0.5, 0.0, 0.0]], backend)
    optimizer = sgd(model)
    itop = fs.DynamicSparsity(
        model, optimizer, "itop:rigl", steps=10, every=1, fraction=0.5, anneal="constant"
    )
    backward(model, [[0.75, 0.0, 2.0, 1.0]], [[1.0]])
    optimizer.step()  # 1 - 0.75 is now the smallest
    itop.step()
    assert mask(model) == [[0, 1, 1, 0]]
    assert weights(model) == [[0.0, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_itop_counts_the_weights_that_were_ever_kept(backend):
    model = linear([[1.0, 0.5, 0.0, 0.0]], backend)
    optimizer, told = sgd(model), []
    itop = fs.DynamicSparsity(
        model, optimizer, "itop:rigl", steps=10, every=1, fraction=0.5, anneal="constant",
        explored=True, on_update=told.append,
    )  # fmt: skip
    assert itop.explored == {"0.weight": 0.5}
    for x in ([[0.75, 0.0, 2.0, 1.0]], [[0.0, 0.0, 1.0, 2.0]], [[0.0, 9.0, 1.0, 2.0]]):
        optimizer.zero_grad()
        backward(model, x, [[0.1]])
        optimizer.step()
        itop.step()
    # {0, 1}, {0, 2}, {0, 3}, {0, 1}: the last grows weight 1 again
    assert [update.layers["0.weight"].explored for update in told] == [0.75, 1.0, 1.0]
    assert [update.total.explored for update in told] == [0.75, 1.0, 1.0]
    first = told[0].layers["0.weight"]
    assert (first.before, first.after, first.dropped, first.grown) == (2, 2, 1, 1)
    assert (first.overlap, first.churn) == (1 / 3, 0.5)
    assert [update.step for update in told] == [1, 2, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_snfs_moves_weights_to_the_layer_with_more_momentum(backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)).double()
    first = torch.tensor([[4.0, 1.0, 0.0, 0.0], [3.0, 2.0, 0.0, 0.0]])
    second = 0.25 * torch.tensor([[4.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    with torch.no_grad():
        model[0].weight.copy_(first)
        model[1].weight.copy_(second)
    fs.sparsify(model, {"0.weight": first != 0, "1.weight": second != 0}, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    snfs = fs.DynamicSparsity(
        model, optimizer, "snfs", steps=10, every=2, fraction=0.5, anneal="constant",
        momentum=0.5, floor=0.0,
    )  # fmt: skip
    dense = {}
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.randn(3, 4, dtype=torch.float64)
        reference = _copy(model)
        reference(x).square().sum().backward()
        for name in ("0.weight", "1.weight"):
            gradient = reference.get_parameter(name).grad
            dense[name] = 0.5 * dense[name] + gradient if name in dense else gradient
        model(x).square().sum().backward()
        optimizer.step()
        updated = snfs.step()
    assert updated
    kept = {"0.weight": [0, 4], "1.weight": [0, 2]}  # the two largest of each
    means = {name: dense[name].flatten()[at].abs().mean() for name, at in kept.items()}
    share = float(4 * means["0.weight"] / (means["0.weight"] + means["1.weight"]))
    counts = {"0.weight": round(share), "1.weight": 4 - round(share)}
    assert counts["0.weight"] != 2  # else nothing moves
    for name, at in kept.items():
        momentum = dense[name].flatten().abs().clone()
        momentum[at] = -1
        expected = torch.zeros(8, dtype=torch.bool)
        expected[at] = True
        expected[momentum.argsort(descending=True)[: counts[name]]] = True
        assert torch.equal(snfs.masks[name].flatten(), expected), name


def _copy(model):
    """The same weights in a model of its own, without hooks."""
    copy = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)).double()
    with torch.no_grad():
        for i in range(2):
            copy[i].weight.copy_(torch.tensor(weights(model, i)))
    return copy


@pytest.mark.parametrize("backend", BACKENDS)
def test_dsr_drops_below_a_threshold_that_follows_and_grows_where_most_is_left(backend):
    first = [[0.5, 0.6, 0.7, 0.8, 0.0, 0.0, 0.0, 0.0]]
    model = linear(first, backend)
    model.append(linear([[0.01], [0.02], [0.9], [0.95]], backend)[0])
    optimizer = sgd(model)
    options = {"steps": 20, "every": 1, "threshold": 0.1, "fraction": 0.25, "seed": 0}
    dsr = fs.DynamicSparsity(model, optimizer, "dsr", **options)
    method = dsr._groups[0][0]
    dsr.step()
    # 0.01 and 0.02 are dropped: 2 of 8, as wanted. The second layer is full without them, so that
    # all grow in the first one
    assert method.threshold == 0.1
    assert mask(model, "1.weight") == [[0], [0], [1], [1]]
    assert sum(mask(model)[0]) == 6
    assert mask(model)[0][:4] == [1] * 4
    dsr.step()  # the two that were grown are 0, and below; again as wanted
    assert sum(mask(model)[0]) + sum(map(sum, mask(model, "1.weight"))) == 8


@pytest.mark.parametrize(("threshold", "after"), [(0.1, 0.2), (10.0, 5.0), (0.55, 0.55)])
def test_dsr_adapts_its_threshold(threshold, after):
    model = linear([[0.5, 0.6, 0.7, 0.8, 0.0, 0.0, 0.0, 0.0]], "sparse")
    method = dynamic.DSR(every=1, threshold=threshold, fraction=0.25)
    dsr = fs.DynamicSparsity(model, sgd(model), method, steps=5, seed=0)
    dsr.step()
    assert method.threshold == after
    assert dsr.masks.nnz == 4
    assert sum(mask(model)[0]) >= 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_mest_scores_by_magnitude_and_gradient(backend):
    model = linear([[1.0, 0.5, 0.0, 0.0]], backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    mest = fs.DynamicSparsity(
        model, optimizer, "mest", steps=10, every=1, fraction=0.5, anneal="constant",
        gradient_weight=1.0, seed=0,
    )  # fmt: skip
    backward(model, [[0.0, 2.0, 0.0, 0.0]], [[1.0]])  # 1 + 0 against 0.5 + 2
    optimizer.step()
    mest.step()
    assert mask(model)[0][1] == 1
    assert mest.masks.nnz == 2
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="before the gradients are cleared"):
        mest.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_soft_mest_holds_more_between_updates_and_its_number_at_the_end(backend):
    model = linear([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]], backend)
    soft = fs.DynamicSparsity(
        model, sgd(model), "mest:soft", steps=10, every=2, fraction=0.5, anneal="constant",
        until=0.8, seed=0,
    )  # fmt: skip
    counts = []
    for _ in range(10):
        soft.step()
        counts.append(soft.masks.nnz)
    assert counts == [4, 6, 6, 6, 6, 6, 6, 4, 4, 4]
    assert mask(model)[0][:4] == [1, 1, 1, 1]  # what was grown stayed 0, and went


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradual_pruning_reaches_its_sparsity_and_agrees_with_the_dense_one(backend):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))
    sparse = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))
    sparse.load_state_dict(dense.state_dict())
    ones = {"0.weight": torch.ones(5, 8), "2.weight": torch.ones(4, 5)}
    fs.sparsify(sparse, ones, backend=backend)
    gmp = fs.DynamicSparsity(
        sparse, sgd(sparse), "gmp", steps=20, every=5, until=1.0, sparsity=0.75, scope="global"
    )
    reference = fs.GradualPruning(dense, sgd(dense), sparsity=0.75, end=20, every=5, scope="global")
    for _ in range(20):
        gmp.step()
        reference.step()
        assert gmp.masks == reference.masks
    assert gmp.masks.nnz == 15


@pytest.mark.parametrize("backend", BACKENDS)
def test_granet_prunes_over_all_layers_and_grows_by_gradient(backend):
    model = linear([[8.0, 7.0, 6.0, 5.0]], backend)
    model.append(linear([[4.0], [0.1], [0.2], [9.0]], backend)[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    granet = fs.DynamicSparsity(
        model, optimizer, "granet", steps=4, every=2, sparsity=0.5, reached=0.5,
        fraction=0.5, anneal="constant",
    )  # fmt: skip
    for _ in range(2):
        optimizer.zero_grad()
        backward(model, [[1.0, 1.0, 1.0, 3.0]], [[1.0, 1.0, 1.0, 1.0]])
        optimizer.step()
        granet.step()
    # over both layers 0.1, 0.2, 4 and 5 go; then half of the three in the first, 6; and there the
    # steepest comes: 5 again, which so has never gone
    assert mask(model) == [[1, 1, 0, 1]]
    assert mask(model, "1.weight") == [[0], [0], [0], [1]]
    torch.testing.assert_close(weights(model), [[8.0, 7.0, 0.0, 5.0]])


def test_granet_refuses_to_empty_a_layer():
    model = linear([[8.0, 7.0, 6.0, 5.0]], "sparse")
    model.append(linear([[4.0], [0.1]], "sparse")[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    granet = fs.DynamicSparsity(
        model, optimizer, "granet", steps=2, every=1, sparsity=0.5, reached=0.5
    )
    before = granet.masks
    backward(model, [[1.0, 1.0, 1.0, 1.0]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match=r"leaves no weight in 1\.weight"):
        granet.step()
    assert granet.masks == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_guided_updates_take_the_largest_norm_of_what_set_draws(backend):
    torch.manual_seed(0)
    weight = torch.randn(12, 16) * (torch.rand(12, 16) < 0.4)
    model = linear(weight.tolist(), backend)
    guided = fs.DynamicSparsity(
        model,
        sgd(model),
        "set:ramanujan",
        steps=10,
        every=1,
        candidates=5,
        anneal="constant",
        seed=3,
    )
    guided.step()
    # the same draws by hand
    generator, norms, masks = torch.Generator().manual_seed(3), [], []
    for _ in range(5):
        other = linear(weight.tolist(), "sparse")
        (layer,) = dynamic.layer.dynamic_layers(other).values()
        drop = layer.smallest(layer.values.abs(), layer.nnz // 2)
        grow = layer.random_places(drop, drop.numel(), generator)
        layer.change(drop, grow, sgd(other))
        norms.append(fs.full_spectrum(other).norm())
        masks.append(fs.MaskSet.from_model(other))
    assert len(set(norms)) == 5
    assert guided.masks == masks[norms.index(max(norms))]
    assert norms.index(max(norms)) > 0


def grown_by_gradient(method, backend="sparse", **options):
    """One update of a random layer, its dense gradient, and how many weights were kept."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(12, 15, generator=generator, dtype=torch.float64)
    weight *= torch.rand(12, 15, generator=generator) < 0.4
    x, grad = (torch.randn(7, size, generator=generator).tolist() for size in (15, 12))
    model = linear(weight.tolist(), backend)
    optimizer = sgd(model)
    options = {"steps": 10, "every": 1, "fraction": 0.5, "anneal": "constant", **options}
    found = fs.DynamicSparsity(model, optimizer, method, **options)
    backward(model, x, grad)
    optimizer.step()
    found.step()
    return model, weight, torch.tensor(grad).double().T @ torch.tensor(x).double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{"candidates": 1}, {"pool": 1}])
def test_guided_rigl_with_nothing_to_choose_from_is_rigl(options, backend):
    plain, *_ = grown_by_gradient("rigl", backend)
    guided, *_ = grown_by_gradient("rigl:ramanujan", backend, seed=1, **options)
    assert weights(guided) == weights(plain)
    assert mask(guided) == mask(plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_guided_rigl_takes_the_longest_coordinate_of_rigl_s_and_of_draws_from_its_pool(backend):
    chosen = set()
    for seed in range(6):
        guided, weight, gradient = grown_by_gradient(
            "rigl:ramanujan", backend, seed=seed, candidates=4, pool=3
        )
        # by hand: what stays, the pool from the largest gradient down, and the same draws
        kept = weight.view(-1).nonzero().view(-1)
        count = kept.numel() // 2
        stays = kept[weight.view(-1)[kept].abs().argsort(descending=True)][: kept.numel() - count]
        steepness = gradient.view(-1).abs()
        steepness[stays] = -1
        pool = steepness.argsort(descending=True)[: 3 * count]
        generator, grown = torch.Generator().manual_seed(seed), [pool[:count]]
        for _ in range(3):
            of_pool = dynamic.layer.distinct(3 * count, count, generator)
            grown.append(pool.sort().values[of_pool])
        norms, masks = [], []
        for places in grown:
            candidate = torch.zeros_like(weight).view(-1)
            candidate[torch.cat([stays, places])] = 1
            values = {"0.weight": weight}
            masks.append(fs.MaskSet({"0.weight": candidate.view(12, 15) != 0}))
            norms.append(fs.full_spectrum(masks[-1], values).norm())
        best = norms.index(max(norms))
        assert fs.MaskSet.from_model(guided) == masks[best]
        assert max(norms) >= norms[0]
        chosen.add(best)
    assert len(chosen) > 1


def test_guided_rigl_takes_a_pool_no_larger_than_what_there_is():
    model, weight, _ = grown_by_gradient("rigl:ramanujan", pool=100, seed=0)
    assert fs.MaskSet.from_model(model).nnz == int((weight != 0).sum())
    for option in ({"pool": 0}, {"candidates": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            dynamic.RamanujanGuidedRigL(**option)
