import json
import math

import pytest
import torch
from jobs import SMALL
from torch import nn
from torch.nn.utils import prune as torch_prune

import fullspectrum_ext as fs
from fullspectrum_ext.experiments import RunFolder, train
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.scoring import draw_spectra, score_file


def net():
    return build_model("mlp", (1, 8, 8), 10, 0)


@pytest.fixture(scope="module")
def masks():
    return fs.prune(net(), "magnitude", sparsity=0.9)


def assert_same(spectrum, expected):
    assert list(spectrum.layers) == list(expected.layers)
    assert spectrum.to_dict() == expected.to_dict()


@pytest.mark.parametrize("kind", ["zeroed", "torch prune", "sparse", "wrapped", "safetensors"])
def test_every_way_to_store_a_sparse_network_scores_the_same(tmp_path, masks, kind):
    file = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    model = net()
    if kind == "torch prune":
        for name, mask in masks.items():
            layer = model.get_submodule(name.removesuffix(".weight"))
            torch_prune.custom_from_mask(layer, "weight", mask)
    elif kind in {"sparse", "safetensors"}:
        model = fs.sparsify(model, masks)
    else:
        masks.apply(model)
    if kind == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file(model.state_dict(), file)
    else:
        state = model.state_dict()
        torch.save({"state_dict": state, "epoch": 1} if kind == "wrapped" else state, file)

    assert_same(score_file(file).spectrum, fs.full_spectrum(masks, net()))


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
