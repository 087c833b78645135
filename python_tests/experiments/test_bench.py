import pytest
import torch
from torch import nn

from fullspectrum_ext.experiments import bench


def half_time(candidates, use, *, seconds):
    """A dense step takes 4 s and a masked one 5 s, a sparse one 1 s and 8 s times its density."""
    density = candidates["sparse"].nnz / candidates["dense"].weight.numel()
    return {"dense": [4.0], "masked": [5.0], "sparse": [1 + 8 * density]}


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(bench, "time_steps", half_time)
    return bench.bench_model("convnet", shape=(1, 8, 8), batch=4, sparsities=[0.25, 0.9])


def test_every_layer_has_its_row_at_every_sparsity(found):
    names = ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert [(row["layer"], row["sparsity"]) for row in found["rows"]] == [
        (f"{name}.weight", sparsity) for name in names for sparsity in (0.25, 0.9)
    ]
    conv2 = found["rows"][3]
    assert conv2["input"] == [[4, 32, 8, 8]]
    assert conv2["choice"] == "sparse"
    assert found["rows"][2]["choice"] == "masked"
    assert conv2["seconds"]["dense"] == 4
    assert conv2["seconds"]["sparse"] == pytest.approx(1.8, rel=0.1)
    # the straight line meets 4 s at a density of 3/8
    assert all(row["break_even"] == pytest.approx(0.625, abs=1e-6) for row in found["rows"])
    weights, kept = 64 * 32 * 9, 0.1 * 64 * 32 * 9
    assert conv2["bytes"]["dense"] == 16 * weights + 16 * 64
    assert conv2["bytes"]["masked"] == 17 * weights + 16 * 64
    # three indices beside each value, one entry a row and a column
    assert conv2["bytes"]["sparse"] == pytest.approx(28 * kept + 4 * (65 + 289) + 16 * 64, rel=0.05)


def test_totals_are_sums_and_take_what_was_chosen(found):
    low, high = found["totals"]
    assert low["seconds"] == {
        "dense": 20,
        "masked": 25,
        "sparse": pytest.approx(35, rel=0.05),
        "auto": 25,
    }
    assert high["seconds"]["auto"] == high["seconds"]["sparse"]
    rows = [row["bytes"]["sparse"] for row in found["rows"] if row["sparsity"] == 0.9]
    assert high["bytes"]["sparse"] == high["bytes"]["auto"] == sum(rows)


@pytest.mark.parametrize(
    ("sparse", "expected"), [([0.6, 0.6], 0.0), ([1.0, 2.0], None), ([0.1, 2.1], 0.55)]
)
def test_break_even(sparse, expected):
    cells = {
        sparsity: {"density": 1 - sparsity, "seconds": {"dense": 1.0, "sparse": seconds}}
        for sparsity, seconds in zip((1.0, 0.0), sparse, strict=True)
    }
    assert bench._break_even(cells) == pytest.approx(expected)


def test_layers_of_equal_shapes_are_measured_once(monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return half_time(*args, **kwargs)

    monkeypatch.setattr(bench, "time_steps", counted)
    found = bench.bench_model("resnet20", shape=(3, 8, 8), batch=2, sparsities=[0.5])
    assert len(found["rows"]) == 20
    # conv1 and fc, three stages, two layers between them
    assert len(calls) == 7 * 2  # at 50 % and at 95 %


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.one(x.flatten(1))


def test_real_times_of_an_imported_model(monkeypatch):
    monkeypatch.setattr(bench, "build_model", lambda *_, **__: Unused())
    threads = torch.get_num_threads()
    found = bench.bench_model("here", shape=(1, 8, 8), batch=2, sparsities=[0.9], threads=1)
    (row,) = found["rows"]  # a layer that is not called costs nothing
    assert row["layer"] == "one.weight"
    assert all(0 < seconds < 1 for seconds in row["seconds"].values())
    assert found["environment"]["threads"] == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsities": [1.0]}, r"sparsity: expected a fraction in \[0, 1\), got 1.0"),
        ({"batch": 0}, "batch, threads: expected at least 1 and 0, got 0 and 0"),
        ({"model": "nothing"}, "model: expected one of mlp, .*, or package.module:function"),
        ({"model": "torch.nn:ReLU"}, "model: expected Linear or Conv2d layers, it has none"),
        ({"shape": (3,), "model": "here"}, "example: the model cannot be run with it"),
    ],
)
def test_wrong_arguments_are_errors_in_words(monkeypatch, change, message):
    if change.get("model") == "here":
        monkeypatch.setattr(bench, "build_model", lambda *_, **__: Unused())
    good = {"model": "mlp", "shape": (1, 8, 8), "batch": 2, "sparsities": [0.9]}
    with pytest.raises(ValueError, match=message):
        bench.bench_model(**{**good, **change})


def test_shapes():
    assert bench.benched_shape(None, None) == (1, 8, 8)
    assert bench.benched_shape("digits", None) == (1, 8, 8)
    assert bench.benched_shape(None, "3, 32,32") == (3, 32, 32)
    for data, shape, message in (
        ("cats", None, "--data: expected one of digits"),
        ("digits", "3,32,32", "--data, --input-shape: expected at most one"),
        (None, "3,x", "--input-shape: expected numbers with commas between, got '3,x'"),
        (None, "3,0,4", "--input-shape: expected sizes of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            bench.benched_shape(data, shape)
