import json

import pytest
import torch
from torch import nn

from fullspectrum_ext.nn import (
    MaskedConv2d,
    MaskedLinear,
    SparseLinear,
    backend,
    choose_backends,
    sparsify,
    timing,
)


@pytest.fixture(autouse=True)
def cache_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fullspectrum_ext" / "backends.json"


@pytest.fixture
def stopwatch(monkeypatch):
    """Says how long a layer takes, and remembers what was asked."""

    class Stopwatch:
        sparse, masked = [1.0], [2.0]
        asked = []

        def __call__(self, candidates, use, *, seconds):
            self.asked.append((dict(candidates), use))
            return {"sparse": self.sparse, "masked": self.masked}

    stopwatch = Stopwatch()
    stopwatch.asked = []
    monkeypatch.setattr(backend, "time_steps", stopwatch)
    return stopwatch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 8)
        self.unused = nn.Linear(2, 2)

    def forward(self, x, scale=1.0):
        x = self.drop(self.norm(self.conv(x)))
        x = self.head(x.mean((2, 3)))
        return self.head(x[:2].detach()) * scale


def masks_of(model, density=0.25):
    return {
        name: torch.arange(weight.numel()).view(weight.shape) % 4 < 4 * density
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }


# ---- how layers are used -------------------------------------------------------------------------


def test_the_shapes_of_a_layers_calls_are_those_of_one_forward_pass():
    model = Net()
    x = torch.randn(4, 3, 9, 9).to(memory_format=torch.channels_last)
    layers = {name: model.get_submodule(name) for name in ("conv", "head", "unused")}

    uses = timing.layer_uses(model, layers, (x, 2.0))

    float32, cpu = torch.float32, torch.device("cpu")
    assert uses == {
        "conv": [timing.LayerUse((4, 3, 9, 9), float32, cpu, True, False)],
        "head": [
            timing.LayerUse((4, 8), float32, cpu, False, True),
            timing.LayerUse((2, 8), float32, cpu, False, False),
        ],
        "unused": [],
    }


def test_looking_at_a_model_changes_nothing_in_it():
    model = Net()
    model.drop.eval()
    modes = [module.training for module in model.modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x = torch.randn(4, 3, 9, 9)
    random_state = torch.get_rng_state()
    model.norm.register_forward_hook(lambda *_: torch.rand(1) and None)  # it may draw numbers

    with torch.no_grad():
        choose_backends(model, masks_of(model), x)
        assert not torch.is_grad_enabled()

    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_that_fails_is_left_as_it_was():
    model = Net()
    with pytest.raises(ValueError, match="example: the model cannot be run with it"):
        choose_backends(model, masks_of(model), torch.randn(4, 2, 9, 9))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_steps_are_timed_forward_and_backward_in_turns():
    seen = []

    class Layer(nn.Linear):
        def forward(self, x):
            seen.append((id(self), x.requires_grad))
            y = super().forward(x)
            y.register_hook(lambda grad: seen.append((id(self), "backward")))
            return y

    candidates = {"a": Layer(3, 2), "b": Layer(3, 2)}
    use = timing.LayerUse((5, 3), torch.float32, torch.device("cpu"), False, True)

    times = timing.time_steps(candidates, use, seconds=60, rounds=3)

    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert all(second > 0 for seconds in times.values() for second in seconds)
    a, b = (id(layer) for layer in candidates.values())
    assert seen[1:] == [(a, True), (a, "backward"), (b, True), (b, "backward")] * 4
    assert all(parameter.grad is None for parameter in candidates["a"].parameters())


def test_time_is_bounded():
    layer = nn.Linear(2, 2)
    use = timing.LayerUse((1, 2), torch.float32, torch.device("cpu"), False, False)
    assert len(timing.time_steps({"one": layer}, use, seconds=0)["one"]) == 1


# ---- measured choices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparse", "masked", "expected"),
    [
        ([1.0, 1.0, 1.0, 3.0], [2.0] * 4, "sparse"),
        ([1.0, 1.0, 3.0, 3.0], [2.0] * 4, "masked"),
        ([2.0], [2.0], "masked"),
    ],
)
def test_sparse_must_be_faster_in_three_of_four_rounds(stopwatch, sparse, masked, expected):
    stopwatch.sparse, stopwatch.masked = sparse, masked
    model = nn.Sequential(nn.Linear(4, 4))
    mask = {"0.weight": torch.eye(4)}

    choice = choose_backends(model, mask, torch.ones(2, 4))["0.weight"]
    sparsify(model, mask, example=torch.ones(2, 4))

    assert choice.backend == expected
    assert choice.masked_seconds == 2.0
    assert type(model[0]) is {"sparse": SparseLinear, "masked": MaskedLinear}[expected]


