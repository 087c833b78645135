import contextlib
import itertools
import math

import networks
import numpy as np
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


@contextlib.contextmanager
def scripted(script, scope="layer"):
    """Register a method "scripted" that gives the scores of a script, one entry a call."""
    entries = iter(script)

    @register_pruner("scripted", scopes=(scope,), varies_by="seed")
    def function(context):
        return dict(zip(context.weights, next(entries), strict=True))

    try:
        yield
    finally:
        del _METHODS["scripted"]


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
    with scripted(script):
        masks = prune(
            model, "pags", base="scripted", candidates=1, density=0.25, selection=selection
        )
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
    with scripted(script):
        prune(model, "pags", base="scripted", candidates=3, density=0.25)
    assert measured == [["0 0.weight", "0 1.weight"], ["0 1.weight", "2 1.weight"]]


# Two complete 3 x 3 blocks: sigma = 3, 3, the gap is 2 sqrt(2) - 3 = -0.172; one group, of degree
# 3 with six taps and six outputs, so IMDB is 6/11 of it. The circulant of three: sigma = 3, 2, the
# gap 0.828. With weights of one its lambda is 1, that of the blocks 0. With weights of 2 in the
# first block, the blocks have lambda = 6 - 3 = 3 and the norm 3.42, the circulant 2.30 and 2.79.
BLOCKS = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))
CIRCULANT = sum(torch.eye(6).roll(i, 1) for i in range(3))
HEAVY = torch.ones(6, 6)
HEAVY[:3, :3] = 2


@pytest.mark.parametrize(
    ("weight", "base", "candidate", "accepted_by"),
    [
        # gap, IMDB and norm rise and nothing else changes: lambda and lambda_imsg are zero
        (torch.zeros(6, 6), BLOCKS, CIRCULANT, {"loose", "strict", "l2_only"}),
        # lambda_imsg rises from 0 to 6/11 as well
        (torch.ones(6, 6), BLOCKS, CIRCULANT, {"loose", "l2_only"}),
        # gap and IMDB fall, the norm rises by lambda
        (HEAVY, CIRCULANT, BLOCKS, {"alt", "l2_only"}),
        # the same, but the norm falls
        (torch.ones(6, 6), CIRCULANT, BLOCKS, set()),
    ],
)
@pytest.mark.parametrize("rule", ["loose", "strict", "alt", "l2_only"])
@pytest.mark.parametrize("selection", ["per_layer", "global"])
def test_rules_on_masks_by_hand(weight, base, candidate, accepted_by, rule, selection):
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(weight)
    with scripted([(base,), (candidate,)]):
        masks = prune(
            layer,
            "pags",
            base="scripted",
            candidates=1,
            density=0.5,
            rule=rule,
            selection=selection,
        )
    accepted = rule in accepted_by
    assert torch.equal(masks["weight"], (candidate if accepted else base).bool())
    trace = masks.meta["pags"]["trace"]
    assert [line["candidate"] for line in trace] == ([0, 1] if accepted else [0])
    gaps = {True: 2 * math.sqrt(2) - 3, False: 2 * math.sqrt(2) - 2}
    for line, mask in zip(trace, (base, candidate), strict=False):
        gap = gaps[mask is BLOCKS]
        assert line["ramanujan_gap"] == pytest.approx(gap, abs=1e-5)
        assert line["imdb"] == pytest.approx(6 / 11 * gap, abs=1e-5)
        assert (line["layer"], line["kept"]) == ("weight", 18)


def test_drift_by_hand():
    # The candidate spends the whole budget on the first layer, and only this layer is better.
    base = (COMPLETE, COMPLETE)
    candidate = (BLOCKS, torch.zeros(6, 6))
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with torch.no_grad():
        model[0].weight.copy_(HEAVY.flip(0, 1))
        model[1].weight.fill_(1.0)
    arguments = {"base": "scripted", "candidates": 1, "density": 0.25, "rule": "l2_only"}
    arguments["allow_collapse"] = True
    with scripted([base, candidate], scope="global"):
        masks = prune(model, "pags", drift=True, **arguments)
    assert [int(mask.sum()) for mask in masks.values()] == [9, 9]  # lambda 3 is that of COMPLETE
    with torch.no_grad():
        model[0].weight.copy_(100 * HEAVY)  # now the block is heavier where COMPLETE is not
        model[0].weight[:3, :3] = 1.0
    with scripted([base, candidate], scope="global"):
        masks = prune(model, "pags", drift=True, **arguments)
    assert [int(mask.sum()) for mask in masks.values()] == [18, 9]
    assert masks.density == 27 / 72
    trace = masks.meta["pags"]["trace"]
    assert [(line["candidate"], line["layer"], line["kept"]) for line in trace] == [
        (0, "0.weight", 9),
        (0, "1.weight", 9),
        (1, "0.weight", 18),
    ]
    with scripted([base, candidate], scope="global"):
        kept = prune(model, "pags", **arguments)
    assert [int(mask.sum()) for mask in kept.values()] == [9, 9]


