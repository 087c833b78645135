"""Defects that were found in other libraries' pruning methods, and the tests that ours has none.

Those without a test elsewhere have it here. What dynamic sparse training got wrong is listed in
`dynamic/test_known_defects.py`.
"""

import copy
import re
from pathlib import Path

import networks
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fullspectrum_ext as fs
from fullspectrum_ext.pruning import methods, prune

DEFECTS = {
    "the shuffled-mask ablation changes nothing (Synaptic-Flow)": [
        "pruning/test_audit.py::test_nothing_but_what_it_says_changes",
        "pruning/test_audit.py::test_a_shuffled_mask_is_a_permutation_that_reaches_every_place",
    ],
    "each process draws its own mask (ITOP, GraNet)": [
        "pruning/test_known_defects.py::test_processes_with_random_states_of_their_own_agree",
    ],
    "uniform, ERK and ER masks have a random size (ITOP)": [
        "pruning/test_methods.py::test_fixed_layer_counts",
        "pruning/test_densities.py::test_counts_always_add_up",
    ],
    "ERK clamps a layer's density and does not redistribute (TurboPrune)": [
        "pruning/test_densities.py::test_erk_by_hand_with_a_layer_that_becomes_dense",
        "pruning/test_definitions.py::test_erdos_renyi_densities_by_bisection",
    ],
    "a density of 1 crashes (TurboPrune: kthvalue with k = 0)": [
        "pruning/test_prune.py::test_counts_are_exact",
    ],
    "SynFlow in one pass and under autocast (TurboPrune)": [
        "pruning/test_methods.py::test_synflow_against_its_definition",
        "pruning/test_known_defects.py::test_synflow_takes_a_hundred_rounds_in_float64_under_autocast",
    ],
    "a fraction to remove that is the fraction to keep (ProbMask, Synaptic-Flow)": [
        "pruning/test_prune.py::test_density_is_the_other_way_to_say_sparsity",
        "pruning/test_known_defects.py::test_sparsity_is_what_is_removed_by_all_that_train",
    ],
    "a projection by a bisection that is stopped, and masks of a random size (ProbMask)": [
        "ops/test_projection.py::test_ten_million_scores_agree_with_scipy",
        "pruning/test_probmask.py::test_the_expected_count_meets_the_budget_of_every_step",
        "pruning/test_probmask.py::test_it_learns_and_ends_with_exactly_as_many_weights_as_asked",
    ],
    "the supermask variant trains the weights (ProbMask)": [
        "pruning/test_probmask.py::test_a_supermask_leaves_the_weights_alone",
    ],
    "what is pruned already is pruned again, and ties are lost (Synaptic-Flow and its forks)": [
        "pruning/test_prune.py::test_counts_are_exact_when_all_scores_are_equal",
        "pruning/test_selection.py::test_minus_infinity_comes_last_and_still_fills_the_budget",
    ],
    "local pruning keeps the wrong share (forks of Synaptic-Flow)": [
        "pruning/test_selection.py::test_exact_counts_against_a_stable_sort",
    ],
    "scores of batch normalisation in evaluation mode collapse VGG (ICLR 2023 study, GraSP)": [
        "pruning/test_methods.py"
        "::test_snip_normalises_by_the_batch_not_by_fresh_running_statistics",
        "pruning/test_grasp.py::test_against_the_full_hessian",
    ],
    "weights are drawn anew before they are scored (mil-ad/snip)": [
        "pruning/test_definitions.py::test_snip_is_the_derivative_by_a_factor_before_every_weight",
        "pruning/test_prune.py::test_the_model_and_the_random_state_are_left_alone",
    ],
    "iterative magnitude pruning does not rewind (Synaptic-Flow, Lightning)": [
        "pruning/test_lottery.py::test_a_round_begins_with_the_very_bits_of_the_rewinding_step",
        "experiments/test_procedures.py::test_a_round_begins_with_the_very_bits_that_were_kept",
    ],
    "pruned weights come back in training (torch.nn.utils.prune)": [
        "nn/test_masked.py::test_removed_weights_stay_exactly_zero_through_any_optimizer",
    ],
    "a pruned model cannot be copied after a forward pass (torch.nn.utils.prune)": [
        "pruning/test_known_defects.py::test_a_pruned_model_is_copied_after_a_step",
        "pruning/test_probmask.py::test_a_copy_of_the_model_has_all_of_its_weights",
    ],
    "normalisation, embeddings and biases are pruned (rigl-torch)": [
        "pruning/test_known_defects.py::test_only_matrices_of_layers_are_pruned",
    ],
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_tests_named_are_there(defect):
    for place in DEFECTS[defect]:
        file, _, name = place.partition("::")
        text = (Path(__file__).parents[1] / file).read_text()
        assert re.search(rf"^def {name}\(", text, re.MULTILINE), place


@pytest.mark.parametrize("method", methods())
def test_processes_with_random_states_of_their_own_agree(method):
    inputs, targets = (torch.cat(parts) for parts in zip(*networks.digits(), strict=True))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)
    model = networks.mlp()
    options = {"pags": {"candidates": 2}, "synflow": {"rounds": 3}}.get(method, {})
    masks = []
    for rank in range(2):
        torch.manual_seed(10 + rank)
        masks.append(prune(model, method, sparsity=0.5, data=loader, seed=0, **options))
    assert masks[0] == masks[1]


def test_synflow_takes_a_hundred_rounds_in_float64_under_autocast():
    model = networks.mlp()
    options = {"sparsity": 0.95, "input_shape": (64,)}
    masks = prune(model, "synflow", **options)
    assert masks == prune(model, "synflow", rounds=100, **options)
    assert masks != prune(model, "synflow", rounds=1, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert prune(model, "synflow", **options) == masks


@pytest.mark.parametrize(
    "make", [fs.ProbMask, fs.KStarts, fs.DissipatingGradients, fs.DissipatingKStarts]
)
def test_sparsity_is_what_is_removed_by_all_that_train(make):
    """A fifth is removed and the rest is left, not the other way round."""
    model, (x, y) = networks.mlp(), networks.digits()[0]
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruning = make(model, sparsity=0.2, steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        if make is fs.ProbMask:
            pruning.backward(lambda: nn.functional.cross_entropy(model(x), y))
        else:
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruning.step()
    assert pruning.masks.nnz == round(0.8 * 50200)


@pytest.mark.parametrize("backend", ["sparse", "masked"])
def test_a_pruned_model_is_copied_after_a_step(backend):
    model = networks.mlp()
    model = fs.sparsify(model, prune(model, "erk", sparsity=0.9), backend=backend)
    x, y = networks.digits()[0]
    nn.functional.cross_entropy(model(x), y).backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin(x), model(x))


def test_only_matrices_of_layers_are_pruned():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 8)
            self.position = nn.Parameter(torch.zeros(4, 8))
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.norm = nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 10)

    masks = prune(Tokens(), "magnitude", sparsity=0.5)
    assert list(masks) == [
        "block.self_attn.out_proj.weight",
        "block.linear1.weight",
        "block.linear2.weight",
        "head.weight",
    ]