def test_calls_of_one_layer_count_together_and_unused_layers_go_by_the_rule(stopwatch):
    model = Net()
    choices = choose_backends(model, masks_of(model), torch.randn(4, 3, 9, 9))

    assert [use.shape for _, use in stopwatch.asked] == [(4, 3, 9, 9), (4, 8), (2, 8)]
    assert type(stopwatch.asked[0][0]["masked"]) is MaskedConv2d
    assert choices["head.weight"] == ("sparse", 2.0, 4.0)
    assert choices["unused.weight"] == ("masked", None, None)
    assert model.head.weight.all()  # candidates are copies


def test_a_kind_of_layer_is_measured_once(stopwatch, cache_file):
    def choose(width=4, batch=2, density=0.25, **options):
        model = nn.Sequential(nn.Linear(width, width, **options))
        return choose_backends(model, masks_of(model, density), torch.ones(batch, width))

    first = choose()
    assert len(stopwatch.asked) == 1
    stopwatch.sparse = [9.0]
    assert choose() == first
    assert len(stopwatch.asked) == 1
    for number, change in enumerate(
        ({"width": 8}, {"batch": 3}, {"density": 0.5}, {"bias": False}), start=2
    ):
        choose(**change)
        assert len(stopwatch.asked) == number
    with torch.autocast("cpu", torch.bfloat16):
        choose()
    assert len(stopwatch.asked) == 6
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        choose()
    finally:
        torch.set_num_threads(threads)
    assert len(stopwatch.asked) == 7
    assert len(json.loads(cache_file.read_text())) == 7


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not JSON",
        "[]",
        '{"key": 3}',
        '{"key": {"backend": "fast", "sparse_seconds": 1, "masked_seconds": 1}}',
        '{"key": {"backend": "sparse", "sparse_seconds": NaN, "masked_seconds": 1}}',
        '{"key": {"backend": "sparse", "sparse_seconds": "1", "masked_seconds": 1}}',
        b"\xff",
    ],
)
def test_a_broken_cache_is_written_anew(stopwatch, cache_file, content):
    cache_file.parent.mkdir()
    cache_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    model = nn.Sequential(nn.Linear(4, 4))

    choose_backends(model, masks_of(model), torch.ones(2, 4))

    assert len(stopwatch.asked) == 1
    (choice,) = json.loads(cache_file.read_text()).values()
    assert choice == {"backend": "sparse", "sparse_seconds": 1.0, "masked_seconds": 2.0}


def test_nowhere_to_write_the_cache_is_no_error(stopwatch, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = nn.Sequential(nn.Linear(4, 4))
    assert choose_backends(model, masks_of(model), torch.ones(2, 4))["0.weight"].backend == "sparse"


def test_real_times_are_within_their_bound():
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    choices = choose_backends(model, masks_of(model, 0.25), torch.randn(32, 256))
    for choice in choices.values():
        assert 0 < choice.sparse_seconds < 0.3
        assert 0 < choice.masked_seconds < 0.3


# ---- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "sparsity", "expected"),
    [
        (nn.Linear(256, 256), 0.75, "sparse"),
        (nn.Linear(256, 256), 0.5, "sparse"),
        (nn.Linear(256, 256), 0.25, "masked"),
        (nn.Linear(32, 32), 0.75, "masked"),
    ],
)
def test_without_an_example_size_and_sparsity_decide(stopwatch, layer, sparsity, expected):
    model = nn.Sequential(layer)
    choices = choose_backends(model, masks_of(model, 1 - sparsity))
    assert choices == {"0.weight": (expected, None, None)}
    assert not stopwatch.asked
