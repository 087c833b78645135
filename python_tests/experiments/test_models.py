import copy
import math

import pytest
import torch
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.experiments.models import MODELS, build_model, check_model
from fullspectrum_ext.experiments.models.imported import check_fit
from fullspectrum_ext.experiments.models.layers import MaxPool, MeanPool, maxima
from fullspectrum_ext.experiments.models.residual import wide_resnet
from fullspectrum_ext.experiments.models.vit import vit

TEXT = (5, 7)  # length, characters
LARGE = {"mlp-4096", "vgg16-imagenet"}  # as mlp and vgg16, but large
NAMES = [name for name in MODELS if name not in LARGE]


def small_shape(name):
    return TEXT if name == "lstm" else (1, 8, 8)


def classes_of(name):
    return 7 if name == "lstm" else 10


def build_small(name, seed=0):
    return build_model(name, small_shape(name), classes_of(name), seed)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


# ---- initial weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_models_depend_on_the_seed_alone(name):
    state = torch.get_rng_state()

    one, same, other = (build_small(name, seed) for seed in (0, 0, 1))

    assert torch.equal(torch.get_rng_state(), state)
    for weight, twin, stranger in zip(
        one.state_dict().values(),
        same.state_dict().values(),
        other.state_dict().values(),
        strict=True,
    ):
        assert weight.isfinite().all()
        assert torch.equal(weight, twin)
        assert torch.equal(weight, stranger) == (weight.dim() < 2)


def test_weights_have_the_variance_of_he():
    weight = build_model("mlp", (1, 8, 8), 10, 0).fc2.weight

    assert weight.var().item() == pytest.approx(2 / 300, rel=0.03)


def test_transformers_begin_with_small_weights():
    model = build_model("vit", (3, 32, 32), 10, 0)

    for parameter in (model.positions, model.class_token, model.blocks[0].attention.qkv.weight):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.2)


def test_recurrent_networks_begin_as_torch_s_with_open_forget_gates():
    layer = build_small("lstm").lstm2

    bound = 1 / math.sqrt(128)
    for weight in (layer.input.weight, layer.hidden.weight):
        assert 0.99 * bound < weight.abs().max() <= bound
    assert layer.input.bias.tolist() == [0] * 128 + [1] * 128 + [0] * 256


# ---- sizes ---------------------------------------------------------------------------------------


# linear, mlp-4096, lstm: by hand. LeNet-300-100 on MNIST: 266.2 k weights in LeCun et al. 1998 and
# Han et al. 2015, with biases 266 610. ResNet-20, -32, -56: He et al. 2016, table 6 (0.27, 0.46,
# 0.85 M); of width 64 nearly 16 times ResNet-20. ResNet-18, -34 with a stem for CIFAR, VGG-16, -19
# with one linear layer: quoted as 11.17, 21.28, 14.7 and 20.0 M by the pruning literature; 21 and
# 37 masked layers in Hoang et al. 2023. ResNet-34 and VGG-16 (BN) for ImageNet: 21 797 672 and
# 138 365 992 in torchvision, less what 990 classes take. WRN-22-2: 1.1 M; see the next test.
@pytest.mark.parametrize(
    ("name", "shape", "parameters", "layers"),
    [
        ("linear", (3, 32, 32), 30_730, 1),
        ("lenet-300-100", (1, 28, 28), 266_610, 3),
        ("mlp-4096", (3, 32, 32), 4096 * (3072 + 2 * 4096 + 10) + 3 * 4096 + 10, 4),
        ("resnet20", (3, 32, 32), 269_722, 20),
        ("resnet20-64", (3, 32, 32), 4_286_026, 20),
        ("resnet32", (3, 32, 32), 464_154, 32),
        ("resnet56", (3, 32, 32), 853_018, 56),
        ("resnet18", (3, 32, 32), 11_173_962, 21),
        ("resnet34", (3, 32, 32), 21_282_122, 37),
        ("resnet34-imagenet", (3, 32, 32), 21_289_802, 37),
        ("vgg16", (3, 32, 32), 14_724_042, 14),
        ("vgg16-imagenet", (3, 32, 32), 134_309_962, 16),
        ("vgg19", (3, 32, 32), 20_035_018, 17),
        ("wrn-22-2", (3, 32, 32), 1_079_642, 23),
        ("lstm", TEXT, (7 + 128 + 1) * 512 + (128 + 128 + 1) * 512 + 129 * 10, 5),
    ],
)
def test_models_have_the_published_size(name, shape, parameters, layers):
    with torch.device("meta"):
        model = MODELS[name](shape, 10)

    assert size(model) == parameters
    assert sum(isinstance(module, nn.Linear | nn.Conv2d) for module in model.modules()) == layers
    expected = (2, 10, 5) if name == "lstm" else (2, 10)
    assert model(torch.zeros(2, *shape, device="meta")).shape == expected


