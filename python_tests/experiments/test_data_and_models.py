import pytest
import torch

from fullspectrum_ext.experiments.data import DATASETS, Batches, Split, load_data
from fullspectrum_ext.experiments.models import MODELS, build_model


def test_digits_are_split_by_class_into_disjoint_parts():
    digits = load_data("digits")
    parts = (digits.train, digits.validation, digits.test)

    assert sum(len(part.y) for part in parts) == 1797
    assert digits.shape == (1, 8, 8)
    assert digits.classes == 10
    for label in range(10):
        train, validation, test = (int((part.y == label).sum()) for part in parts)
        assert 0 <= test - validation <= 1
        assert 0 <= train - 3 * (test - 1) <= 3
    samples = torch.cat([part.x.flatten(1) for part in parts])
    assert samples.min() == 0
    assert samples.max() == 1
    assert samples.unique(dim=0).shape[0] == 1797


def test_digits_without_scikit_learn_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)

    with pytest.raises(
        ValueError, match=r"the data set digits: scikit-learn is needed.*fullspectrum-ext\[digits\]"
    ):
        load_data("digits")


def test_batches_cover_all_samples_in_an_order_that_the_seed_decides():
    split = Split(torch.arange(10.0), torch.arange(10))
    batches, same, other = (Batches(split, 4, seed) for seed in (1, 1, 2))

    first, second = ([y.tolist() for _, y in batches] for _ in range(2))

    assert [len(batch) for batch in first] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(sum(first, [])) == list(range(10))
    assert first != second
    assert [y.tolist() for _, y in same] == first
    assert [y.tolist() for _, y in other] != first


@pytest.mark.parametrize("name", MODELS)
def test_models_depend_on_the_seed_alone(name):
    state = torch.get_rng_state()

    one, same, other = (build_model(name, (1, 8, 8), 10, seed) for seed in (0, 0, 1))

    assert torch.equal(torch.get_rng_state(), state)
    for (key, weight), twin, stranger in zip(
        one.state_dict().items(),
        same.state_dict().values(),
        other.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(weight, twin)
        assert torch.equal(weight, stranger) == ("bn" in key or key.endswith("bias"))
    assert one(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_weights_have_the_variance_of_he():
    weight = build_model("mlp", (1, 8, 8), 10, 0).fc2.weight

    assert weight.var().item() == pytest.approx(2 / 300, rel=0.03)


# fc1 to fc4 by hand; ResNet-20 as in He et al. 2016, table 6 (0.27 M), of width 64 nearly 16 times
# that; VGG-16 on CIFAR with one linear layer is quoted as 14.7 M
@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [
        ("mlp-4096", 4096 * (3072 + 2 * 4096 + 10) + 3 * 4096 + 10, 4),
        ("resnet20", 269_722, 20),
        ("resnet20-64", 4_286_026, 20),
        ("vgg16", 14_724_042, 14),
    ],
)
def test_models_have_the_published_size(name, parameters, layers):
    with torch.device("meta"):
        model = MODELS[name]((3, 32, 32), 10)

    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    assert sum(isinstance(module, kinds) for module in model.modules()) == layers
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)


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
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 7, 8)

    found = block(x)

    assert torch.equal(found[:, 8:24], x[:, :, ::2, ::2])
    assert not found[:, :8].any()
    assert not found[:, 24:].any()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 5, 7), (1, 1, 1)])
@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_image_models_take_images_of_any_size(name, shape):
    with torch.device("meta"):
        model = MODELS[name](shape, 3)
    assert model(torch.zeros(2, *shape, device="meta")).shape == (2, 3)


def test_registries_name_the_defaults():
    assert "digits" in DATASETS
    assert {"mlp", "convnet"} <= set(MODELS)
