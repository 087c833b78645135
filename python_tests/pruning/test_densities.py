import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext.pruning.densities import erk_densities, layer_counts, total_count


def test_a_half_goes_to_the_even_neighbour():
    assert [total_count([n], 0.5) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]


def test_uniform_by_hand():
    # shares 3.5, 3.5, 2.0 of 9: both halves are equal, the earlier layer gets the weight
    assert layer_counts({"a": (7,), "b": (7,), "c": (4,)}, 0.5, "layer") == {"a": 4, "b": 3, "c": 2}


def test_er_by_hand():
    # raw densities 4/4 and 8/16; 0.25 * 20 = 5 = eps (4 * 1 + 16 * 0.5), eps = 5/12:
    # shares 5/3 and 10/3, rounded down 1 and 3, the larger remainder is the first
    assert layer_counts({"a": (2, 2), "b": (4, 4)}, 0.25, "er") == {"a": 2, "b": 3}


def test_erk_by_hand_with_a_layer_that_becomes_dense():
    # raw: a 5/4 = 1.25, b 20/100 = 0.2. 0.3 * 104 = 31.2 = eps (5 + 20), eps = 1.248, and
    # 1.248 * 1.25 > 1: a is dense. Then eps = (31.2 - 4) / 20 = 1.36 and b has 0.272.
    assert erk_densities([(1, 4), (10, 10)], 0.3) == pytest.approx([1.0, 0.272])


def test_erk_counts_the_kernel_and_er_does_not():
    shapes = {"a": (8, 8, 3, 3), "b": (8, 8, 1, 1)}
    # erk raw 22/576 and 18/64; er raw 16/64 for both, so er is uniform here
    assert layer_counts(shapes, 0.1, "er") == layer_counts(shapes, 0.1, "layer")
    densities = erk_densities(list(shapes.values()), 0.05)
    assert densities[1] / densities[0] == pytest.approx((18 / 64) / (22 / 576))
    assert 576 * densities[0] + 64 * densities[1] == pytest.approx(0.05 * 640)


def resnet34():
    """Weights of the CIFAR-10 ResNet-34 of the ICLR 2023 study (7 x 7 stem)."""
    shapes = {"conv1": (64, 3, 7, 7)}
    width = 64
    for stage, (blocks, out) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            shapes[f"layer{stage}.{block}.conv1"] = (out, width, 3, 3)
            shapes[f"layer{stage}.{block}.conv2"] = (out, out, 3, 3)
            if out != width:
                shapes[f"layer{stage}.{block}.downsample"] = (out, width, 1, 1)
            width = out
    return {**shapes, "fc": (10, 512)}


# Means over three seeds of its Bernoulli masks, as published with the paper (csv_metric).
@pytest.mark.parametrize(
    ("density", "published"),
    [
        (0.01, {"conv1": 0.1084, "layer1.0.conv1": 0.0466, "layer3.0.conv1": 0.0168, "fc": 1.0}),
        (0.05, {"conv1": 0.5620, "layer2.0.conv2": 0.1163, "layer3.0.downsample": 0.7685}),
        (0.2, {"conv1": 1.0, "layer1.0.conv1": 0.9960, "layer4.2.conv2": 0.1196, "fc": 1.0}),
    ],
)
def test_erk_gives_the_published_densities(density, published):
    shapes = resnet34()
    found = dict(zip(shapes, erk_densities(list(shapes.values()), density), strict=True))
    for name, expected in published.items():
        assert found[name] == pytest.approx(expected, abs=2e-3)


shape = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3)),
)


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(shape, min_size=1, max_size=6),
    density=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0])),
    rule=st.sampled_from(["layer", "er", "erk"]),
)
def test_counts_always_add_up(shapes, density, rule):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    counts = layer_counts(named, density, rule)
    sizes = {name: math.prod(shape) for name, shape in named.items()}
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert all(0 <= counts[name] <= sizes[name] for name in named)
    if rule == "layer":
        assert all(abs(counts[name] - density * sizes[name]) <= 1 for name in named)
