"""The example of torchao's sparsity README, and its sparsifier beside torch's own."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.compat.torchao import WeightNormSparsifier, block_mask


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def test_the_example_of_the_readme():
    model = network().to(torch.bfloat16)
    weights = [model[0].weight, model[2].weight]
    before = [weight.detach().clone() for weight in weights]
    sparse_config = []
    for name, mod in model.named_modules():
        if isinstance(mod, torch.nn.Linear):
            sparse_config.append({"tensor_fqn": f"{name}.weight"})

    sparsifier = WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
    )
    sparsifier.prepare(model, sparse_config)
    sparsifier.step()
    sparsifier.squash_mask()

    for mod, weight, dense in zip((model[0], model[2]), weights, before, strict=True):
        # dense, with 2 of 4 kept, the larger ones; still the parameter it was
        assert type(mod) is nn.Linear
        assert mod.weight is weight
        groups, magnitudes = (weight != 0).view(-1, 4), dense.float().abs().view(-1, 4)
        assert (groups.sum(1) == 2).all()
        smallest_kept = magnitudes.masked_fill(~groups, torch.inf).min(1).values
        assert (smallest_kept >= magnitudes.masked_fill(groups, 0).max(1).values).all()
        assert torch.equal(weight, dense * (weight != 0))
    # what the README ends with: other storage for each weight
    for name, mod in model.named_modules():
        if isinstance(mod, torch.nn.Linear):
            mod.weight = nn.Parameter(mod.weight.float().to_sparse_csr())
            assert mod.weight._nnz() == before[0 if name == "0" else 1].numel() // 2


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(
    ("shape", "zeros", "sizes"),
    [
        ((1, 1), None, (20, 12)),
        ((1, 1), None, (7, 11)),
        ((1, 4), None, (20, 12)),
        ((1, 4), None, (7, 11)),
        ((2, 3), None, (7, 11)),
        # torch's own fails where a block reaches beyond the edge
        ((1, 4), 2, (20, 12)),
        ((4, 1), 3, (20, 12)),
        ((3, 5), 7, (20, 12)),
    ],
)
def test_masks_are_those_of_torch(level, shape, zeros, sizes):
    pruning = pytest.importorskip("torch.ao.pruning")
    found = []
    for sparsifier in (WeightNormSparsifier, pruning.WeightNormSparsifier):
        model = nn.Sequential(nn.Linear(*sizes))
        torch.manual_seed(1)
        nn.init.normal_(model[0].weight)
        made = sparsifier(level, shape, zeros)
        made.prepare(model, [{"tensor_fqn": "0.weight"}])
        made.step()
        found.append(model[0].parametrizations.weight[0].mask.bool())
    assert torch.equal(*found)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    level=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    data=st.data(),
)
def test_blocks_at_the_edges_and_equal_norms(rows, columns, height, width, level, data):
    zeros = data.draw(st.integers(0, height * width))
    values = data.draw(
        st.lists(st.integers(0, 2), min_size=rows * columns, max_size=rows * columns)
    )
    norms = torch.tensor(values, dtype=torch.float32).view(rows, columns)
    mask = block_mask(norms, level, (height, width), zeros)
    tiles = [
        (slice(top, min(top + height, rows)), slice(left, min(left + width, columns)))
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]
    count = min(round(level * len(tiles)), len(tiles) - (level < 1))
    # by hand: of equal means the last blocks, of equal norms the last weights
    order = sorted(range(len(tiles)), key=lambda i: (float(norms[tiles[i]].mean()), -i))
    expected = torch.ones(rows, columns, dtype=torch.bool)
    for i in order[:count]:
        tile = norms[tiles[i]]
        flat = sorted(range(tile.numel()), key=lambda j: (float(tile.reshape(-1)[j]), -j))
        part = torch.ones(tile.numel(), dtype=torch.bool)
        part[flat[:zeros]] = False
        expected[tiles[i]] = part.view(tile.shape)
    assert torch.equal(mask, expected)


def test_training_in_between_moves_what_is_kept_and_nothing_else():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sparsifier = WeightNormSparsifier(sparsity_level=0.0, sparse_block_shape=(1, 1))
    sparsifier.prepare(model, None)
    assert [group["tensor_fqn"] for group in sparsifier.groups] == ["0.weight", "2.weight"]
    inputs, targets = torch.randn(32, 16), torch.randint(8, (32,))

    def loss():
        return nn.functional.cross_entropy(model(inputs), targets)

    for level in (0.0, 0.5, 0.8):
        for group in sparsifier.groups:
            group["sparsity_level"] = level
        sparsifier.step()
        for _ in range(5):
            optimizer.zero_grad()
            before = loss()
            before.backward()
            assert (
                not model[0]
                .parametrizations.weight.original.grad[~sparsifier.masks["0.weight"]]
                .any()
            )
            optimizer.step()
        assert sparsifier.masks.nnz == sum(round((1 - level) * n) for n in (384, 192))
        # momentum and decay go on moving what lies under a mask, and the network does not see it
        for name, mask in sparsifier.masks.items():
            assert torch.equal(model[int(name[0])].weight != 0, mask)
        assert loss() < before
    output = model(inputs)
    sparsifier.squash_mask()
    assert torch.equal(model(inputs), output)
    assert len(list(model.parameters())) == 4
    assert all(
        any(parameter is trained for trained in optimizer.param_groups[0]["params"])
        for parameter in model.parameters()
    )


@pytest.mark.parametrize("backend", ["sparse", "masked"])
def test_squashing_to_a_sparse_model(backend):
    model = network()
    sparsifier = WeightNormSparsifier(0.75, (1, 1))
    sparsifier.prepare(model, [{"tensor_fqn": ".0.weight"}, {"tensor_fqn": "2.weight"}])
    sparsifier.step()
    inputs, masks = torch.randn(4, 16), sparsifier.masks
    output = model(inputs)
    sparsifier.squash_mask(backend=backend)
    kind = fs.nn.SparseLinear if backend == "sparse" else fs.nn.MaskedLinear
    assert type(model[0]) is type(model[2]) is kind
    assert fs.MaskSet.from_model(model) == masks
    assert masks.nnz == (384 + 192) // 4
    torch.testing.assert_close(model(inputs), output)


def test_options_of_one_weight_and_what_is_kept_of_them():
    model = network()
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1))
    config = [
        {"tensor_fqn": "0.weight", "sparsity_level": 1.0, "sparse_block_shape": (2, 2)}
        | {"zeros_per_block": 3},
        {"tensor_fqn": "2.weight"},
    ]
    sparsifier.prepare(model, config)
    sparsifier.step()
    assert sparsifier.masks["0.weight"].sum() == 384 // 4
    assert sparsifier.masks["2.weight"].sum() == 192 // 2
    sparsifier.squash_mask(("sparsity_level",), {"2": ("sparse_block_shape",)})
    assert model[0].sparse_params == {"sparsity_level": 1.0}
    assert model[2].sparse_params == {"sparsity_level": 0.5, "sparse_block_shape": (1, 1)}


def test_convolutions_and_other_norms():
    model = nn.Sequential(nn.Conv2d(4, 6, 3))
    sparsifier = WeightNormSparsifier(0.9, (1, 1), norm=torch.abs)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    kept = sparsifier.masks["0.weight"]
    assert kept.sum() == 216 - round(0.9 * 216)
    original = model[0].parametrizations.weight.original.detach().abs()
    assert original[kept].min() >= original[~kept].max()
    assert WeightNormSparsifier(norm=1)._norm(torch.tensor(-2.0)) == 2


@pytest.mark.parametrize("of_torch", [False, True])
def test_the_state_of_a_sparsifier_goes_round(of_torch):
    maker = WeightNormSparsifier
    if of_torch:
        maker = pytest.importorskip("torch.ao.pruning").WeightNormSparsifier
    config = [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}]
    model, sparsifier = network(), maker(0.5, (1, 4), 2)
    sparsifier.prepare(model, config)
    sparsifier.step()
    output = model(torch.ones(1, 16))

    other, fresh = network(), WeightNormSparsifier(0.1, (1, 1))
    fresh.prepare(other, config)
    fresh.load_state_dict(sparsifier.state_dict())
    assert torch.equal(other(torch.ones(1, 16)), output)
    assert fresh.groups[1]["sparse_block_shape"] == (1, 4)
    masks = fresh.masks
    fresh.step()
    assert fresh.masks == masks
    # the masks are also in the model's state, by the names that torch.ao's layers have
    assert fs.MaskSet.from_state_dict(other.state_dict()) == masks
    third, bare = network(), WeightNormSparsifier()
    bare.prepare(third, config)
    third.load_state_dict(other.state_dict())
    assert bare.masks == masks


def test_a_mask_update_can_be_held_off():
    model, sparsifier = network(), WeightNormSparsifier()
    sparsifier.prepare(model, None)
    sparsifier.enable_mask_update = False
    sparsifier.step()
    assert sparsifier.masks.density == 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("__init__", "sparsity_level sparse_block_shape zeros_per_block norm"),
        ("prepare", "model config"),
        ("step", "use_path"),
        ("squash_mask", "params_to_keep params_to_keep_per_layer"),
        ("load_state_dict", "state_dict strict"),
    ],
)
def test_arguments_stand_where_the_original_has_them(name, parameters):
    found = [
        parameter.name
        for parameter in inspect.signature(getattr(WeightNormSparsifier, name)).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self"
    ]
    assert found == parameters.split()


@pytest.mark.parametrize(
    ("options", "entry", "message"),
    [
        ({"norm": 3}, {}, "norm: expected 1, 2 or a function, got 3"),
        ({"sparsity_level": 1.5}, {}, r"sparsity_level: expected a fraction in \[0, 1\], got 1.5"),
        ({"sparse_block_shape": (0, 4)}, {}, "sparse_block_shape: expected two positive integers"),
        ({"zeros_per_block": 5}, {}, "zeros_per_block: .*5"),
        ({}, {}, 'config: expected {"tensor_fqn": "0.weight"}'),
        ({}, {"tensor_fqn": "1.weight"}, r"config: 1\.weight: expected a parameter of the model"),
        ({}, {"tensor_fqn": "0.bias"}, r"config: 0\.bias: expected a parameter .* with rows"),
        ({}, {"tensor_fqn": "0.weight", "sparsity": 0.5}, "expected options sparsity_level, .*"),
        (
            {},
            {"tensor_fqn": "0.weight", "sparsity_level": -1},
            r"config: 0\.weight: sparsity_level: expected a fraction",
        ),
    ],
)
def test_bad_arguments_are_refused_by_message(options, entry, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        WeightNormSparsifier(**options).prepare(model, [{"tensor_fqn": "2.weight"}, entry])
    assert type(model[2]) is nn.Linear


def test_calls_out_of_order_are_refused_by_message():
    model, sparsifier = network(), WeightNormSparsifier()
    with pytest.raises(TypeError, match="config: expected mappings, got str"):
        sparsifier.prepare(model, ["0.weight"])
    with pytest.raises(RuntimeError, match=r"expected prepare\(model, config\) first"):
        sparsifier.squash_mask()
    sparsifier.prepare(model, None)
    with pytest.raises(ValueError, match="prepare: expected once"):
        sparsifier.prepare(model, None)
    state = sparsifier.state_dict()
    del state["state"]["2.weight"]
    with pytest.raises(ValueError, match=r"expected masks of 0\.weight, 2\.weight, got 0\.weight"):
        sparsifier.load_state_dict(state)
    sparsifier.load_state_dict(state, strict=False)
    state["state"]["0.weight"]["mask"] = torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"expected a mask of \(24, 16\) for 0\.weight"):
        sparsifier.load_state_dict(state, strict=False)
