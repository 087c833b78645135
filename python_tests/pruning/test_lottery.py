import copy

import pytest
import torch
from networks import conv_net, digits
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.pruning import ticket_densities

STEPS, REWIND_STEP = 4, 1


class Trainer:
    """Trains, and remembers with what each training began and ended."""

    def __init__(self):
        self.spans, self.begun, self.ended = [], [], []

    def __call__(self, model, start, stop):
        self.spans.append((start, stop))
        self.begun.append(copy.deepcopy(model.state_dict()))
        model.train()
        torch.manual_seed(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        for x, y in digits(STEPS * 8, 8, image=True)[start:stop]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        self.ended.append(copy.deepcopy(model.state_dict()))


def tickets(**options):
    model, trainer = conv_net(), Trainer()
    found = list(fs.lottery_tickets(model, trainer, steps=STEPS, sparsity=0.5, **options))
    return model, trainer, found


def test_densities():
    assert ticket_densities(0.2) == [0.8]
    assert ticket_densities(0.36) == pytest.approx([0.8, 0.64])
    assert len(ticket_densities(0.99)) == 21
    assert ticket_densities(0.9, rate=0.5) == pytest.approx([0.5, 0.25, 0.125, 0.1])
    with pytest.raises(ValueError, match=r"rate: expected a fraction in \(0, 1\), got 1"):
        ticket_densities(0.9, rate=1)


def test_a_round_begins_with_the_very_bits_of_the_rewinding_step():
    _, trainer, found = tickets(rewind_step=REWIND_STEP)

    assert trainer.spans == [(0, 1), *[(1, 4)] * 5]
    kept = trainer.ended[0]
    for ticket, begun in zip(found, trainer.begun[1:], strict=True):
        for name, value in begun.items():
            if name.endswith("mask"):
                continue
            mask = ticket.masks.get(name)
            expected = kept[name] if mask is None else torch.where(mask, kept[name], 0)
            assert torch.equal(value, expected), name  # buffers of batch normalisation as well


def test_counts_are_exact_and_the_smallest_weights_go():
    model, trainer, found = tickets()

    total = found[0].masks.numel
    expected = [total, *(round(0.8**turn * total) for turn in (1, 2, 3)), round(0.5 * total)]
    assert [ticket.masks.nnz for ticket in found] == expected
    assert [ticket.round for ticket in found] == [0, 1, 2, 3, 4]
    for before, after, ended in zip(found, found[1:], trainer.ended[1:], strict=False):
        weights = {name: ended[name].abs() for name in before.masks}
        removed = [w[before.masks[n] & ~after.masks[n]] for n, w in weights.items()]
        stayed = [w[after.masks[n]] for n, w in weights.items()]
        assert torch.cat(removed).max() <= torch.cat(stayed).min()
        assert not any(bool((after.masks[n] & ~before.masks[n]).any()) for n in weights)
    # weight decay and Adam leave what is pruned at zero
    assert fs.MaskSet.from_model(model) == found[-1].masks
    for name, mask in found[-1].masks.items():
        assert not bool(model.get_parameter(name)[~mask].any())


def test_learning_rate_rewinding_goes_on_with_the_trained_weights():
    _, trainer, found = tickets(rewind="learning_rate")

    assert trainer.spans == [(0, 4)] * 5
    for ticket, begun, ended in zip(found[1:], trainer.begun[1:], trainer.ended, strict=False):
        for name, mask in ticket.masks.items():
            assert torch.equal(begun[name], torch.where(mask, ended[name], 0))
        assert torch.equal(begun["1.running_mean"], ended["1.running_mean"])


def test_it_is_deterministic():
    (one, *_, first), (other, *_, second) = tickets(), tickets()
    assert first == second
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rewind": "all"}, "rewind: expected one of weights, learning_rate, got 'all'"),
        ({"rewind_step": 4}, "rewind_step, steps: expected 0 <= rewind_step < steps, got 4 and 4"),
        ({"sparsity": 0.0}, r"sparsity: expected a fraction in \(0, 1\), got 0.0"),
        ({"scope": "nowhere"}, "scope: expected one of"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(options, words):
    def never(*_):
        raise AssertionError

    with pytest.raises(ValueError, match=words):
        next(fs.lottery_tickets(conv_net(), never, **{"steps": 4, "sparsity": 0.5, **options}))
