import copy

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

import fullspectrum_ext as fs
from fullspectrum_ext.nn import MaskedGRU, MaskedLSTM, MaskedRNN, choose_backends, update_masks

LAYERS = {
    "rnn": (lambda: nn.RNN(5, 4, nonlinearity="relu"), MaskedRNN),
    "lstm": (lambda: nn.LSTM(5, 4, num_layers=2, bidirectional=True), MaskedLSTM),
    "projected": (lambda: nn.LSTM(5, 4, proj_size=3, batch_first=True), MaskedLSTM),
    "gru": (lambda: nn.GRU(5, 4, num_layers=2, bias=False), MaskedGRU),
}


class Characters(nn.Module):
    """Predicts the last of three classes that a sequence shows."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.recurrent = kind(3, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


def masks_for(layer, density=0.5, prefix=""):
    generator = torch.Generator().manual_seed(0)
    return {
        prefix + name: torch.rand(weight.shape, generator=generator) < density
        for name, weight in layer.named_parameters()
        if name.startswith("weight")
    }


def sequences(count=64):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (count, 6), generator=generator)
    return nn.functional.one_hot(y, 3).float(), y[:, -1]


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_torchs_layer_with_the_weights_removed(kind):
    build, masked = LAYERS[kind]
    layer = build().double()
    masks = masks_for(layer)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        for name, mask in masks.items():
            plain.get_parameter(name).mul_(mask)
    x = torch.randn(3, 2, 5, dtype=torch.float64)

    found = fs.sparsify(nn.Sequential(layer), {f"0.{n}": m for n, m in masks.items()})[0]
    assert type(found) is masked
    assert all(found.get_parameter(name) is p for name, p in layer.named_parameters())
    for _ in range(2):  # a second pass finds all as the first one did
        for network in (found, plain):
            network.zero_grad()
            network(x)[0].square().sum().backward()
        assert torch.equal(found(x)[0], plain(x)[0])
        for name, parameter in found.named_parameters():
            expected = plain.get_parameter(name).grad
            assert torch.equal(parameter.grad, expected * masks.get(name, 1))
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert f"nnz={kept}" in repr(found)


def test_removed_weights_stay_zero_and_it_learns():
    torch.manual_seed(0)
    model = Characters()
    masks = fs.prune(model, "random", sparsity=0.5, seed=0)
    assert set(masks) == {"recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "head.weight"}
    model = fs.sparsify(model, masks)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.01)
    x, y = sequences(32)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() == 1
    assert fs.MaskSet.from_model(model) == masks
    for name in ("weight_ih_l0", "weight_hh_l0"):
        weight = getattr(model.recurrent, name)
        assert torch.equal(weight != 0, masks[f"recurrent.{name}"])


@pytest.mark.parametrize("method", ["magnitude", "snip", "erk", "uniform"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_pruning_methods_take_recurrent_weights(kind, method):
    torch.manual_seed(0)
    model = Characters(kind)
    masks = fs.prune(model, method, sparsity=0.75, data=[sequences()], seed=0)
    assert masks.nnz == round(0.25 * masks.numel)
    assert len(masks) == 3
    spectrum = fs.full_spectrum(masks, model)
    assert list(spectrum.layers) == list(masks)


def test_states_copies_and_the_way_back():
    model = Characters()
    masks = fs.MaskSet(masks_for(model.recurrent, prefix="recurrent."))
    sparse = fs.sparsify(copy.deepcopy(model), masks)
    x, _ = sequences(4)
    state = sparse.state_dict()
    assert fs.MaskSet.from_state_dict(state)["recurrent.weight_hh_l0"].equal(
        masks["recurrent.weight_hh_l0"]
    )
    for other in (
        copy.deepcopy(sparse),
        fs.load_sparse_state_dict(Characters(), state),
        fs.densify(copy.deepcopy(sparse)),
    ):
        assert torch.equal(other(x), sparse(x))
    assert type(fs.densify(copy.deepcopy(sparse)).recurrent) is nn.LSTM
    # a copy is masked too, though its list of weights is another
    other = copy.deepcopy(sparse).double()
    other(x.double()).sum().backward()
    removed = ~masks["recurrent.weight_hh_l0"]
    assert not bool(other.recurrent.weight_hh_l0.grad[removed].any())
    # one weight more under a mask leaves the others as they are
    again = fs.sparsify(
        fs.sparsify(model, {"recurrent.weight_hh_l0": masks["recurrent.weight_hh_l0"]}),
        {"recurrent.weight_ih_l0": masks["recurrent.weight_ih_l0"]},
    )
    assert set(again.recurrent.masks) == {"weight_ih_l0", "weight_hh_l0"}


def test_masks_change_in_place():
    model = Characters()
    name = "recurrent.weight_hh_l0"
    model = fs.sparsify(model, {name: torch.ones(64, 16)})
    mask = torch.rand(64, 16) < 0.3
    update_masks(model, {name: mask})
    assert torch.equal(model.recurrent.weight_hh_l0 != 0, mask)


def test_torchs_own_pruning_of_a_recurrent_layer_is_recognised():
    model = nn.Sequential(nn.GRU(3, 4))
    torch_prune.l1_unstructured(model[0], "weight_hh_l0", amount=8)
    masks = fs.MaskSet.from_model(model)
    assert int(masks["0.weight_hh_l0"].sum()) == 40
    assert fs.MaskSet.from_state_dict(model.state_dict()) == masks


def test_what_cannot_be_is_refused_in_words():
    model = Characters()
    masks = masks_for(model.recurrent, prefix="recurrent.")
    with pytest.raises(ValueError, match="the layer is recurrent, and torch's kernels take all"):
        fs.sparsify(model, masks, backend="sparse")
    assert type(model.recurrent) is nn.LSTM
    choices = choose_backends(model, masks, sequences(4)[0])
    assert {choice.backend for choice in choices.values()} == {"masked"}
    with pytest.raises(ValueError, match="got 'bias_hh_l0' of LSTM"):
        fs.sparsify(model, {"recurrent.bias_hh_l0": torch.ones(64)})
    with pytest.raises(ValueError, match="expected names of weights of the layer, got 'bias_hh"):
        MaskedLSTM(model.recurrent, {"bias_hh_l0": torch.ones(64) > 0})
    with pytest.raises(ValueError, match="already under a mask"):
        fs.prune(fs.sparsify(model, masks), "magnitude", sparsity=0.5)
