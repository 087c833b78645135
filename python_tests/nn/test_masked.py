import copy

import pytest
import torch
from torch import nn

from fullspectrum_ext.nn import MaskedConv2d, MaskedLinear


@pytest.mark.parametrize(
    ("layer", "masked", "shape"),
    [
        (nn.Linear(6, 4), MaskedLinear, (3, 6)),
        (nn.Linear(6, 4, bias=False), MaskedLinear, (6,)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), MaskedConv2d, (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), MaskedConv2d, (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, (1, 3), dilation=2, bias=False), MaskedConv2d, (2, 4, 7, 7)),
    ],
    ids=["linear", "no bias", "grouped", "circular", "dilated"],
)
def test_it_is_the_layer_with_the_weights_removed(layer, masked, shape):
    mask = torch.rand_like(layer.weight) < 0.5
    x = torch.randn(shape)
    weight = layer.weight
    with torch.no_grad():
        expected_weight = weight * mask

    found = masked(layer, mask)
    y = found(x)
    y.square().sum().backward()

    assert found.weight is weight
    assert torch.equal(weight, expected_weight)
    assert torch.equal(y, layer(x))
    assert torch.equal(weight.grad == 0, ~mask)
    assert f"nnz={int(mask.sum())}" in repr(found)


def test_no_random_number_is_drawn():
    layer = nn.Conv2d(1, 1, 3)
    state = torch.get_rng_state()
    MaskedConv2d(layer, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    assert torch.equal(state, torch.get_rng_state())


def test_removed_weights_get_no_gradient_even_beside_an_overflow():
    layer = MaskedLinear(nn.Linear(2, 1, bias=False), torch.tensor([[True, False]]))
    layer(torch.tensor([[1.0, float("inf")]])).nan_to_num().sum().backward()
    assert float(layer.weight.grad[0, 1]) == 0


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 2), TypeError, "mask: expected bool, got torch.float32"),
        (torch.ones(2, 3) > 0, ValueError, r"mask: expected .* \(2, 2\), got \(2, 3\)"),
        ([[True]], TypeError, "mask: expected a torch.Tensor, got list"),
    ],
)
def test_bad_masks_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        MaskedLinear(nn.Linear(2, 2), mask)


# ---- exactly zero, whatever the optimizer does ---------------------------------------------------


class Lion(torch.optim.Optimizer):
    """Steps by the sign of an average of gradients, with decoupled weight decay."""

    def __init__(self, parameters, lr=1e-2, beta=0.9, weight_decay=0.1):
        super().__init__(parameters, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["beta"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * average.sign())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, 0.1, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.1, weight_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, 0.1, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.1, weight_decay=0.1),
    "lion": Lion,
}


def net():
    conv = nn.Conv2d(2, 4, 3)
    linear = nn.Linear(16, 5)
    masks = [torch.rand_like(layer.weight) < 0.4 for layer in (conv, linear)]
    return nn.Sequential(
        MaskedConv2d(conv, masks[0]), nn.ReLU(), nn.Flatten(), MaskedLinear(linear, masks[1])
    )


def assert_removed_are_zero(model):
    for layer in (model[0], model[3]):
        assert not layer.weight[~layer.mask].any()
        assert layer.weight[layer.mask].all()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_removed_weights_stay_exactly_zero_through_any_optimizer(name, accumulate):
    """Pruned weights come back in tools that drop the mask at the first step."""
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    before = [layer.weight.detach().clone() for layer in (model[0], model[3])]

    for _ in range(10):
        optimizer.zero_grad()
        for _ in range(accumulate):
            model(torch.randn(8, 2, 4, 4)).square().sum().backward()
        optimizer.step()
        assert_removed_are_zero(model)

    for layer, old in zip((model[0], model[3]), before, strict=True):
        assert not torch.equal(layer.weight, old)
        state = optimizer.state[layer.weight]
        for key, tensor in state.items():
            # factors have another shape; step sizes and Adamax's maxima do not start at 0
            if tensor.shape == layer.weight.shape and key not in {"step_size", "exp_inf"}:
                assert not tensor[~layer.mask].any(), key


def test_noise_on_all_weights_is_taken_off_on_demand():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))

    optimizer.register_step_post_hook(lambda *_: [model[i].zero_removed_() for i in (0, 3)])
    model(torch.randn(8, 2, 4, 4)).sum().backward()
    optimizer.step()

    assert_removed_are_zero(model)


@pytest.mark.parametrize("assign", [False, True])
def test_what_a_state_dict_holds_under_the_mask_is_zeroed(assign):
    model = net()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["3.weight"] += 1
    state["3.mask"] = ~state["3.mask"]

    model.load_state_dict(state, assign=assign)

    assert torch.equal(model[3].mask, state["3.mask"])
    assert_removed_are_zero(model)
    model(torch.randn(8, 2, 4, 4)).square().sum().backward()
    assert torch.equal(model[3].weight.grad == 0, ~model[3].mask)


def test_weights_in_channels_last_order():
    model = net()
    expected = copy.deepcopy(model)
    model.to(memory_format=torch.channels_last)
    x = torch.randn(8, 2, 4, 4)
    for each in (model, expected):
        each(x).square().sum().backward()
    assert not model[0].weight.grad.is_contiguous()
    torch.testing.assert_close(model[0].weight.grad, expected[0].weight.grad)


def test_second_derivatives_and_gradients_of_each_sample():
    layer = MaskedLinear(nn.Linear(4, 3).double(), torch.rand(3, 4) < 0.5)
    x = torch.randn(5, 4, dtype=torch.float64)

    def output(weight, x):
        # under the mask a weight is zero: what lies there is no variable
        weight = torch.where(layer.mask, weight, 0)
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    def loss(weight, x):
        return torch.func.functional_call(layer, {"weight": weight}, (x,)).square().sum()

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda w, x: output(w, x).tanh(), (weight, x))
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight.detach(), x)
    for found, sample in zip(each, x, strict=True):
        (expected,) = torch.autograd.grad(loss(weight, sample), weight)
        torch.testing.assert_close(found, expected)
