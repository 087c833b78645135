import copy

import pytest
import torch
from networks import conv_net
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.pruning.audit import ABLATIONS

MASK_ABLATIONS = ["shuffled", "randomised", "complement"]


@pytest.fixture
def pruned():
    model = conv_net()
    model[1].running_mean += 1
    model[1].eval()
    return model, fs.prune(model, "magnitude", sparsity=0.8)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_nothing_but_what_it_says_changes(pruned, ablation):
    model, masks = pruned
    state, kept = copy.deepcopy(model.state_dict()), fs.MaskSet(masks)
    random_state = torch.get_rng_state()

    audited = fs.audit(model, masks, ablation)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert masks == kept  # the arguments stay as they are
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    assert audited.model is not model
    assert [m.training for m in audited.model.modules()] == [m.training for m in model.modules()]
    changed = {
        name
        for name, value in audited.model.state_dict().items()
        if not torch.equal(value, state[name])
    }
    assert changed == (set(masks) if ablation == "reinitialised" else set())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in audited.model.parameters()}
    for name, mask in masks.items():  # every layer's count stays
        assert audited.masks[name].count_nonzero() == mask.count_nonzero()
        assert torch.equal(audited.masks[name], mask) == (ablation == "reinitialised")


def test_the_seed_decides(pruned):
    for ablation in MASK_ABLATIONS:
        one, same, other = (fs.audit(*pruned, ablation, seed=seed).masks for seed in (1, 1, 2))
        assert one == same != other
    one, same, other = (
        fs.audit(*pruned, "reinitialised", seed=seed).model[0].weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_shuffled_mask_is_a_permutation_that_reaches_every_place():
    model, mask = nn.Sequential(nn.Linear(4, 1)), {"0.weight": torch.tensor([[1, 0, 0, 0]])}
    for ablation in ("shuffled", "randomised"):
        places = {
            int(fs.audit(model, mask, ablation, seed=seed).masks["0.weight"].int().argmax())
            for seed in range(40)
        }
        assert places == {0, 1, 2, 3}


def test_the_complement_keeps_none_of_the_kept_unless_it_must():
    model = nn.Sequential(nn.Linear(4, 1))
    complement = fs.audit(model, {"0.weight": torch.tensor([[1, 0, 0, 1]])}, "complement").masks
    assert complement["0.weight"].tolist() == [[False, True, True, False]]
    complement = fs.audit(model, {"0.weight": torch.tensor([[1, 0, 1, 1]])}, "complement").masks
    assert complement["0.weight"][0, 1]
    assert complement.nnz == 3


def test_reinitialised_weights_are_the_layers_own_in_another_order(pruned):
    model, masks = pruned
    audited = fs.audit(model, masks, "reinitialised")
    for name in masks:
        before, after = model.get_parameter(name), audited.model.get_parameter(name)
        assert after.requires_grad
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
        same = (before == after).float().mean().item()
        assert same < 0.1
    audited.model(torch.rand(2, 1, 8, 8)).sum().backward()


def test_what_comes_out_can_be_trained_sparse(pruned):
    model = fs.sparsify(*fs.audit(*pruned, "shuffled"))
    assert fs.MaskSet.from_model(model).nnz == pruned[1].nnz


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((nn.Linear(2, 2), {}, "shufle"), ValueError, "ablation: expected one of shuffled, random"),
        ((3, {}, "shuffled"), TypeError, "model: expected a torch.nn.Module, got int"),
        ((nn.Linear(2, 2), [], "shuffled"), TypeError, "masks: expected a mapping"),
        (
            (nn.Linear(2, 2), {"w": torch.ones(2)}, "shuffled"),
            ValueError,
            r"masks\['w'\]",
        ),
        ((nn.Linear(2, 2), {"weight": torch.ones(2)}, "shuffled"), ValueError, "of its shape"),
        ((nn.Linear(2, 2), {"weight": torch.full((2, 2), 2)}, "shuffled"), ValueError, "zeros"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        fs.audit(*arguments)
