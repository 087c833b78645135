import math

import networks
import pytest
import torch
from torch import nn

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning import pags as pags_module
from fullspectrum_ext.pruning import prune, register_pruner
from fullspectrum_ext.pruning.base import _METHODS
from fullspectrum_ext.pruning.batches import Batches
from fullspectrum_ext.spectral import full_spectrum
from fullspectrum_ext.spectral.full_spectrum import graph_spectrum

Measures = pags_module._Measures
BASES = [
    "er",
    "erk",
    "force",
    "grasp",
    "itersnip",
    "magnitude",
    "phew",
    "ramanujan",
    "random",
    "snip",
    "synflow",
    "taylor1",
    "uniform",
]


def network(kind):
    return networks.conv_net() if kind == "conv" else networks.mlp()


def run(kind, base, method="pags", **arguments):
    model = network(kind)
    defaults = {"data": networks.digits(256, image=kind == "conv"), "seed": 3, "sparsity": 0.9}
    if method == "pags":
        defaults |= {"base": base, "candidates": 10}
    if base == "synflow":  # quicker than its hundred rounds
        defaults |= {"rounds": 5} if method == base else {"base_options": {"rounds": 5}}
    return model, prune(model, method, allow_collapse=True, **{**defaults, **arguments})


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("base", BASES)
def test_the_norm_never_falls_and_the_counts_never_change(kind, base):
    _, before = run(kind, base, method=base)
    model, after = run(kind, base)

    counts = [[int(mask.sum()) for mask in masks.values()] for masks in (before, after)]
    assert counts[0] == counts[1]
    norms = after.meta["pags"]["norm"]
    assert len(norms) == 11
    assert norms == sorted(norms)
    assert norms[0] == pytest.approx(full_spectrum(before, model).norm(), rel=1e-9)
    assert norms[-1] == pytest.approx(full_spectrum(after, model).norm(), rel=1e-9)
    if base != "synflow":  # whose candidates seldom beat it
        assert after != before
        assert norms[-1] > norms[0]
    taken = after.meta["pags"]["accepted"]
    assert {name for name, count in taken.items() if count} >= {
        name for name in before if not torch.equal(before[name], after[name])
    }


@pytest.mark.parametrize("rule", ["loose", "strict", "alt", "l2_only"])
@pytest.mark.parametrize("selection", ["per_layer", "global"])
def test_every_rule_and_selection_keeps_the_norm(rule, selection):
    model, masks = run("conv", "random", rule=rule, selection=selection)
    norms = masks.meta["pags"]["norm"]
    assert norms == sorted(norms)
    assert full_spectrum(masks, model).norm() == pytest.approx(norms[-1], rel=1e-9)


def test_no_candidates_is_the_base():
    assert run("mlp", "snip", candidates=0)[1] == run("mlp", "snip", method="snip")[1]


@pytest.mark.parametrize("base", ["snip", "random", "magnitude"])
def test_repeatable_by_seed(base):
    first = run("conv", base)[1]
    assert run("conv", base)[1] == first
    assert run("conv", base, seed=4)[1] != first


def test_candidates_of_snip_see_other_batches(monkeypatch):
    seen = []
    draw = Batches.draw

    def spy(self, count, generator):
        batches = draw(self, count, generator)
        seen.append(torch.cat([inputs.flatten(1).sum(1) for inputs, _ in batches]))
        return batches

    monkeypatch.setattr(Batches, "draw", spy)
    run("mlp", "snip", candidates=3, batches_per_candidate=2)
    assert [len(sums) for sums in seen] == [64, 64, 64]
    assert len({tuple(sorted(sums.tolist())) for sums in seen}) == 3


def test_candidates_of_a_method_without_chance_get_noise_but_are_measured_without():
    seen = []

    @register_pruner("watched", varies_by="nothing", candidate_options={"rounds": 2})
    def watched(context, *, rounds=5):
        seen.append((rounds, {name: weight.clone() for name, weight in context.weights.items()}))
        assert torch.equal(context.copy_model()[0].weight, context.weights["0.weight"])
        return {name: weight.abs() for name, weight in context.weights.items()}

    try:
        model, masks = run("conv", "watched", candidates=4)
        assert [rounds for rounds, _ in seen] == [5, 2, 2, 2, 2]
        run("conv", "watched", candidates=1, base_options={"rounds": 3})
        assert [rounds for rounds, _ in seen[5:]] == [3, 3]
    finally:
        del _METHODS["watched"]
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, spread in (("3.weight", math.sqrt(2 / (9 * 32))), ("9.weight", 0.01)):
        assert torch.equal(seen[0][1][name], own[name])
        for _, weights in seen[1:5]:
            noise = weights[name] - own[name]
            assert float(noise.std()) == pytest.approx(spread, rel=0.1)
            assert abs(float(noise.mean())) < 5 * spread / math.sqrt(noise.numel())
    norm = full_spectrum(masks, model).norm()
    assert norm == pytest.approx(masks.meta["pags"]["norm"][-1], rel=1e-9)