# Zagoruyko and Komodakis 2016, tables 2 to 4
@pytest.mark.parametrize(
    ("depth", "factor", "millions"),
    [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (16, 8, 11.0), (22, 8, 17.2), (28, 10, 36.5)],
)
def test_wide_networks_have_the_published_size(depth, factor, millions):
    with torch.device("meta"):
        model = wide_resnet((3, 32, 32), 10, depth, factor)

    assert size(model) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_transformer_has_the_published_size():
    with torch.device("meta"):
        model = vit((3, 224, 224), 1000, width=192, depth=12, heads=3, patch=16)

    assert size(model) == 5_717_416  # DeiT-Ti, Touvron et al. 2021, table 1: 5 M; timm: 5 717 416


# ---- parts ---------------------------------------------------------------------------------------


def test_the_stages_of_resnet20_halve_the_image_and_double_the_channels():
    model, x = build_model("resnet20", (3, 32, 32), 10, 0), torch.zeros(1, 3, 32, 32)
    shapes = []
    for name, layer in model.named_children():
        x = layer(x)
        if name.startswith("layer"):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_the_way_around_a_block_of_resnet20_is_the_input_itself():
    block = build_model("resnet20", (3, 32, 32), 10, 0).layer2[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 7, 8)

    found = block(x)

    assert torch.equal(found[:, 8:24], x[:, :, ::2, ::2])
    assert not found[:, :8].any()
    assert not found[:, 24:].any()


def test_the_way_around_a_block_of_resnet18_is_a_projection_where_the_shape_changes():
    model = build_model("resnet18", (3, 32, 32), 10, 0).eval()
    x = torch.rand(2, 64, 7, 8)
    for block in (model.layer1[1], model.layer2[0]):
        nn.init.zeros_(block.conv2.weight)

    assert torch.equal(model.layer1[1](x), x)
    projected = nn.functional.conv2d(x, model.layer2[0].downsample[0].weight, stride=2)
    assert torch.allclose(model.layer2[0](x), projected.relu() / math.sqrt(1 + 1e-5))


def test_the_way_around_a_wide_block_has_no_rectifier():
    block = build_model("wrn-22-2", (3, 32, 32), 10, 0).layer1[1]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 32, 7, 8)

    assert torch.equal(block(x), x)


def test_the_recurrent_layer_is_torch_s_lstm():
    layer = build_small("lstm").lstm1
    twin = nn.LSTM(7, 128, batch_first=True)
    nn.init.normal_(layer.input.bias)
    with torch.no_grad():
        twin.weight_ih_l0.copy_(layer.input.weight)
        twin.weight_hh_l0.copy_(layer.hidden.weight)
        twin.bias_ih_l0.copy_(layer.input.bias)
        twin.bias_hh_l0.zero_()
    x = torch.randn(3, 9, 7)

    assert torch.allclose(layer(x), twin(x)[0], atol=1e-6)


def test_attention_is_torch_s_and_has_second_derivatives():
    attention = build_model("vit", (1, 8, 8), 10, 0).blocks[0].attention.double()
    twin = nn.MultiheadAttention(128, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        twin.in_proj_weight.copy_(attention.qkv.weight)
        twin.in_proj_bias.copy_(attention.qkv.bias)
        twin.out_proj.weight.copy_(attention.proj.weight)
        twin.out_proj.bias.copy_(attention.proj.bias)
    x = torch.randn(2, 5, 128, dtype=torch.float64, requires_grad=True)

    found = attention(x)

    assert torch.allclose(found, twin(x, x, x)[0])
    (gradient,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.abs().sum() > 0


def test_the_transformer_sees_each_patch_and_its_place():
    model = build_model("vit", (1, 8, 8), 10, 0)
    x = torch.rand(1, 1, 8, 8)
    swapped = x.clone()
    swapped[..., [0, 7], :] = x[..., [7, 0], :]

    assert model.positions.shape == (1, 65, 128)
    assert not torch.allclose(model(x), model(swapped))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 5, 7), (1, 1, 1)])
@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet34-imagenet", "resnet20", "vgg16", "vgg16-imagenet", "wrn-22-2", "vit"],
)
def test_image_models_take_images_of_any_size(name, shape):
    with torch.device("meta"):
        model = MODELS[name](shape, 3)
    assert model(torch.zeros(2, *shape, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("shape", [(8, 8), (9, 7), (3, 5)])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 3, 1)])
def test_maxima_as_on_a_gpu_are_those_of_torch(window, shape):
    x = torch.randn(2, 3, *shape, requires_grad=True)
    pool = MaxPool(*window)
    found, expected = maxima(x, pool), pool(x)
    assert torch.equal(found, expected)
    factors = torch.randn_like(found)
    gradients = [torch.autograd.grad((y * factors).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 7), (14, 10), (3, 9)])
