import pytest
import torch

from fullspectrum_ext.pruning.selection import check_scores, keep_top, keep_top_per_layer, select


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        # scores 9 1 4 1 | 5 4 2 4: the three fours tie, and so do the two ones
        (0, [0, 0, 0, 0, 0, 0, 0, 0]),
        (1, [1, 0, 0, 0, 0, 0, 0, 0]),
        (3, [1, 0, 1, 0, 1, 0, 0, 0]),
        (4, [1, 0, 1, 0, 1, 1, 0, 0]),
        (7, [1, 1, 1, 0, 1, 1, 1, 1]),
        (8, [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_global_by_hand(count, expected, dtype):
    scores = {
        "a": torch.tensor([[9.0, 1.0], [4.0, 1.0]], dtype=dtype),
        "b": torch.tensor([5.0, 4.0, 2.0, 4.0], dtype=dtype),
    }
    kept = keep_top(scores, count)
    assert kept["a"].shape == (2, 2)
    assert [*kept["a"].flatten().int().tolist(), *kept["b"].int().tolist()] == expected


def test_per_layer_by_hand():
    scores = {"a": torch.tensor([[9.0, 1.0], [4.0, 4.0]]), "b": torch.tensor([0.0, 0.0, 0.0])}
    kept = keep_top_per_layer(scores, {"a": 2, "b": 1})
    assert kept["a"].int().tolist() == [[1, 0], [1, 0]]
    assert kept["b"].int().tolist() == [1, 0, 0]


def test_minus_infinity_comes_last_and_still_fills_the_budget():
    scores = {"a": torch.tensor([-torch.inf, -3.0, -torch.inf, -0.0, 0.0])}
    assert keep_top(scores, 2)["a"].int().tolist() == [0, 0, 0, 1, 1]
    assert keep_top(scores, 4)["a"].int().tolist() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("scope", ["global", "layer", "er", "erk"])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("tied", [True, False])
def test_exact_counts_against_a_stable_sort(scope, density, tied):
    shapes = {"a": (16, 1, 3, 3), "b": (37, 16, 3, 3), "c": (10, 37)}
    scores = {
        name: torch.randint(4, shape).float() if tied else torch.randn(shape)
        for name, shape in shapes.items()
    }
    kept = select(scores, density, scope)
    total = sum(mask.numel() for mask in kept.values())
    assert sum(int(mask.sum()) for mask in kept.values()) == round(density * total)
    if scope == "global":
        flat = torch.cat([score.flatten() for score in scores.values()])
        first = flat.argsort(descending=True, stable=True)[: round(density * total)]
        expected = torch.zeros(total, dtype=torch.bool)
        expected[first] = True
        assert torch.equal(torch.cat([mask.flatten() for mask in kept.values()]), expected)


@pytest.mark.parametrize(
    ("scores", "error", "match"),
    [
        (3, TypeError, "'mine': expected scores by name, got int"),
        ({}, ValueError, "'mine' gave no scores for fc"),
        ({"fc": torch.ones(3)}, ValueError, r"expected scores of shape \(2,\) for fc, got \(3,\)"),
        ({"fc": torch.tensor([1, torch.nan])}, ValueError, "scores of fc hold NaN or infinity"),
        ({"fc": torch.tensor([1, torch.inf])}, ValueError, "scores of fc hold NaN or infinity"),
    ],
)
def test_unusable_scores_are_refused_by_layer(scores, error, match):
    with pytest.raises(error, match=match):
        check_scores("mine", scores, {"fc": torch.ones(2)})
