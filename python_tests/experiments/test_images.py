"""Published sets of images, on small files of the true format that the tests write."""

import builtins
import gzip
import hashlib
import pickle
import struct
import sys

import numpy as np
import pytest
import torch

from fullspectrum_ext.experiments import RunFolder, TrainConfig, train
from fullspectrum_ext.experiments.data import DATASETS, load_data
from fullspectrum_ext.experiments.data.augment import Augment

try:
    import torchvision
except (ImportError, RuntimeError):  # the latter beside a torch of another build
    torchvision = None

needs_torchvision = pytest.mark.skipif(
    torchvision is None, reason="needs torchvision, which imports beside a CUDA build of torch"
)
PUBLISHED = ["cifar10", "cifar100", "mnist", "fashion-mnist", "tiny-imagenet"]


# ---- without torchvision or files ----------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_torchvision_it_is_said_how_to_get_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)

    with pytest.raises(ValueError, match=r"torchvision is needed.*'fullspectrum-ext\[data\]'"):
        load_data(name)


def test_a_torchvision_of_another_build_is_named_as_such(monkeypatch):
    whole = builtins.__import__

    def refusing(name, *arguments):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return whole(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ValueError, match=r"cannot be imported beside this torch .*nms.*builds"):
        load_data("cifar10")


@needs_torchvision
@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_files_are_an_error_that_says_how_to_get_them(name, tmp_path):
    with pytest.raises(ValueError, match=r"data: .* is missing; get .*or say where it is") as found:
        load_data(name, str(tmp_path))

    assert str(tmp_path) in str(found.value)


# ---- writing the formats -------------------------------------------------------------------------


def write_cifar(folder, kind, count, classes):
    """Pickled batches as the authors published them; their checksums are told to torchvision."""
    key = "fine_labels" if classes == 100 else "labels"
    digests, images, labels = {}, {}, {}
    files = [*(name for name, _ in kind.train_list), *(name for name, _ in kind.test_list)]
    (folder / kind.base_folder).mkdir()
    for name in files:
        images[name] = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        labels[name] = [i % classes for i in range(count)]
        content = {"data": images[name].reshape(count, -1).numpy(), key: labels[name]}
        write(folder / kind.base_folder / name, pickle.dumps(content), digests)
    meta = pickle.dumps({kind.meta["key"]: [str(label) for label in range(classes)]})
    write(folder / kind.base_folder / kind.meta["filename"], meta, digests)
    return digests, images, labels


def write(file, content, digests):
    file.write_bytes(content)
    digests[file.name] = hashlib.md5(content).hexdigest()


def tell(monkeypatch, kind, digests):
    for field in ("train_list", "test_list"):
        entries = [[name, digests[name]] for name, _ in getattr(kind, field)]
        monkeypatch.setattr(kind, field, entries)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": digests[kind.meta["filename"]]})


def write_mnist(folder, kind, counts):
    """The four IDX files: a magic number, sizes, bytes."""
    raw = folder / kind / "raw"
    raw.mkdir(parents=True)
    found = []
    for part, count in zip(("train", "t10k"), counts, strict=True):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        head = struct.pack(">4i", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.numpy().tobytes())
        head = struct.pack(">2i", 2049, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.numpy().tobytes())
        found.append((images, labels))
    return raw, found