def plain_pags(model, script, density, rule, selection, drift):
    """The procedure written out: one candidate after the other, measured by ``full_spectrum``."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}

    def cut(scores, counts=None):
        flat = torch.cat([score.flatten() for score in scores])
        if counts is None:
            keep = torch.zeros(len(flat), dtype=torch.bool)
            keep[flat.argsort(descending=True, stable=True)[: round(density * len(flat))]] = True
            parts = keep.split([score.numel() for score in scores])
        else:
            parts = []
            for score, count in zip(scores, counts, strict=True):
                keep = torch.zeros(score.numel(), dtype=torch.bool)
                keep[score.flatten().argsort(descending=True, stable=True)[:count]] = True
                parts.append(keep)
        shapes = [weight.shape for weight in weights.values()]
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def measured(mask, name):
        layer = full_spectrum({name: mask}, {name: weights[name]}).layers[name]
        gap, _, imdb, imsg = np.nan_to_num(layer.vector)
        return np.array([np.linalg.norm(np.nan_to_num(layer.vector)), gap, imdb, imsg])

    def better(new, old):
        (norm, gap, imdb, imsg), (old_norm, old_gap, old_imdb, old_imsg) = new, old
        loose = imdb >= old_imdb - 1e-6 * abs(old_imdb)
        strict = loose and old_imsg >= imsg - 1e-6 * abs(imsg)
        allowed = {"loose": loose, "strict": strict, "alt": gap < old_gap, "l2_only": True}
        return norm >= old_norm and allowed[rule]

    best = cut(script[0])
    counts = None if drift else [int(mask.sum()) for mask in best]
    for scores in script[1:]:
        new = cut(scores, counts)
        s_new = [measured(mask, name) for mask, name in zip(new, weights, strict=True)]
        s_best = [measured(mask, name) for mask, name in zip(best, weights, strict=True)]
        if selection == "per_layer":
            pairs = zip(s_new, s_best, new, best, strict=True)
            best = [mask if better(a, b) else old for a, b, mask, old in pairs]
        elif better(np.mean(s_new, 0), np.mean(s_best, 0)):
            best = new
    return MaskSet(dict(zip(weights, best, strict=True)))


@pytest.mark.parametrize("rule", ["loose", "strict", "alt", "l2_only"])
@pytest.mark.parametrize("selection", ["per_layer", "global"])
@pytest.mark.parametrize("drift", [False, True])
def test_against_the_procedure_written_out(rule, selection, drift):
    torch.manual_seed(2)  # with which every rule accepts something
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 12), nn.Linear(12, 6)
    )
    shapes = [(8, 2, 3, 3), (12, 32), (6, 12)]
    script = [[torch.rand(shape) for shape in shapes] for _ in range(21)]
    with scripted(script, scope="global"):
        masks = prune(
            model,
            "pags",
            base="scripted",
            candidates=20,
            density=0.4,
            rule=rule,
            selection=selection,
            drift=drift,
        )
    expected = plain_pags(model, script, 0.4, rule, selection, drift)
    assert masks == expected
    assert masks != plain_pags(model, script[:1], 0.4, rule, selection, drift)
    if not drift or selection == "global":
        assert masks.nnz == round(0.4 * masks.numel)
    spectrum = full_spectrum(masks, model)
    assert masks.meta["pags"]["norm"][-1] == pytest.approx(spectrum.norm(), rel=1e-6)


@pytest.mark.parametrize("selection", ["per_layer", "global"])
@pytest.mark.parametrize("drift", [False, True])
def test_candidates_measured_together_or_alone_are_the_same(monkeypatch, selection, drift):
    options = {"candidates": 20, "rule": "l2_only", "selection": selection, "drift": drift}
    together = run("conv", "random", **options)[1]
    for name in ("_MOST_TOGETHER", "_MOST_EDGES"):
        with monkeypatch.context() as patch:
            patch.setattr(pags_module, name, 1)
            alone = run("conv", "random", **options)[1]
        assert alone == together
        assert alone.meta == together.meta


@pytest.mark.parametrize("drift", [False, True])
def test_the_trace_says_how_the_masks_came_about(drift, tmp_path):
    _, masks = run("conv", "random", candidates=30, drift=drift)
    record = masks.meta["pags"]
    latest = {}
    lines = {k: list(group) for k, group in itertools.groupby(record["trace"], candidate_of)}
    assert list(lines[0][0]) == [
        "candidate", "layer", "kept", "norm", "ramanujan_gap", "imdb", "imsg"
    ]  # fmt: skip
    for candidate, norm in enumerate(record["norm"]):
        latest |= {line["layer"]: line for line in lines.get(candidate, [])}
        assert math.fsum(line["norm"] for line in latest.values()) / 3 == pytest.approx(norm)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    assert {name: line["kept"] for name, line in latest.items()} == counts
    assert sum(record["accepted"].values()) == len(record["trace"]) - 3 > 3
    masks.save(tmp_path / "masks.safetensors")
    assert MaskSet.load(tmp_path / "masks.safetensors").meta == masks.meta


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("base", ["snip", "random", "magnitude"])
def test_an_interrupted_search_goes_on_to_the_same_masks(kind, base, tmp_path, monkeypatch):
    # the convolutional network has dropout, so that torch's own random state counts too
    monkeypatch.setattr(pags_module, "_MOST_TOGETHER", 4)
    whole = run(kind, base, candidates=11)[1]
    file = tmp_path / "search"

    def interrupt(done, total):
        told.append((done, total))
        if done == 7:  # in the midst of the second group
            raise Stop

    told: list = []
    with pytest.raises(Stop):
        run(kind, base, candidates=11, checkpoint=file, progress=interrupt)
    told.clear()
    resumed = run(
        kind, base, candidates=11, checkpoint=str(file), progress=lambda *n: told.append(n)
    )[1]
    assert told == [(done, 11) for done in range(5, 12)]
    assert resumed == whole
    assert resumed.meta == whole.meta
    # done already: nothing is drawn any more; and beyond the end
    again = run(kind, base, candidates=11, checkpoint=file, progress=interrupt)[1]
    assert again.meta == whole.meta
    longer = run(kind, base, candidates=14, checkpoint=file)[1]
    assert longer == run(kind, base, candidates=14)[1]
    with pytest.raises(
        ValueError, match="candidates: expected at least the checkpoint's 14, got 11"
    ):
        run(kind, base, candidates=11, checkpoint=file)


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    file = tmp_path / "search"
    run("mlp", "random", candidates=1, checkpoint=file)
    before = file.read_bytes()
    for change, message in (
        ({"rule": "alt"}, "rule = 'loose', not 'alt'"),
        ({"drift": True}, "drift = False, not True"),
        ({"seed": 4}, "seed = 3, not 4"),
        ({"sparsity": 0.5}, "density = 0.09.*, not 0.5"),
        ({"include": "0"}, "weights = '.*', not '.*'"),
    ):
        with pytest.raises(ValueError, match=f"is of another search: {message}"):
            run("mlp", "random", candidates=1, checkpoint=file, **change)
    run("mlp", "random", method="random")[1].save(file)
    with pytest.raises(ValueError, match="holds masks, but no search to go on with"):
        run("mlp", "random", candidates=1, checkpoint=file)
    file.write_bytes(before[:100])
    with pytest.raises(ValueError, match="expected masks written by MaskSet.save"):
        run("mlp", "random", candidates=1, checkpoint=file)
    with pytest.raises(TypeError, match="checkpoint: expected a path, got int"):
        run("mlp", "random", candidates=1, checkpoint=3)


def candidate_of(line):
    return line["candidate"]


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
        ({"drift": "no"}, TypeError, "drift: expected True or False, got 'no'"),
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
