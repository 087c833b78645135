import itertools

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.pruning import DissipatingGradients
from fullspectrum_ext.pruning.densities import layer_counts


def network(kind):
    return networks.conv_net() if kind == "conv" else networks.mlp()


def trained(kind, pruning_of, steps, *, model=None, optimizer=None, seed=0):
    """A model after some steps of an ordinary training, and what pruned it on the way."""
    model = model or network(kind)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruning = pruning_of(model)
    torch.manual_seed(seed)
    batches = itertools.cycle(networks.digits(image=kind == "conv"))
    for x, y in itertools.islice(batches, steps):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
        pruning.step()
    return model, pruning


def test_a_case_worked_by_hand():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 10.0, -1.0], [2.0, 0.0, -4.0]])
    model[1].weight.data = torch.tensor([[0.5, 8.0]])
    pruning = DissipatingGradients(model, density=0.25, steps=4, rounds=2, allow_collapse=True)
    # moved by:            0.5 / 1, 1 / 10, 0 / 1; 0.5 / 2, from zero, 4 / 4
    model[0].weight.data = torch.tensor([[1.5, 11.0, -1.0], [1.5, 0.1, 0.0]])
    model[1].weight.data = torch.tensor([[0.4, 8.1]])  # 0.1 / 0.5 and 0.1 / 8
    pruning.step()
    assert pruning.masks.nnz == 8
    pruning.step()  # a round is over: 8 - (8 - 2) / 2 weights stay
    assert pruning.masks["0.weight"].int().tolist() == [[1, 0, 0], [1, 1, 1]]
    assert pruning.masks["1.weight"].int().tolist() == [[1, 0]]
    assert pruning.masks.nnz == 5
    expected = torch.tensor([[1.5, 0.0, 0.0], [1.5, 0.1, 0.0]])  # the last zero is a weight
    assert torch.equal(model[0].weight, expected)
    assert not pruning.done
    pruning.step()
    pruning.step()
    assert pruning.done
    assert pruning.masks["0.weight"].int().tolist() == [[0, 0, 0], [0, 1, 1]]
    assert pruning.masks["1.weight"].int().tolist() == [[0, 0]]


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("scope", ["global", "erk"])
def test_counts_are_exact_after_every_round_and_what_goes_stays_away(kind, rounds, scope):
    counts, previous = [], None

    def pruning_of(model):
        pruning = DissipatingGradients(model, sparsity=0.9, steps=12, rounds=rounds, scope=scope)
        step = pruning.step

        def spy():
            nonlocal previous
            step()
            masks = pruning.masks
            counts.append(masks.nnz)
            for name, mask in masks.items():
                assert not bool(model.get_parameter(name)[~mask].any())
                assert previous is None or not bool((mask & ~previous[name]).any())
            previous = masks

        pruning.step = spy
        return pruning

    model, pruning = trained(kind, pruning_of, 15)
    size, kept = pruning.masks.numel, round(pruning.masks.numel * (1 - 0.9))
    expected = []
    for step in range(1, 16):
        over = sum(step >= 12 * number // rounds for number in range(1, rounds + 1))
        expected.append(size - round((size - kept) * over / rounds))
    assert counts == expected
    assert counts[-1] == kept
    fs.sparsify(model, pruning.masks)
    assert pruning.masks.meta["method"] == "dissipating"
    assert pruning.masks.meta["scope"] == scope
    if scope == "erk":
        shapes = {name: mask.shape for name, mask in pruning.masks.items()}
        by_layer = {name: int(mask.count_nonzero()) for name, mask in pruning.masks.items()}
        assert by_layer == layer_counts(shapes, pruning.density, "erk")


def test_it_is_not_magnitude_pruning():
    model, pruning = trained(
        "mlp", lambda m: DissipatingGradients(m, sparsity=0.8, steps=10, rounds=1), 9
    )
    start = {name: weight.clone() for name, weight in pruning._start.items()}
    dense = {name: model.get_parameter(name).detach().clone() for name in start}
    pruning.step()
    moved = torch.cat([((dense[n] - start[n]).abs() / start[n].abs()).flatten() for n in start])
    kept = torch.cat([mask.flatten() for mask in pruning.masks.values()])
    assert moved[kept].min() >= moved[~kept].max()
    magnitude = torch.cat([weight.abs().flatten() for weight in dense.values()])
    assert magnitude[kept].min() < magnitude[~kept].max()


@pytest.mark.parametrize("after", [3, 8])
def test_a_resumed_training_gives_the_same_bits(after, tmp_path):
    def pruning_of(model):
        return DissipatingGradients(model, sparsity=0.9, steps=12, rounds=3)

    whole, expected = trained("mlp", pruning_of, 16)

    model = network("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, pruning = trained("mlp", pruning_of, after, model=model, optimizer=optimizer)
    state = (model.state_dict(), optimizer.state_dict(), pruning.state_dict())
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)

    model = networks.mlp(seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruning = pruning_of(model)
    for part, saved in zip((model, optimizer, pruning), state, strict=True):
        part.load_state_dict(saved)
    batches = itertools.cycle(networks.digits())
    for x, y in itertools.islice(batches, after, 16):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
        pruning.step()
    assert pruning.masks == expected.masks
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"density": 0.0}, ValueError, r"density: expected a fraction in \(0, 1\], got 0.0"),
        ({"density": 0.5, "steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"density": 0.5, "rounds": 5}, ValueError, r"rounds: expected an int in \[1, 4\], got 5"),
        ({"density": 0.5, "scope": "all"}, ValueError, "scope: expected one of global, layer"),
        ({"density": 0.5, "exclude": "*"}, ValueError, "no layer is left to prune"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        DissipatingGradients(networks.mlp(), **{"steps": 4, **options})


def test_what_goes_wrong_on_the_way_is_said():
    model = networks.mlp()
    pruning = DissipatingGradients(model, density=0.5, steps=1, rounds=1)
    other = DissipatingGradients(networks.conv_net(), density=0.5, steps=1, rounds=1)
    with pytest.raises(ValueError, match="state: expected masks for the weights of this model"):
        pruning.load_state_dict(other.state_dict())
    model[0].weight.data += 1
    with pytest.raises(ValueError, match=r"leaves no weight in 4.weight"):
        pruning.step()
    pruning = DissipatingGradients(networks.mlp(), density=0.5, steps=1, rounds=1)
    pruning._weights["0.weight"].data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"model: 0.weight holds NaN or infinite values"):
        pruning.step()
    pruning = DissipatingGradients(
        networks.mlp(), density=0.1, steps=1, rounds=1, allow_collapse=True
    )
    pruning.step()
    assert pruning.masks.nnz == 5020