def write_tiny_imagenet(folder, words, count):
    """JPEG files, of which one is grey, and the list of the validation part's classes."""
    from PIL import Image

    root = folder / "tiny-imagenet-200"
    lines = []
    for label, word in enumerate(words):
        (root / "train" / word / "images").mkdir(parents=True)
        for i in range(count):
            mode, shape = ("L", (64, 64)) if i == 0 else ("RGB", (64, 64, 3))
            pixels = np.full(shape, 20 * label + i, dtype=np.uint8)
            Image.fromarray(pixels, mode).save(
                root / "train" / word / "images" / f"{word}_{i}.JPEG", quality=95
            )
    (root / "val" / "images").mkdir(parents=True)
    for i, word in enumerate(reversed(words)):
        pixels = np.full((64, 64, 3), 200 + i, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "val" / "images" / f"val_{i}.JPEG", quality=95)
        lines.append(f"val_{i}.JPEG\t{word}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    kind = getattr(torchvision.datasets, request.param.upper())
    classes = int(request.param.removeprefix("cifar"))
    digests, images, labels = write_cifar(tmp_path, kind, 40 * classes // 10, classes)
    tell(monkeypatch, kind, digests)
    return request.param, kind, tmp_path, images, labels


# ---- reading them --------------------------------------------------------------------------------


@needs_torchvision
def test_cifar_is_read_as_bytes_and_split_by_class(cifar):
    name, kind, folder, images, labels = cifar

    dataset = load_data(name, str(folder))

    files = [file for file, _ in kind.train_list]
    whole = torch.cat([images[file] for file in files])
    y = torch.tensor(sum((labels[file] for file in files), []))
    assert dataset.shape == DATASETS[name].shape
    assert dataset.classes == int(name.removeprefix("cifar"))
    assert dataset.train.x.dtype == torch.uint8
    assert dataset.train.augment == Augment(4)
    assert torch.equal(dataset.test.x, images[kind.test_list[0][0]])
    assert dataset.test.augment is None
    for label in range(dataset.classes):  # every tenth of a class validates
        members = (y == label).nonzero().squeeze(1)
        validation = members[9::10]
        assert torch.equal(dataset.validation.x[dataset.validation.y == label], whole[validation])
        train = members[torch.arange(len(members)) % 10 != 9]
        assert torch.equal(dataset.train.x[dataset.train.y == label], whole[train])


@needs_torchvision
def test_cut_cifar_is_refused_and_never_unpickled(cifar):
    name, kind, folder, _, _ = cifar
    file = folder / kind.base_folder / kind.train_list[0][0]
    file.write_bytes(file.read_bytes()[:-10])

    with pytest.raises(ValueError, match=f"{kind.base_folder} is cut short or damaged"):
        load_data(name, str(folder))


@needs_torchvision
@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_is_read_as_bytes(name, kind, tmp_path):
    _, ((images, labels), (test_images, test_labels)) = write_mnist(tmp_path, kind, (200, 30))

    dataset = load_data(name, str(tmp_path))

    assert dataset.shape == DATASETS[name].shape
    assert dataset.train.augment is None
    assert (len(dataset.train.y), len(dataset.validation.y)) == (180, 20)
    held_out = torch.arange(200) // 10 % 10 == 9
    assert torch.equal(dataset.validation.x.squeeze(1), images[held_out])
    assert torch.equal(dataset.train.x.squeeze(1), images[~held_out])
    assert torch.equal(dataset.train.y, labels[~held_out].long())
    assert torch.equal(dataset.test.x.squeeze(1), test_images)
    assert torch.equal(dataset.test.y, test_labels.long())


@needs_torchvision
@pytest.mark.parametrize("damage", ["cut", "empty", "zipped"])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_mnist_is_refused(file, damage, tmp_path):
    raw, _ = write_mnist(tmp_path, "MNIST", (20, 20))
    content = (raw / file).read_bytes()
    damaged = {"cut": content[:-5], "empty": b"", "zipped": gzip.compress(content)}[damage]
    (raw / file).write_bytes(damaged)

    with pytest.raises(ValueError, match="MNIST/raw is cut short or damaged"):
        load_data("mnist", str(tmp_path))


@needs_torchvision
def test_tiny_imagenet_is_read_from_its_folders(tmp_path):
    write_tiny_imagenet(tmp_path, ["n01", "n02", "n03"], 10)

    dataset = load_data("tiny-imagenet", str(tmp_path))

    assert dataset.shape == (3, 64, 64)
    assert dataset.classes == 3
    assert dataset.train.augment == Augment(4)
    assert dataset.train.y.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert dataset.validation.y.tolist() == [0, 1, 2]
    grey = dataset.train.x[[0, 9, 18]].float().mean((1, 2, 3))
    assert torch.allclose(grey, torch.tensor([0.0, 20.0, 40.0]), atol=1)
    validation = dataset.validation.x.float().mean((1, 2, 3))
    assert torch.allclose(validation, torch.tensor([9.0, 29.0, 49.0]), atol=1)
    assert dataset.test.y.tolist() == [2, 1, 0]
    test = dataset.test.x.float().mean((1, 2, 3))
    assert torch.allclose(test, torch.tensor([200.0, 201.0, 202.0]), atol=1)


@needs_torchvision
@pytest.mark.parametrize("damage", ["image", "annotations", "unknown class", "size", "train"])
def test_damaged_tiny_imagenet_is_refused(damage, tmp_path):
    from PIL import Image

    root = write_tiny_imagenet(tmp_path, ["n01", "n02"], 2)
    image = root / "train" / "n02" / "images" / "n02_1.JPEG"
    words = "tiny-imagenet-200 is cut short or damaged"
    if damage == "image":
        image.write_bytes(image.read_bytes()[:200])
        words = r"n02_1\.JPEG is missing or cut short"
    elif damage == "annotations":
        (root / "val" / "val_annotations.txt").unlink()
    elif damage == "unknown class":
        (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\t0\t0\t1\t1\n")
    elif damage == "size":
        Image.fromarray(np.zeros((32, 64, 3), dtype=np.uint8)).save(image)
        words = r"n02_1\.JPEG: expected 64 x 64 pixels, got \(32, 64\)"
    else:
        (root / "train").rename(root / "other")

    with pytest.raises(ValueError, match=words):
        load_data("tiny-imagenet", str(tmp_path))


@needs_torchvision
@pytest.mark.parametrize("cifar", ["cifar10"], indirect=True)
def test_a_job_on_cifar_repeats_bit_for_bit_and_resumes(cifar, monkeypatch):
    from fullspectrum_ext.experiments import suite

    name, _, folder, _, _ = cifar
    config = TrainConfig(
        data=name,
        data_path=str(folder),
        model="convnet",
        methods=("snip",),
        seeds=(0,),
        epochs=2,
        batch_size=60,
    )
    (whole,) = train(config, RunFolder(folder / "whole"))["runs"]

    append, left = suite.append_record, [1]

    def interrupted(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        append(*arguments)

    monkeypatch.setattr(suite, "append_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, RunFolder(folder / "run"))
    monkeypatch.setattr(suite, "append_record", append)
    (resumed,) = train(config, RunFolder(folder / "run"))["runs"]

    for key in ("kept", "test_loss", "norm_after", "anchor_distance"):
        assert resumed[key] == whole[key]


@needs_torchvision
def test_models_of_torchvision_come_by_import_path(tmp_path):
    config = TrainConfig(
        model="torchvision.models:vgg11", methods=("magnitude",), seeds=(0,), epochs=1
    )
    with pytest.raises(ValueError, match="model: expected one that takes inputs"):  # one channel
        train(config, RunFolder(tmp_path / "run"))