def test_means_are_those_of_torch(shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(MeanPool(7)(x), nn.AdaptiveAvgPool2d(7)(x), rtol=1e-6, atol=1e-6)


# ---- a step of training --------------------------------------------------------------------------


def step(model, x, y):
    """One step of plain gradient descent."""
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    return loss.item()


@pytest.mark.parametrize("name", NAMES)
def test_every_model_trains_sparse_as_it_trains_masked(name):
    dense = build_small(name)
    if name == "lstm":
        codes = torch.randint(7, (2, 6))
        x, y = nn.functional.one_hot(codes[:, :-1], 7).float(), codes[:, 1:]
    else:
        x, y = torch.rand(2, 1, 8, 8), torch.tensor([1, 3])
    weights = {
        f"{prefix}.weight": layer.weight
        for prefix, layer in dense.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    masks = {key: torch.rand(weight.shape) >= 0.9 for key, weight in weights.items()}
    for weight in weights.values():  # so that something comes through 19 layers
        weight.data.mul_(math.sqrt(10))
    losses, trained = [], []
    for backend in ("sparse", "masked"):
        model = fs.sparsify(copy.deepcopy(dense), masks, backend=backend, allow_empty=True)
        # in evaluation mode, for the mean over two samples of one pixel is no statistic
        losses.append(step(model.eval(), x, y))
        trained.append(fs.densify(model).state_dict())

    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    moved = 0
    for key, mask in masks.items():
        assert torch.allclose(trained[0][key], trained[1][key], rtol=1e-3, atol=1e-6)
        assert not trained[0][key][~mask].any()
        moved += int((trained[0][key] != weights[key] * mask).sum())
    assert moved > 0


# ---- models of users -----------------------------------------------------------------------------


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    (tmp_path / "users_models.py").write_text(
        "from torch import nn\n"
        "def plain(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def sized(*, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
        "def passed_on(weights=None, **options): return sized(**options)\n"
        "def none(): return None\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "users_models", raising=False)


@pytest.mark.parametrize("function", ["plain", "sized", "passed_on"])
def test_a_users_model_comes_by_import_path_with_weights_of_its_seed(users_module, function):
    state = torch.get_rng_state()
    classes = 10 if function == "plain" else 4

    one, same, other = (
        build_model(f"users_models:{function}", (1, 8, 8), classes, seed) for seed in (0, 0, 1)
    )

    assert torch.equal(torch.get_rng_state(), state)
    assert one[1].weight.shape == (classes, 64)
    assert torch.equal(one[1].weight, same[1].weight)
    assert not torch.equal(one[1].weight, other[1].weight)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("users_models", ValueError, "model: expected one of .*or package.module:function"),
        ("no_such_module:f", ValueError, "there is no module 'no_such_module'"),
        ("users_models:absent", ValueError, "users_models has no 'absent'"),
        ("users_models:number", ValueError, "users_models:number is no function"),
        ("users_models:none", TypeError, "to return a torch.nn.Module, got NoneType"),
    ],
)
def test_what_is_no_model_is_refused_in_words(users_module, path, error, words):
    with pytest.raises(error, match=words):
        build_model(path, (1, 8, 8), 10, 0)


def test_a_module_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_models.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match=r"broken_models cannot be imported: operator nms"):
        build_model("broken_models:resnet", (1, 8, 8), 10, 0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(8, 10), r"expected outputs \(2, 10\) for inputs \(2, 1, 8, 8\), got \(2, 1, 8"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), r"expected outputs \(2, 10\).*\(2, 9\)"),
        (nn.Conv2d(3, 10, 3), r"expected one that takes inputs \(2, 1, 8, 8\), got .*channels"),
        (nn.LSTM(8, 10), "model: expected one that takes inputs"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_words(model, words):
    with pytest.raises(ValueError, match=words):
        check_fit(model, torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), 10)


def test_trying_a_model_changes_nothing_in_it():
    model = build_model("resnet20", (1, 8, 8), 10, 0)
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())

    check_fit(model, torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), 10)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not model.layer1[0].training
    assert model.layer2[0].training


@pytest.mark.parametrize(
    ("model", "kind"),
    [("lstm", "images"), ("mlp", "text"), ("convnet", "teacher-mlp"), ("mlp", "teacher-linear")],
)
def test_models_refuse_other_kinds_of_data(model, kind):
    with pytest.raises(ValueError, match=f"model: '{model}' takes .*, not {kind}; expected one of"):
        check_model(model, kind)


def test_models_take_the_kinds_of_data_that_they_are_for():
    for model, kind in [("vit", "images"), ("lstm", "text"), ("linear", "teacher-linear")]:
        check_model(model, kind)
    check_model("package.module:function", "text")
