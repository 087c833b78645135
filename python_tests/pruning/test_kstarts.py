import itertools

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning import DissipatingKStarts, KStarts
from fullspectrum_ext.pruning.densities import layer_counts

SHAPES = {"0.weight": (300, 64), "2.weight": (100, 300), "4.weight": (10, 100)}


def network(kind):
    return networks.conv_net() if kind == "conv" else networks.mlp()


class Training:
    """An ordinary training, with something that prunes on the way."""

    def __init__(self, pruning_of, kind="mlp", seed=0):
        self.kind = kind
        self.model = networks.conv_net(seed) if kind == "conv" else networks.mlp(seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.pruning = pruning_of(self.model)

    def run(self, steps, start=0):
        torch.manual_seed(0)
        batches = itertools.cycle(networks.digits(image=self.kind == "conv"))
        for x, y in itertools.islice(batches, start, start + steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model.train()(x), y).backward()
            self.optimizer.step()
            self.pruning.step()
        return self


def two_layers():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    model[1].weight.data = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    return model


STARTS = [  # of each layer: |w| inside the masks is 3 and 2; 7 and 2; 5 and 2
    {"0.weight": [[1, 1, 0, 0]], "1.weight": [[1, 1], [0, 0]]},
    {"0.weight": [[0, 0, 1, 1]], "1.weight": [[0, 0], [1, 1]]},
    {"0.weight": [[1, 0, 0, 1]], "1.weight": [[1, 0], [0, 1]]},
]
# of the gradients, summed over two steps: [5, 1, 1, 3] and [[0, 1], [2, 6]]
GRADIENTS = [
    {"0.weight": [[-4, 1, 0, 1]], "1.weight": [[0, 1], [-2, 1]]},
    {"0.weight": [[1, 0, 1, -2]], "1.weight": [[0, 0], [0, -5]]},
]


@pytest.mark.parametrize(
    ("fitness", "compete", "chosen"),
    [
        # 0.3 0.7 0.5 and three times 0.5
        ("weight", "layer", (1, 0)),
        ("weight", "network", (1, 1)),
        # 0.6 0.4 0.8 and 1/9 8/9 6/9
        ("gradient", "layer", (2, 1)),
        # 7/19 12/19 14/19
        ("gradient", "network", (2, 2)),
        # 0.9 1.1 1.3 and 1/2 + these
        ("both", "layer", (2, 1)),
        # 5/14 + 7/19 = 0.73, 9/14 + 12/19 = 1.27, 7/14 + 14/19 = 1.24
        ("both", "network", (1, 1)),
    ],
)
def test_a_case_worked_by_hand(monkeypatch, fitness, compete, chosen):
    starts = [{n: torch.tensor(m).bool() for n, m in start.items()} for start in STARTS]
    monkeypatch.setattr(KStarts, "_draw", lambda self: starts)
    model = two_layers()
    kstarts = KStarts(
        model,
        density=0.5,
        steps=2,
        rounds=1,
        candidates=3,
        fitness=fitness,
        compete=compete,
        seed=0,
    )
    for gradients in GRADIENTS:
        assert kstarts.masks.nnz == 8
        for name, gradient in gradients.items():
            model.get_parameter(name).grad = torch.tensor(gradient).float()
        kstarts.step()
    for name, start in zip(STARTS[0], chosen, strict=True):
        assert torch.equal(kstarts.masks[name], starts[start][name])
        assert not model.get_parameter(name)[~starts[start][name]].any()
        assert model.get_parameter(name)[starts[start][name]].all()


def test_the_fitter_half_goes_on_and_gradients_begin_anew(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    starts = [{"0.weight": torch.eye(4)[i].bool().view(1, 4)} for i in range(4)]
    monkeypatch.setattr(KStarts, "_draw", lambda self: starts)
    kstarts = KStarts(
        model, density=0.25, steps=2, rounds=2, candidates=4, fitness="gradient", seed=0
    )
    model[0].weight.grad = torch.tensor([[9.0, 1.0, 2.0, 8.0]])
    kstarts.step()
    assert kstarts._alive == {"0.weight": [0, 3]}
    assert kstarts.masks.nnz == 4
    model[0].weight.grad = torch.tensor([[1.0, 7.0, 7.0, 1.5]])  # 1 and 2 are out
    kstarts.step()
    assert kstarts.masks["0.weight"].int().tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("compete", ["layer", "network"])
def test_counts_are_exact_and_the_choice_is_not_the_first_draw(kind, compete):
    training = Training(
        lambda model: KStarts(model, sparsity=0.9, steps=8, compete=compete, seed=1), kind
    )
    drawn = training.pruning._starts
    training.run(10)
    masks = training.pruning.masks
    assert training.pruning.done
    assert masks.nnz == round((1 - 0.9) * masks.numel)
    counts = layer_counts({n: m.shape for n, m in masks.items()}, 1 - 0.9, "layer")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
    assert len({MaskSet(start).digest() for start in drawn}) == 10
    among = [
        [i for i, start in enumerate(drawn) if torch.equal(start[name], mask)]
        for name, mask in masks.items()
    ]
    assert all(among)
    if compete == "network":
        assert set.intersection(*map(set, among))
    for name, mask in masks.items():
        assert not bool(training.model.get_parameter(name)[~mask].any())
    fs.sparsify(training.model, masks)


def test_erk_spreads_the_budget_otherwise():
    kstarts = KStarts(networks.mlp(), density=0.1, steps=1, rounds=1, scope="erk", fitness="weight")
    kstarts.step()
    counts = {name: int(mask.sum()) for name, mask in kstarts.masks.items()}
    assert counts == layer_counts(SHAPES, 0.1, "erk")


def test_the_same_seed_gives_the_same_masks_and_another_does_not():
    found = [
        Training(lambda model, seed=seed: KStarts(model, sparsity=0.9, steps=4, seed=seed)).run(4)
        for seed in (1, 1, 2)
    ]
    assert found[0].pruning.masks == found[1].pruning.masks
    assert found[0].pruning.masks != found[2].pruning.masks


@pytest.mark.parametrize("method", [KStarts, DissipatingKStarts])
@pytest.mark.parametrize("after", [3, 5, 9, 13])
def test_a_resumed_training_gives_the_same_bits(method, after, tmp_path):
    def training(pruning_seed, seed=0):
        return Training(
            lambda model: method(model, sparsity=0.9, steps=12, seed=pruning_seed), seed=seed
        )

    def parts(training):
        return training.model, training.optimizer, training.pruning

    whole = training(1).run(16)
    state = [part.state_dict() for part in parts(training(1).run(after))]
    torch.save(state, tmp_path / "state.pt")
    resumed = training(1 if method is DissipatingKStarts else 9, seed=5)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, saved in zip(parts(resumed), state, strict=True):
        part.load_state_dict(saved)
    resumed.run(16 - after, start=after)
    assert resumed.pruning.masks == whole.pruning.masks
    for mine, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_candidates_lie_within_what_is_left():
    model = networks.mlp()
    within = fs.prune(model, "random", density=0.4, seed=3)
    kstarts = KStarts(model, density=0.1, steps=1, rounds=1, within=within, fitness="weight")
    assert kstarts.masks == within
    for start in kstarts._starts:
        assert sum(int(mask.sum()) for mask in start.values()) == round(0.1 * 50_200)
        for name, mask in start.items():
            assert not bool((mask & ~within[name]).any())
            assert int(mask.sum()) == pytest.approx(int(within[name].sum()) / 4, abs=1)
    kstarts.step()
    assert kstarts.masks.nnz == 5020


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_both_together_go_by_the_square_root(kind):
    def pruning_of(model):
        return DissipatingKStarts(model, density=0.09, steps=9, seed=1)

    training = Training(pruning_of, kind).run(4)
    size = training.pruning.masks.numel
    survivors = training.pruning.masks
    assert survivors.nnz == round(0.3 * size)
    training.run(4, start=4)
    assert training.pruning.masks == survivors
    assert not training.pruning.done
    training.run(1, start=8)
    assert training.pruning.done
    masks = training.pruning.masks
    assert masks.nnz == round(0.09 * size)
    for name, mask in masks.items():
        assert not bool((mask & ~survivors[name]).any())
        assert not bool(training.model.get_parameter(name)[~mask].any())
    assert masks.meta["method"] == "dissipating_kstarts"
    other = Training(lambda model: DissipatingKStarts(model, density=0.09, steps=9, seed=2), kind)
    assert other.run(9).pruning.masks != masks


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"density": 1.5}, ValueError, r"density: expected a fraction in \(0, 1\], got 1.5"),
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"rounds": 0}, ValueError, r"rounds: expected an int in \[1, 4\], got 0"),
        ({"candidates": 0}, ValueError, "candidates: expected at least 1, got 0"),
        ({"fitness": "grad"}, ValueError, "fitness: expected one of weight, gradient, both, got"),
        ({"compete": "all"}, ValueError, "compete: expected one of layer, network, got 'all'"),
        ({"scope": "global"}, ValueError, "scope: expected one of layer, er, erk, got 'global'"),
        ({"within": {}}, TypeError, "within: expected a MaskSet, got dict"),
        (
            {"within": MaskSet({"0.weight": torch.ones(2, 2)})},
            ValueError,
            "within: expected masks for the weights that are to be pruned",
        ),
        (
            {"within": MaskSet({name: torch.eye(*shape) for name, shape in SHAPES.items()})},
            ValueError,
            "within: expected at least the 25100 weights to keep, got 174",
        ),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        KStarts(networks.mlp(), **{"density": 0.5, "steps": 4, **options})


def test_what_goes_wrong_on_the_way_is_said():
    kstarts = KStarts(networks.mlp(), density=0.5, steps=2, rounds=1)
    with pytest.raises(ValueError, match="step: expected gradients: call it before they are clea"):
        kstarts.step()
    for weight in kstarts._weights.values():
        weight.grad = torch.full_like(weight, torch.nan)
    kstarts.step()
    with pytest.raises(ValueError, match="the weights or gradients hold NaN"):
        kstarts.step()
    collapsed = KStarts(networks.mlp(), density=1e-4, steps=1, rounds=1, fitness="weight")
    with pytest.raises(ValueError, match=r"leaves no weight in 4.weight"):
        collapsed.step()
    with pytest.raises(ValueError, match="steps: expected at least 4, got 3"):
        DissipatingKStarts(networks.mlp(), density=0.5, steps=3)
