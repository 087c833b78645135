"""Every method on every kind of model, in the driver, truly sparse and dense under masks.

docs/pruning.md, "Which method works on which model", has the table.
"""

import functools
import os

import pytest
import torch
from torch import Tensor

import fullspectrum_ext as fs
from fullspectrum_ext.experiments import RunFolder, TrainConfig, suite, train
from fullspectrum_ext.experiments.data import Dataset, Split
from fullspectrum_ext.experiments.data.text import OneHot
from fullspectrum_ext.experiments.models import MODELS, build_model
from fullspectrum_ext.experiments.models.lstm import character_lstm
from fullspectrum_ext.experiments.models.plain import convnet
from fullspectrum_ext.experiments.models.residual import cifar_resnet
from fullspectrum_ext.experiments.models.vit import vit
from fullspectrum_ext.experiments.procedures import PROCEDURES
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning import methods

BEFORE_TRAINING = [name for name in methods() if name != "pags"]
BASES = ["random", "snip", "magnitude"]  # of each way in which candidates differ
# of the methods that change the topology, one that draws and one that looks at gradients
IN_TRAINING = [*PROCEDURES, "set", "rigl"]
METHODS = [*BEFORE_TRAINING, *(f"pags:{base}" for base in BASES), *IN_TRAINING, "dense"]
METHODS += ["snip:warm"]
# Masks made before training have no part in it: one of these methods stands for all.
SPARSE_AND_MASKED = ["random", "snip:warm", *IN_TRAINING]
# as many epochs as it takes to prune, and one more; a pass of the data is two steps
EPOCHS = {"gmp": 4, "probmask": 5, "probmask:vr_pge": 5, "kstarts": 3, "dissipating": 3}
EPOCHS |= {"dissipating:kstarts": 5, "snip:warm": 2, "set": 3, "rigl": 3}

SMALL = {
    "mlp": MODELS["mlp"],
    "convnet": convnet,
    "resnet20": functools.partial(cifar_resnet, depth=20, width=4),
    "vit": functools.partial(vit, width=16, depth=2, heads=2, patch=2),
    "lstm": functools.partial(character_lstm, width=16),
}
WALKS = "'phew' walks from layer to layer"
REFUSED = {
    ("phew", "vit"): WALKS,
    ("phew", "lstm"): WALKS,
}


def small_data(model: str) -> Dataset:
    generator = torch.Generator().manual_seed(3)
    if model == "lstm":
        whole = Split(
            torch.randint(12, (24, 6), generator=generator).byte(),
            torch.randint(12, (24, 6), generator=generator),
            OneHot(12),
        )
    else:
        whole = Split(
            torch.rand(24, 1, 8, 8, generator=generator),
            torch.randint(10, (24,), generator=generator),
        )
    train, validation, test = torch.arange(24).split([16, 4, 4])
    classes = 12 if model == "lstm" else 10
    return Dataset(whole.chosen(train), whole.chosen(validation), whole.chosen(test), classes)


@pytest.fixture(params=SMALL)
def model(request, monkeypatch):
    monkeypatch.setitem(MODELS, request.param, SMALL[request.param])
    data = small_data(request.param)
    monkeypatch.setattr(suite, "load_data", lambda *_, **__: data)
    monkeypatch.setattr(suite, "environment", dict)  # which asks git, each time
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the power will not fail
    return request.param


def trained(method: str, model: str, backend: str, path) -> tuple[dict, MaskSet, dict[str, Tensor]]:
    """The figures of a run, its masks, and the state of its model with plain layers again."""
    config = TrainConfig(
        data="text" if model == "lstm" else "digits",
        model=model,
        methods=(method,),
        sparsity=0.6,
        candidates=2,
        seeds=(0,),
        epochs=EPOCHS.get(method, 1),
        rewind_epoch=0,
        batch_size=8,
        optimizer="sgd",
        learning_rate=0.01,
        backend=backend,
    )
    folder = RunFolder(path / backend)
    (run,) = train(config, folder)["runs"]
    masks = MaskSet.load(folder.masks(method, 0))
    data = small_data(model)
    network = build_model(model, data.shape, data.classes, 0)
    if method != "dense":
        network = fs.sparsify(network, masks, backend=backend)
    network.load_state_dict(torch.load(folder.checkpoint(method, 0), weights_only=True)["model"])
    return run, masks, fs.densify(network).state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_it_keeps_as_many_weights_as_asked_and_trains_them_alone(method, model, tmp_path):
    if (method, model) in REFUSED:
        with pytest.raises(ValueError, match=f"^{method}, seed 0: .*{REFUSED[method, model]}"):
            trained(method, model, "sparse", tmp_path)
        return
    run, masks, state = trained(method, model, "sparse", tmp_path)
    share = 1 if method == "dense" else 0.4
    assert run["kept"] == masks.nnz == round(share * run["total"])
    initial = build_model(model, small_data(model).shape, small_data(model).classes, 0).state_dict()
    for name, mask in masks.items():
        assert not state[name][~mask].any()
        moved = bool((state[name][mask] != initial[name][mask]).any())
        assert moved != (method == "probmask:supermask")  # which learns masks alone
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())

    if method not in SPARSE_AND_MASKED:
        return
    _, same_masks, same_state = trained(method, model, "masked", tmp_path)
    assert same_masks == masks
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, same_state[name], rtol=1e-4, atol=1e-5)
