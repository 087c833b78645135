import copy

import pytest
import torch
from networks import digits, mlp
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.pruning.densities import layer_counts
from fullspectrum_ext.pruning.gradual import cubic_sparsity, keep_largest


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))


def train(model, optimizer, pruning, batches, after_step=lambda: None):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruning.step()
        after_step()


def test_the_schedule_by_hand():
    # 0.8 + (0 - 0.8) (1 - t / 4)^3
    expected = [0, 0.8 * 37 / 64, 0.8 * 7 / 8, 0.8 * 63 / 64, 0.8]
    found = [cubic_sparsity(step, 10, 14, 0, 0.8) for step in range(10, 15)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert cubic_sparsity(3, 10, 14, 0.2, 0.8) == pytest.approx(0.2)
    assert cubic_sparsity(99, 10, 14, 0.2, 0.8) == 0.8


def test_a_case_by_hand():
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -8, 3, -4, 5, 6, 7, 2]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruning = fs.GradualPruning(model, optimizer, sparsity=0.75, begin=1, end=3, every=1)
    kept = []
    for _ in range(4):
        pruning.step()
        kept.append(model[0].weight[0].tolist())
    assert kept[0] == [1, -8, 3, -4, 5, 6, 7, 2]  # nothing is pruned at the first sparsity, 0
    assert kept[1] == [0, -8, 0, 0, 0, 6, 7, 0]  # 1 - 0.75 * 7 / 8 = 0.344: 3 of 8
    assert kept[2] == kept[3] == [0, -8, 0, 0, 0, 0, 7, 0]
    assert pruning.done


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_counts_are_exact_and_masks_nested_at_every_step(scope):
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruning = fs.GradualPruning(
        model, optimizer, sparsity=0.9, begin=2, end=15, every=3, scope=scope
    )
    seen = [pruning.masks]

    def look():
        seen.append(pruning.masks)

    train(model, optimizer, pruning, digits(20 * 8, 8), look)
    assert [step for step in range(1, 21) if seen[step] != seen[step - 1]] == [5, 8, 11, 14, 15]
    for step in (5, 8, 11, 14, 15):
        sparsity = cubic_sparsity(step, 2, 15, 0, 0.9)
        assert seen[step].nnz == round((1 - sparsity) * 1480)
        before = seen[step - 1]
        assert not any(bool((seen[step][name] & ~before[name]).any()) for name in before)
    weights = {name: model.get_parameter(name) for name in pruning.masks}
    for name, mask in pruning.masks.items():
        assert torch.equal(weights[name] != 0, mask)  # zero, whatever Adam's momenta were
        for held in optimizer.state[weights[name]].values():
            assert held.dim() == 0 or not bool(held[~mask].any())


def test_rounding_gives_no_layer_more_than_it_has_left():
    weights = {"a": torch.arange(1.0, 4.0), "b": torch.arange(1.0, 8.0), "c": torch.arange(1.0, 6)}
    # from 8 to 7 of 15 weights, largest remainders would give a layer one more
    asked = [
        layer_counts({n: w.shape for n, w in weights.items()}, k / 15, "layer") for k in (8, 7)
    ]
    assert any(asked[1][name] > asked[0][name] for name in weights)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for count in range(15, 2, -1):
        smaller = keep_largest(weights, masks, count / 15, "layer")
        assert sum(int(mask.sum()) for mask in smaller.values()) == count
        assert not any(bool((smaller[name] & ~masks[name]).any()) for name in masks)
        masks = smaller


def test_a_resumed_training_goes_on_to_the_same_bits():
    def begin():
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, fs.GradualPruning(model, optimizer, sparsity=0.8, end=10, every=2)

    batches = digits(12 * 8, 8)
    whole = begin()
    train(*whole, batches)
    half = begin()
    train(*half, batches[:5])
    states = copy.deepcopy([part.state_dict() for part in half])
    resumed = begin()
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    train(*resumed, batches[5:])

    expected = whole[0].state_dict()
    assert all(torch.equal(value, expected[k]) for k, value in resumed[0].state_dict().items())
    assert whole[2].masks.nnz == round(0.2 * 1480)


def test_afterwards_the_model_is_made_truly_sparse():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruning = fs.GradualPruning(model, optimizer, sparsity=0.9, end=4, every=1, exclude="4")
    train(model, optimizer, pruning, digits(4 * 32, 32))
    assert list(pruning.masks) == ["0.weight", "2.weight"]
    x, _ = digits(8, 8)[0]
    expected = model(x)
    model = fs.sparsify(model, pruning.masks, backend="sparse")
    assert type(model[0]) is fs.nn.SparseLinear
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sparsity": 1.0}, ValueError, "initial_sparsity, sparsity: expected 0 <= "),
        ({"initial_sparsity": 0.95}, ValueError, "initial_sparsity <= sparsity < 1, got 0.95"),
        ({"end": 0}, ValueError, "begin, end, every: expected 0 <= begin < end"),
        ({"every": 0}, ValueError, "every >= 1"),
        ({"scope": "all"}, ValueError, "scope: expected one of global, layer"),
        ({"model": nn.Linear(2, 2)}, ValueError, "model: expected a module with layers"),
        ({"model": nn.ReLU()}, ValueError, "model: expected a layer to prune"),
        ({"model": "net"}, TypeError, "model: expected a torch.nn.Module, got str"),
        ({"optimizer": None}, TypeError, "optimizer: expected one of torch.optim, got NoneType"),
        ({"include": "*", "exclude": "*"}, ValueError, "include, exclude: no layer is left"),
    ],
)
def test_wrong_arguments_are_refused(change, error, words):
    model = small()
    arguments = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with pytest.raises(error, match=words):
        fs.GradualPruning(**{**arguments, "sparsity": 0.9, "end": 10, **change})


def test_an_optimizer_without_states_by_weight_is_refused_and_a_lost_layer_named():
    model = small()
    with pytest.raises(ValueError, match="optimizer: expected one that holds its state by weight"):
        fs.GradualPruning(model, torch.optim.LBFGS(model.parameters()), sparsity=0.9, end=1)
    pruning = fs.GradualPruning(
        model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.999, end=1
    )
    with pytest.raises(ValueError, match="leaves no weight in 2.weight"):
        pruning.step()
