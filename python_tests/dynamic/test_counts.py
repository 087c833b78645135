"""Numbers of weights over a thousand updates, for every method there is."""

import pytest
import torch
from dynamic_courses import METHODS
from torch import nn

import fullspectrum_ext as fs

UPDATES = 1000
MOVES = {"snfs", "dsr"}  # weights from layer to layer
SHRINKS = {"granet": 0.7, "gmp": 1.0}  # until this share of the training
OPTIONS = {"gmp": {"scope": "global"}, "mest": {"gradient_weight": 0.0}}


def stored(method, counts, numel, step):
    """How many weights each layer holds after an update, or all together."""
    if method in SHRINKS:
        first, last = 1 - sum(counts) / numel, METHODS[method]["sparsity"]
        left = max(1 - step / (SHRINKS[method] * (UPDATES + 1)), 0) ** 3
        return round(numel * (1 - last - (first - last) * left))
    if method in MOVES:
        return sum(counts)
    if method == "topkast" and step <= UPDATES:
        return [2 * count for count in counts]
    if method == "mest:soft" and step <= UPDATES:
        return [count + int(0.2 * count) for count in counts]
    return counts


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_exact_at_each_of_a_thousand_updates(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    if method in MOVES | SHRINKS.keys():
        model.append(nn.Linear(10, 6))
    fs.sparsify(model, fs.prune(model, "erk", sparsity=0.7, seed=0), backend="sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    told = []
    options = {**METHODS[method], **OPTIONS.get(method, {})}
    found = fs.DynamicSparsity(
        model, optimizer, method, steps=UPDATES + 1, every=1, until=1.0, anneal="constant",
        seed=0, on_update=told.append, **options,
    )  # fmt: skip
    masks = found.masks
    counts = [int(mask.sum()) for mask in masks.values()]
    data = torch.randn(50, 4, 12)
    for step in range(1, UPDATES + 2):
        if found.is_listening:
            optimizer.zero_grad()
            model(data[step % 50]).cos().mean().backward()
            optimizer.step()
        else:
            with torch.no_grad():
                for layer in model:
                    layer.values.add_(0.1 * torch.randn(layer.nnz))
        if not found.step():
            assert step == UPDATES + 1
            break
        layers = told[-1].layers.values()
        after = [layer.after for layer in layers]
        assert after == [layer.nnz for layer in model]
        expected = stored(method, counts, masks.numel, step)
        assert (sum(after) if isinstance(expected, int) else after) == expected, step
        assert all(layer.after == layer.before - layer.dropped + layer.grown for layer in layers)
        if method not in MOVES | SHRINKS.keys() | {"mest:soft"} and step % 50 == 0:
            assert [int(mask.sum()) for mask in found.masks.values()] == counts
    assert len(told) >= UPDATES
    assert sum(update.total.dropped for update in told) >= 27