COMPLETE = torch.block_diag(torch.ones(3, 3), torch.zeros(3, 3))
SCATTERED = torch.eye(6)  # nine edges too, of degrees too small to have a gap
SCATTERED[[0, 1, 2], [1, 2, 3]] = 1


def scripted(script):
    """A method that gives the masks of a script, one entry a call."""
    entries = iter(script)

    def function(context):
        return dict(zip(context.weights, next(entries), strict=True))

    return function


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("per_layer", [COMPLETE, COMPLETE]), ("global", [COMPLETE, SCATTERED])],
)
def test_layers_are_accepted_one_by_one_or_all_together(selection, expected):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    for layer, value in zip(model, (2.0, 1.0), strict=True):
        nn.init.constant_(layer.weight, value)
    # the second candidate is better in the second layer and worse in the first, and by more
    script = [(COMPLETE, SCATTERED), (SCATTERED, COMPLETE)]
    register_pruner("scripted", scopes=("layer",), varies_by="seed")(scripted(script))
    try:
        masks = prune(
            model, "pags", base="scripted", candidates=1, density=0.25, selection=selection
        )
    finally:
        del _METHODS["scripted"]
    assert masks == MaskSet(dict(zip(masks, expected, strict=True)))
    taken = [0, 1] if selection == "per_layer" else [0, 0]
    assert list(masks.meta["pags"]["accepted"].values()) == taken


def test_layers_that_did_not_change_are_not_measured_again(monkeypatch):
    measured = []

    def watched(graphs, *rest, **keywords):
        measured.append(list(graphs))
        return graph_spectrum(graphs, *rest, **keywords)

    monkeypatch.setattr(pags_module, "graph_spectrum", watched)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    moved = COMPLETE.flip(0)  # as many edges as COMPLETE, other ones
    script = [(COMPLETE, COMPLETE), (COMPLETE, moved), (COMPLETE, COMPLETE), (COMPLETE, moved)]
    register_pruner("scripted", scopes=("layer",), varies_by="seed")(scripted(script))
    try:
        prune(model, "pags", base="scripted", candidates=3, density=0.25)
    finally:
        del _METHODS["scripted"]
    assert measured == [["0 0.weight", "0 1.weight"], ["0 1.weight", "2 1.weight"]]


@pytest.mark.parametrize(
    ("rule", "new", "accepted"),
    [
        # norm, ramanujan_gap, imdb, imsg against (2, 1, 1, 1)
        ("l2_only", (2, 9, 0, 9), True),
        ("l2_only", (2 - 1e-12, 1, 1, 1), False),
        ("loose", (2, 9, 1, 9), True),
        ("loose", (2, 1, 1 - 1e-7, 1), True),
        ("loose", (2, 1, 1 - 1e-5, 1), False),
        ("loose", (2 - 1e-12, 1, 2, 1), False),
        ("strict", (3, 1, 1, 1 + 1e-7), True),
        ("strict", (3, 1, 1, 1 + 1e-5), False),
        ("strict", (3, 1, 0.9, 1), False),
        ("alt", (2, 0.9, 0, 9), True),
        ("alt", (2, 1, 2, 1), False),
    ],
)
def test_rules_by_hand(rule, new, accepted):
    search = pags_module._Search.__new__(pags_module._Search)
    search.accepts = pags_module._RULES[rule]
    assert search._is_better(Measures(*new), Measures(2, 1, 1, 1)) == accepted


def test_scope_is_handed_to_the_base():
    _, masks = run("mlp", "snip", scope="erk", candidates=1)
    _, erk = run("mlp", "erk", method="erk")
    assert [int(mask.sum()) for mask in masks.values()] == [int(m.sum()) for m in erk.values()]


def test_progress(capsys):
    calls = []
    run("conv", "random", candidates=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert capsys.readouterr().out == ""
    run("conv", "random", candidates=3, progress=True)
    assert "PAGS candidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"base": "snap"}, ValueError, "no 'snap'; did you mean"),
        ({"base": "pags"}, ValueError, "base: expected another method than 'pags'"),
        ({"rule": "tight"}, ValueError, "rule: expected one of 'loose', 'strict'"),
        ({"selection": "best"}, ValueError, "selection: expected 'per_layer' or 'global'"),
        ({"candidates": -1}, ValueError, "candidates: expected an integer >= 0, got -1"),
        ({"candidates": 2.5}, ValueError, "candidates: expected an integer >= 0, got 2.5"),
        ({"batches_per_candidate": 0}, ValueError, "batches_per_candidate: expected .* >= 1"),
        ({"flavor": "icml"}, ValueError, "flavor: expected 'neurips' or 'iclr'"),
        ({"base_options": {"rounds": 3}}, TypeError, "'snip' has no option 'rounds'"),
        ({"base": "erk", "scope": "global"}, ValueError, "'erk' for method 'erk', got 'global'"),
        ({"data": None}, ValueError, "data: this method scores on data"),
        ({"samples": 3}, TypeError, "'pags' has no option 'samples'"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        run("mlp", **{"base": "snip", **options})
