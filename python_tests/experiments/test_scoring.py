import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from jobs import SMALL
from torch import nn
from torch.nn.utils import prune as torch_prune

import fullspectrum_ext as fs
from fullspectrum_ext.experiments import RunFolder, scoring, train
from fullspectrum_ext.experiments.comparison import compare, csv_text, score_rows
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.scoring import FileScore, draw_spectra, score_file
from fullspectrum_ext.spectral.coordinates import COORDINATES
from fullspectrum_ext.spectral.full_spectrum import graph_spectrum


def net():
    return build_model("mlp", (1, 8, 8), 10, 0)


@pytest.fixture(scope="module")
def masks():
    return fs.prune(net(), "magnitude", sparsity=0.9)


def assert_same(spectrum, expected):
    assert list(spectrum.layers) == list(expected.layers)
    assert spectrum.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    "kind", ["zeroed", "torch prune", "sparse", "wrapped", "safetensors", "bitmask"]
)
def test_every_way_to_store_a_sparse_network_scores_the_same(tmp_path, masks, kind):
    file = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    model = net()
    if kind == "torch prune":
        for name, mask in masks.items():
            layer = model.get_submodule(name.removesuffix(".weight"))
            torch_prune.custom_from_mask(layer, "weight", mask)
    elif kind in {"sparse", "safetensors"}:
        model = fs.sparsify(model, masks, backend="sparse")
    else:
        masks.apply(model)
    if kind == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file(model.state_dict(), file)
    else:
        state = model.state_dict()
        if kind == "bitmask":
            for name, mask in masks.items():
                weight, layer = state.pop(name), name.removesuffix(".weight")
                bits = np.packbits(mask.numpy(), axis=-1, bitorder="little")
                state[f"{layer}.bitmask"] = torch.from_numpy(bits)
                state[f"{layer}.compressed"] = weight[mask]
                state[f"{layer}.shape"] = torch.tensor(weight.shape)
        torch.save({"state_dict": state, "epoch": 1} if kind == "wrapped" else state, file)

    assert_same(score_file(file).spectrum, fs.full_spectrum(masks, net(), chain=False))


def test_masks_alone_have_no_weighted_coordinates(tmp_path, masks):
    masks.save(tmp_path / "m.safetensors")

    spectrum = score_file(tmp_path / "m.safetensors", include="fc3*").spectrum

    assert list(spectrum.layers) == ["fc3.weight"]
    assert math.isnan(spectrum.layers["fc3.weight"].weighted_gap)
    expected = fs.full_spectrum(masks).layers["fc3.weight"]
    assert spectrum.layers["fc3.weight"].ramanujan_gap == expected.ramanujan_gap


@pytest.mark.parametrize("method", SMALL.methods)
def test_a_runs_checkpoint_scores_as_its_results_say(tmp_path, method):
    folder = RunFolder(tmp_path / "run")
    results = train(SMALL, folder)
    run = next(r for r in results["runs"] if (r["method"], r["seed"]) == (method, 1))

    spectrum = score_file(folder.checkpoint(method, 1)).spectrum

    assert spectrum.norm() == run["norm_after"]
    assert spectrum.vector.tolist() == run["coordinate_after"]
    masks = fs.MaskSet.load(folder.masks(method, 1))
    before = fs.full_spectrum(masks, build_model("mlp", (1, 8, 8), 10, 1))
    assert before.norm() == run["norm_before"]
    assert spectrum.distance(before) == run["anchor_distance"] > 0
    assert (masks.nnz, masks.numel) == (run["kept"], run["total"])


def test_files_without_layers_are_refused_by_name(tmp_path):
    file = tmp_path / "x.pt"
    torch.save(nn.BatchNorm1d(3).state_dict(), file)
    with pytest.raises(ValueError, match=r"x\.pt: expected a weight with two or four dimensions"):
        score_file(file)
    torch.save({"fc.weight": torch.full((3, 3), math.nan)}, file)
    with pytest.raises(ValueError, match=r"x\.pt: .*finite"):
        score_file(file)
    (tmp_path / "x.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file"):
        score_file(tmp_path / "x.safetensors")


def test_the_plot_is_a_picture(tmp_path, masks):
    spectrum = fs.full_spectrum(masks)
    json.dumps(spectrum.to_dict(), allow_nan=False)

    draw_spectra({"one": spectrum, "two": spectrum}, tmp_path / "p.png")

    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_patterns_are_named_and_dense_layers_skipped_on_request(tmp_path):
    pairs = torch.tensor([[0.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0, 0.0]]).repeat(8, 4)
    state = {"a.weight": pairs, "b.weight": torch.ones(4, 4), "c.weight": torch.zeros(3, 3)}
    torch.save(state, tmp_path / "x.pt")

    score = score_file(tmp_path / "x.pt")
    sparse = score_file(tmp_path / "x.pt", skip_dense=True)

    assert score.patterns == {"a.weight": "2:4", "b.weight": "dense", "c.weight": "empty"}
    assert score.to_dict()["layers"]["a.weight"]["pattern"] == "2:4"
    assert list(sparse.spectrum.layers) == ["a.weight", "c.weight"]
    with pytest.raises(ValueError, match=r"x\.pt: every layer is dense"):
        score_file(tmp_path / "x.pt", skip_dense=True, include="b")


