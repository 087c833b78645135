import dataclasses

import pytest
import torch

from fullspectrum_ext.experiments.data import DATASETS, Batches, FirstPass, Split, load_data
from fullspectrum_ext.experiments.data.augment import Augment, Normalise
from fullspectrum_ext.experiments.data.split import by_turns
from fullspectrum_ext.pruning.batches import Batches as PruningBatches


def test_digits_are_split_by_class_into_disjoint_parts():
    digits = load_data("digits")
    parts = (digits.train, digits.validation, digits.test)

    assert sum(len(part.y) for part in parts) == 1797
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


@pytest.mark.parametrize("name", ["digits", "teacher-linear", "teacher-mlp", "text"])
def test_shapes_are_known_before_loading(name):
    dataset = load_data(name)

    assert dataset.shape == DATASETS[name].shape
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.y.dtype == torch.int64
        assert part.y.min() >= 0
        assert part.y.max() < dataset.classes


@pytest.mark.parametrize("name", ["text", "teacher-linear", "teacher-mlp"])
def test_data_are_the_same_each_time(name):
    one, other = load_data(name), load_data(name)

    assert torch.equal(one.train.x, other.train.x)
    assert torch.equal(one.test.y, other.test.y)


def test_turns_go_through_each_class():
    y = torch.tensor([2, 0, 2, 2, 0, 2])

    assert by_turns(y, 3).tolist() == [0, 0, 1, 2, 1, 0]


# ---- batches -------------------------------------------------------------------------------------


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


def bytes_split(count=12, **settings):
    x = torch.randint(256, (count, 3, 6, 5), dtype=torch.uint8)
    return Split(x, torch.arange(count), Normalise((0.5,) * 3, (0.25,) * 3), **settings)


def test_images_stay_bytes_and_are_decoded_batch_by_batch():
    split = bytes_split()

    for x, y in Batches(split, 5, 0):
        assert torch.allclose(x, (split.x[y] / 255 - 0.5) / 0.25)
    assert split.x.dtype == torch.uint8
    x, y = split.first(4)
    assert torch.equal(x, torch.cat([x for x, _ in split.in_order(3)])[:4])
    assert y.tolist() == [0, 1, 2, 3]


def test_what_is_judged_is_not_augmented():
    split = bytes_split(augment=Augment(2))

    x = torch.cat([x for x, _ in split.in_order(5)])

    assert torch.equal(x, split.decode(split.x))
    assert split.chosen(torch.tensor([1])).augment is None


def test_augmented_batches_go_on_from_a_saved_state():
    split = bytes_split(augment=Augment(2))
    batches = Batches(split, 5, 0)
    list(batches)
    state = batches.generator.get_state()
    second = list(batches)

    again = Batches(split, 5, 7)
    again.generator.set_state(state)

    for (x, y), (x_again, y_again) in zip(second, again, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)


def test_pruning_sees_the_first_pass_each_time():
    split = bytes_split(augment=Augment(2))
    first = FirstPass(split, 5, 3)

    for expected, *seen in zip(Batches(split, 5, 3), first, first, strict=True):
        assert all(torch.equal(x, expected[0]) for x, _ in seen)
        assert all(torch.equal(y, expected[1]) for _, y in seen)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_drawn_batches_are_those_that_a_list_would_give(count):
    first = FirstPass(bytes_split(), 5, 3)

    drawn, from_list = (
        PruningBatches(source).draw(count, torch.Generator().manual_seed(4))
        for source in (first, list(first))
    )

    assert len(drawn) == min(count, 3)
    for (x, y), (x_list, y_list) in zip(drawn, from_list, strict=True):
        assert torch.equal(x, x_list)
        assert torch.equal(y, y_list)


def test_samples_move_with_what_belongs_to_them():
    split = bytes_split(augment=Augment())
    moved = split.to(torch.device("meta"))

    assert moved.x.is_meta
    assert moved.y.is_meta
    assert moved.decode is split.decode
    assert moved.augment is split.augment


# ---- augmentation --------------------------------------------------------------------------------


def shifted_and_mirrored(image, padding):
    """Every image that one may become: cut from it with black around, as it is and mirrored."""
    channels, height, width = image.shape
    framed = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    framed[:, padding : padding + height, padding : padding + width] = image
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            cut = framed[:, top : top + height, left : left + width]
            yield cut
            yield cut.flip(2)


def test_augmented_images_are_shifts_and_mirror_images_of_all_kinds():
    images = torch.randint(1, 256, (600, 2, 4, 3), dtype=torch.uint8)

    found = Augment(1)(images, torch.Generator().manual_seed(0))

    assert found.dtype == torch.uint8
    kinds = []
    for image, changed in zip(images, found, strict=True):
        equal = [torch.equal(changed, other) for other in shifted_and_mirrored(image, 1)]
        assert any(equal)
        kinds.append(equal.index(True))
    counts = torch.tensor(kinds).bincount(minlength=18)
    assert counts.min() > 10  # 33 on average


def test_augmentation_follows_its_generator_alone():
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    state = torch.get_rng_state()

    one, same, other = (
        Augment()(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_augmentation_can_be_left_out(monkeypatch):
    split = bytes_split(augment=Augment())
    dataset = load_data("digits")
    images = dataclasses.replace(dataset, train=split)
    monkeypatch.setitem(
        DATASETS, "digits", dataclasses.replace(DATASETS["digits"], load=lambda _: images)
    )

    assert load_data("digits").train.augment == Augment()
    assert load_data("digits", augment=False).train.augment is None


# ---- text ----------------------------------------------------------------------------------------


def test_text_asks_for_the_next_character_at_each_place(tmp_path):
    file = tmp_path / "text"
    content = "".join(chr(ord("a") + i % 26) for i in range(64 * 20 + 30))
    file.write_text(content)

    dataset = load_data("text", str(file))

    parts = (dataset.train, dataset.validation, dataset.test)
    assert [tuple(part.x.shape) for part in parts] == [(16, 64), (2, 64), (2, 64)]
    assert dataset.train.x.dtype == torch.uint8
    assert dataset.classes == 26
    codes = torch.cat([part.x.flatten() for part in parts])
    assert "".join(chr(ord("a") + code) for code in codes.tolist()) == content[: 64 * 20]
    for part in parts:
        assert torch.equal(part.y, (part.x.long() + 1) % 26)
    x, _ = dataset.train.first(2)
    assert x.dtype == torch.float32
    assert torch.equal(x.argmax(2), dataset.train.x[:2].long())
    assert torch.equal(x.sum(2), torch.ones(2, 64))


def test_the_bundled_text_is_shakespeare():
    dataset = load_data("text")

    assert dataset.classes == 61
    assert (
        sum(part.y.numel() for part in (dataset.train, dataset.validation, dataset.test)) == 99840
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "expected a text file, there is none"),
        (b"\xff\xfe\x00", "expected text in UTF-8"),
        (b"a" * 640, "expected at least 641 characters, got 640"),
        ("".join(map(chr, range(500, 1200))).encode(), "at most 256 different characters, got 700"),
    ],
)
def test_what_is_no_fitting_text_is_refused_in_words(tmp_path, content, words):
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ValueError, match=words):
        load_data("text", str(file))
