"""Models of torchvision and timm by import path, where these are installed."""

import importlib

import pytest
import torch
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.models.imported import check_fit

SIZES = {  # of an image's side
    "torchvision.models:resnet18": 64,
    "torchvision.models:mobilenet_v2": 64,
    "timm.models:resnet18": 64,
    "timm.models:vit_tiny_patch16_224": 224,
}


@pytest.fixture(params=SIZES)
def path(request):
    package = request.param.partition(".")[0]
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch than its own
        pytest.skip(f"{package} cannot be imported: {error}")
    return request.param


@pytest.mark.parametrize("method", ["snip", "erk"])
def test_a_model_by_import_path_is_pruned_and_trained_sparse(path, method):
    size = SIZES[path]
    model = build_model(path, (3, size, size), 10, seed=0)
    x, y = torch.randn(2, 3, size, size), torch.tensor([3, 8])
    check_fit(model, x, y, classes=10)
    matrices = {
        f"{name}.weight": layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }

    if (path, method) == ("timm.models:resnet18", "snip"):
        # The last normalisation of each block begins with a factor of zero: no gradient passes.
        with pytest.raises(ValueError, match=r"every score in layer.* is zero"):
            fs.prune(model, method, sparsity=0.9, data=(x, y))
        for name, module in model.named_modules():
            if name.endswith("bn2"):
                nn.init.ones_(module.weight)
    masks = fs.prune(model, method, sparsity=0.9, data=(x, y), seed=0)

    assert {name: mask.numel() for name, mask in masks.items()} == matrices
    assert masks.nnz == round(0.1 * sum(matrices.values()))
    others = {name for name, _ in model.named_parameters()} - set(matrices)
    sparse = fs.sparsify(model, masks, backend="sparse")
    optimizer = torch.optim.SGD(sparse.parameters(), 0.01)
    nn.functional.cross_entropy(sparse(x), y).backward()
    assert others < {name for name, _ in sparse.named_parameters()}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in sparse.parameters())
    optimizer.step()
    dense = fs.densify(sparse)
    assert dense(x).isfinite().all()
    for name, mask in masks.items():
        assert not dense.get_parameter(name)[~mask].any()


@pytest.mark.parametrize(
    ("path", "name"), [("resnet34", "resnet34-imagenet"), ("vgg16_bn", "vgg16-imagenet")]
)
def test_the_networks_for_imagenet_are_those_of_torchvision(path, name):
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    with torch.device("meta"):
        theirs = getattr(models, path)(num_classes=10)
    ours = build_model(name, (3, 32, 32), 10, seed=0).eval()
    shapes = [value.shape for value in theirs.state_dict().values()]
    assert [value.shape for value in ours.state_dict().values()] == shapes

    theirs = theirs.to_empty(device="cpu").eval()
    names = list(theirs.state_dict())
    theirs.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