def test_embeddings_are_looked_at_by_name_only(tmp_path):
    names = ["model.embed_tokens", "transformer.wte", "lm_head", "model.layers.0.mlp.up_proj"]
    torch.save({f"{name}.weight": torch.eye(4) for name in names}, tmp_path / "x.pt")

    def layers(**patterns):
        return list(score_file(tmp_path / "x.pt", **patterns).spectrum.layers)

    assert layers() == ["model.layers.0.mlp.up_proj.weight"]
    assert layers(include="lm_head") == ["lm_head.weight"]
    assert len(layers(include="*")) == 4
    with pytest.raises(ValueError, match=r"no layer is left .*--include only"):
        layers(exclude="model.layers.*")


def test_layers_are_read_and_scored_in_runs_of_bounded_size(tmp_path, monkeypatch, masks):
    model = net()
    masks.apply(model)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    whole = score_file(tmp_path / "x.pt")
    seen, steps = [], []

    def watched(graphs, *rest, **keywords):
        seen.append(sum(math.prod(graph.shape) for graph in graphs.values()))
        return graph_spectrum(graphs, *rest, **keywords)

    monkeypatch.setattr(scoring, "_BATCH", 1)
    monkeypatch.setattr(scoring, "graph_spectrum", watched)
    one_by_one = score_file(tmp_path / "x.pt", advance=lambda *step: steps.append(step))

    assert len(seen) > 1
    assert max(seen) == max(mask.numel() for mask in masks.values())
    assert steps[-1] == (masks.numel, masks.numel)
    assert len(steps) == len(seen)
    assert one_by_one.to_dict() == whole.to_dict()


@pytest.mark.parametrize("width", [1, 3, 10**6])
def test_a_single_row_has_a_spectrum_but_no_gap(tmp_path, width):
    torch.save({"a.weight": torch.full((1, width), 2.0)}, tmp_path / "x.pt")
    layer = score_file(tmp_path / "x.pt").spectrum.layers["a.weight"]
    assert layer.weighted_sigma1 == pytest.approx(2 * width**0.5)
    assert layer.weighted_sigma2 == 0
    assert math.isnan(layer.ramanujan_gap)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.full((3, 3), math.inf), "finite"),
        (torch.ones(3, 3, dtype=torch.int8), "floating point, got torch.int8"),
        (torch.ones(3, 3, dtype=torch.complex64), "floating point, got torch.complex64"),
        (torch.ones(0, 3), r"expected weights, got shape \(0, 3\)"),
        (torch.ones(3, 3, device="meta"), "expected values, got .* meta"),
    ],
)
def test_weights_that_are_none_are_refused_by_file_and_layer(tmp_path, weight, words):
    torch.save({"a.weight": torch.eye(3), "b.weight": weight}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt: .*b\.weight.*{words}"):
        score_file(tmp_path / "x.pt")
    assert list(score_file(tmp_path / "x.pt", exclude="b").spectrum.layers) == ["a.weight"]


def test_compare_gives_each_layer_its_distance(tmp_path, masks):
    first, second = fs.full_spectrum(masks, net()), fs.full_spectrum(masks)
    patterns = dict.fromkeys(masks, "unstructured")
    scores = {"x": FileScore(first, patterns), "y": FileScore(second, patterns)}

    found = compare(scores)

    assert found["distance"] == first.distance(second) > 0
    assert found["files"] == ["x", "y"]
    layer = found["layers"]["fc1.weight"]
    expected = second.layers["fc1.weight"].vector - first.layers["fc1.weight"].vector
    assert [layer[name] for name in COORDINATES] == expected.tolist()
    assert layer["distance"] == pytest.approx(sum(expected**2) ** 0.5)
    with pytest.raises(ValueError, match="expected two different files, got 1"):
        compare({"x": scores["x"]})
    part = fs.full_spectrum(masks, include="fc1")
    with pytest.raises(ValueError, match="only one of the two has fc2.weight, fc3.weight"):
        compare({"x": scores["x"], "y": FileScore(part, patterns)})


def test_csv_has_every_single_figure(tmp_path, masks):
    spectrum = fs.full_spectrum(masks)
    scores = {"x,y": FileScore(spectrum, dict.fromkeys(masks, "unstructured"))}

    rows = list(csv.DictReader(io.StringIO(csv_text(score_rows(scores)))))

    assert [row["layer"] for row in rows] == list(masks)
    assert {row["file"] for row in rows} == {"x,y"}
    layer = spectrum.layers["fc1.weight"]
    assert float(rows[0]["sigma2"]) == layer.sigma2
    assert float(rows[0]["sigma_bounds_2"]) == layer.sigma_bounds[1]
    assert int(rows[0]["subgraphs"]) == len(layer.subgraphs)
    assert not rows[0]["weighted_gap"]
