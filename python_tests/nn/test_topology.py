import copy

import pytest
import torch
from helpers import random_csr
from torch import nn

from fullspectrum_ext import ops
from fullspectrum_ext.nn import SparseConv2d, SparseLinear

ROWS, COLS = 12, 9
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.25),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
}
# What new weights begin with where it is not 0.
BEGINS = {("Adagrad", "sum"): 0.25, ("Rprop", "step_size"): 0.01}


def layer_of(seed=0, device="cpu"):
    _, _, _, mask, dense = random_csr(ROWS, COLS, 0.4, seed=seed, device=device)
    bias = torch.linspace(-1, 1, ROWS, dtype=dense.dtype, device=device)
    return SparseLinear.from_dense(dense, mask, bias)


def train(model, optimizer, steps, seed=0):
    """Take some steps; returns the losses."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(6, COLS, generator=generator, dtype=torch.float64)
        target = torch.randn(6, ROWS, generator=generator, dtype=torch.float64)
        device = next(model.parameters()).device
        loss = (model(x.to(device)) - target.to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def an_update(layer, drop=7, grow=7, seed=1):
    """The smallest weights go, and any positions come, one of those that go among them."""
    dropped = ops.smallest_magnitudes(layer.values, drop)
    rows = ops.csr_row_indices(layer.crow_indices, layer.col_indices).long()
    stored = rows * COLS + layer.col_indices
    free = torch.ones(ROWS * COLS, dtype=torch.bool, device=stored.device)
    free[stored] = False
    places = free.nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(places.numel(), generator=generator)[: grow - 1]
    return dropped, torch.cat([places[chosen.to(places.device)], stored[dropped[:1]]]).sort().values


def per_weight(optimizer, values):
    """The state that is held by weight, and the rest of it."""
    state = optimizer.state.get(values, {})
    held = {
        name: tensor.clone()
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and tensor.shape == values.shape
    }
    return held, {name: copy.deepcopy(v) for name, v in state.items() if name not in held}


def assert_equal_state(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("grow", [7, 3, 12], ids=["same-nnz", "fewer", "more"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_values_and_state_follow_and_nothing_else_changes(name, grow):
    layer, other = layer_of(0), layer_of(1)
    optimizer = OPTIMIZERS[name]([*layer.parameters(), *other.parameters()])
    train(layer, optimizer, 3)
    train(other, optimizer, 3)
    values, old = layer.values, layer.values.detach().clone()
    dense = layer.to_dense().detach()
    held, rest = per_weight(optimizer, values)
    assert held or name == "SGD"
    bystanders = [layer.bias, *other.parameters()]
    before = [parameter.detach().clone() for parameter in bystanders]
    states_before = [per_weight(optimizer, parameter) for parameter in bystanders]
    groups_before = copy.deepcopy([{**g, "params": None} for g in optimizer.param_groups])

    drop, grown = an_update(layer, grow=grow)
    source = layer.update_topology(drop, grown, optimizer).source

    kept = source >= 0
    assert layer.values is values
    assert layer.values.grad is None
    assert values.shape == (old.numel() - 7 + grow,)
    assert torch.equal(values[kept], old[source[kept]])
    assert not values[~kept].any()
    # the first of those dropped is grown again, and stays
    gone = drop[1:].tolist()
    assert sorted(source[kept].tolist() + gone) == list(range(old.numel()))
    new_held, new_rest = per_weight(optimizer, values)
    assert new_held.keys() == held.keys()
    for state, tensor in new_held.items():
        assert torch.equal(tensor[kept], held[state][source[kept]])
        assert (tensor[~kept] == BEGINS.get((name, state), 0)).all()
    assert_equal_state(new_rest, rest)

    expected = dense.flatten().clone()
    expected[(dense.flatten() != 0).nonzero().flatten()[gone]] = 0
    assert torch.equal(layer.to_dense().flatten(), expected)
    assert [{**g, "params": None} for g in optimizer.param_groups] == groups_before
    for parameter, was, (was_held, was_rest) in zip(bystanders, before, states_before, strict=True):
        assert torch.equal(parameter, was)
        now_held, now_rest = per_weight(optimizer, parameter)
        assert_equal_state(now_held, was_held)
        assert_equal_state(now_rest, was_rest)


class Masked(nn.Module):
    """The dense reference: a masked weight, whose gradient and state are masked too."""

    def __init__(self, layer):
        super().__init__()
        self.weight = nn.Parameter(layer.to_dense().detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.mask = mask_of(layer)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.mask, self.bias)

    def update(self, layer, source, optimizer):
        kept = torch.zeros_like(self.mask)
        kept[mask_of(layer)] = source >= 0
        self.mask = mask_of(layer)
        with torch.no_grad():
            self.weight *= kept
            for name, state in optimizer.state[self.weight].items():
                if isinstance(state, torch.Tensor) and state.shape == self.weight.shape:
                    begin = optimizer.param_groups[0].get("initial_accumulator_value", 0)
                    state[~kept] = begin if name == "sum" else 0


def mask_of(layer):
    ones = torch.ones_like(layer.values)
    shape = (ROWS, COLS)
    return ops.csr_to_dense(layer.crow_indices, layer.col_indices, ones, shape) > 0


@pytest.mark.parametrize("grow", [7, 3, 12], ids=["same-nnz", "fewer", "more"])
@pytest.mark.parametrize("name", ["momentum", "Adam", "AdamW", "Adagrad", "RMSprop"])
def test_training_goes_on_as_that_of_a_masked_dense_layer(name, grow, device):
    layer = layer_of(device=device)
    masked = Masked(layer)
    ours, theirs = (OPTIMIZERS[name](model.parameters()) for model in (layer, masked))

    for turn in range(3):
        found = train(layer, ours, 4, seed=turn)
        expected = train(masked, theirs, 4, seed=turn)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
        update = layer.update_topology(*an_update(layer, grow=grow, seed=turn), ours)
        masked.update(layer, update.source, theirs)

    found, expected = train(layer, ours, 4), train(masked, theirs, 4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    dense = (masked.weight * masked.mask).detach()
    torch.testing.assert_close(layer.to_dense().detach(), dense, rtol=1e-9, atol=1e-12)


def test_a_rigl_update_is_that_of_the_dense_gradient(device):
    layer = layer_of(device=device)
    x = torch.randn(8, COLS, dtype=torch.float64, device=device)
    y = layer(x)
    (grad,) = torch.autograd.grad(y.square().sum(), y)
    dense, mask = layer.to_dense().detach(), mask_of(layer)
    magnitude = dense.abs().masked_fill(~mask, torch.inf).flatten()
    mask.view(-1)[magnitude.argsort()[:5]] = False
    gradient = (grad.T @ x).abs().masked_fill(mask, -1).flatten()
    mask.view(-1)[gradient.argsort(descending=True)[:5]] = True

    drop = ops.smallest_magnitudes(layer.values, 5)
    none = drop.new_empty(0)
    kept = ops.topology_update(layer.crow_indices, layer.col_indices, drop, none, COLS)
    grow = ops.dense_grad_topk(grad, x, kept.crow_indices, kept.col_indices, 5).positions
    layer.update_topology(drop, grow)

    assert torch.equal(mask_of(layer), mask)


@pytest.mark.parametrize("grow", [7, 3, 12], ids=["same-nnz", "fewer", "more"])
@pytest.mark.parametrize("name", ["momentum", "Adam", "RMSprop"])
def test_a_convolution_is_updated_as_the_linear_layer_of_its_matrix(name, grow, device):
    """A 3x3 kernel on a 3x3 image is a linear layer with nine inputs."""
    linear = layer_of(device=device)
    weight, mask = (t.view(ROWS, 1, 3, 3) for t in (linear.to_dense(), mask_of(linear)))
    conv = SparseConv2d.from_dense(weight, mask, linear.bias.detach().clone())
    image = nn.Sequential(nn.Unflatten(1, (1, 3, 3)), conv, nn.Flatten())
    values = conv.values
    ours, theirs = (OPTIMIZERS[name](model.parameters()) for model in (image, linear))

    for turn in range(2):
        found, expected = train(image, ours, 3, seed=turn), train(linear, theirs, 3, seed=turn)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
        update = an_update(linear, grow=grow, seed=turn)
        source = conv.update_topology(*update, ours).source
        linear.update_topology(*update, theirs)
        assert conv.values is values
        assert values.numel() == linear.nnz
        assert not values[source < 0].any()
        assert torch.equal(conv.col_indices, linear.col_indices)
        assert all(torch.equal(a, b) for a, b in zip(conv.transpose, linear.transpose, strict=True))

    torch.testing.assert_close(train(image, ours, 3), train(linear, theirs, 3), rtol=1e-9, atol=0)
    torch.testing.assert_close(conv.to_dense().view(ROWS, COLS), linear.to_dense())


def test_a_rigl_update_of_a_convolution_is_that_of_the_dense_gradient(device):
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64, device=device)
    mask = torch.rand(weight.shape, device=device) < 0.4
    conv = SparseConv2d.from_dense(weight, mask, stride=2, padding=1)
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64, device=device)
    y = conv(x)
    (grad,) = torch.autograd.grad(y.square().sum(), y)
    magnitude = weight.abs().masked_fill(~mask, torch.inf).flatten()
    mask.view(-1)[magnitude.argsort()[:5]] = False
    gradient = torch.nn.grad.conv2d_weight(x, weight.shape, grad, stride=2, padding=1)
    gradient = gradient.abs().masked_fill(mask, -1).flatten()
    mask.view(-1)[gradient.argsort(descending=True)[:5]] = True

    drop = ops.smallest_magnitudes(conv.values, 5)
    none = drop.new_empty(0)
    kept = ops.topology_update(conv.crow_indices, conv.col_indices, drop, none, conv.columns)
    grow = ops.conv2d_dense_grad_topk(
        grad, x, kept.crow_indices, kept.col_indices, 5, 3, stride=2, padding=1
    ).positions
    conv.update_topology(drop, grow)

    ones = torch.ones_like(conv.values)
    stored = ops.csr_to_dense(conv.crow_indices, conv.col_indices, ones, (4, 18)) > 0
    assert torch.equal(stored.view_as(mask), mask)


def test_an_update_of_as_many_weights_is_made_in_place():
    layer = layer_of()
    optimizer = OPTIMIZERS["Adam"](layer.parameters())
    train(layer, optimizer, 2)

    before = {t.data_ptr() for t in (layer.values, *layer.buffers())}
    moments = optimizer.state[layer.values]["exp_avg"].data_ptr()
    layer.update_topology(*an_update(layer), optimizer)

    assert {t.data_ptr() for t in (layer.values, *layer.buffers())} == before
    assert optimizer.state[layer.values]["exp_avg"].data_ptr() == moments
    expected = ops.csr_transpose(layer.crow_indices, layer.col_indices, COLS)
    assert all(torch.equal(a, b) for a, b in zip(layer.transpose, expected, strict=True))


@pytest.mark.parametrize("grow", [7, 3], ids=["same-nnz", "fewer"])
def test_hooks_and_a_living_graph_do_not_hold_the_old_length(grow):
    layer = layer_of()
    calls = []
    layer.values.register_hook(lambda grad: calls.append(grad.shape))
    layer.values.register_post_accumulate_grad_hook(lambda values: calls.append(values.grad.shape))
    x = torch.randn(3, COLS, dtype=torch.float64)
    loss = layer(x).sum()
    loss.backward()

    layer.update_topology(*an_update(layer, grow=grow))
    layer(x).sum().backward()

    assert loss.grad_fn is not None  # alive until here
    assert calls[2:] == [layer.values.shape] * 2


def test_a_graph_from_before_an_update_is_refused():
    layer = layer_of()
    loss = layer(torch.randn(3, COLS, dtype=torch.float64)).sum()
    layer.update_topology(*an_update(layer))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("grow", [7, 3], ids=["same-nnz", "fewer"])
def test_a_checkpoint_after_an_update_resumes_the_same_training(grow):
    layer = layer_of()
    optimizer = OPTIMIZERS["Adam"](layer.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(layer, optimizer, 3)
    layer.update_topology(*an_update(layer, grow=grow), optimizer)
    scheduler.step()
    saved = copy.deepcopy((layer.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    expected = train(layer, optimizer, 3, seed=5)

    resumed = layer_of()
    fresh = OPTIMIZERS["Adam"](resumed.parameters())
    their_scheduler = torch.optim.lr_scheduler.StepLR(fresh, 1, gamma=0.5)
    for target, state in zip((resumed, fresh, their_scheduler), saved, strict=True):
        target.load_state_dict(state)

    assert fresh.param_groups[0]["lr"] == 0.005
    assert train(resumed, fresh, 3, seed=5) == expected


@pytest.mark.parametrize("grow", [7, 3, 12], ids=["same-nnz", "fewer", "more"])
def test_a_compiled_layer_computes_with_the_new_topology(grow):
    torch._dynamo.reset()
    layer = layer_of()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    optimizer = OPTIMIZERS["momentum"](layer.parameters())
    train(compiled, optimizer, 2)
    layer.update_topology(*an_update(layer, grow=grow), optimizer)
    twin = copy.deepcopy(layer)
    x = torch.randn(4, COLS, dtype=torch.float64)

    for each, own in ((compiled, layer), (twin, twin)):
        y = each(x)
        torch.testing.assert_close(y, torch.nn.functional.linear(x, own.to_dense(), own.bias))
        own.zero_grad()
        y.square().sum().backward()
    assert torch.equal(layer.values.grad, twin.values.grad)


def test_an_average_of_the_weights_is_updated_by_the_same_call():
    layer = layer_of()
    average = torch.optim.swa_utils.AveragedModel(
        layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    optimizer = OPTIMIZERS["Adam"](layer.parameters())
    train(layer, optimizer, 2)
    average.update_parameters(layer)
    old = average.module.values.detach().clone()
    drop, grow = an_update(layer, grow=4)

    source = layer.update_topology(drop, grow, optimizer).source
    average.module.update_topology(drop, grow)

    assert torch.equal(average.module.values, ops.carry(old, source))
    train(layer, optimizer, 1)
    average.update_parameters(layer)
    assert torch.equal(mask_of(average.module), mask_of(layer))


@pytest.mark.parametrize(
    ("drop", "grow", "optimizer", "message"),
    [
        ([0], [0, 200], None, r"grow: expected values in \[0, 108\), got 0 to 200"),
        ([99], [], None, r"drop: expected values in \[0, .*\), got 99"),
        ([], None, None, "grow: expected positions that are not stored or are dropped"),
        ([0], [], torch.optim.SGD([nn.Parameter(torch.ones(1))]), "expected one that trains the"),
        ([0], [], "LBFGS", "optimizer: expected one that holds its state by weight, got LBFGS"),
    ],
)
def test_a_refused_update_changes_nothing(drop, grow, optimizer, message):
    layer = layer_of()
    first = int(layer.col_indices[0])  # a stored position of the first row
    drop = torch.tensor(drop, dtype=torch.int64)
    grow = torch.tensor([first] if grow is None else grow, dtype=torch.int64)
    if optimizer == "LBFGS":
        optimizer = torch.optim.LBFGS(layer.parameters())
    before = copy.deepcopy(layer.state_dict())

    with pytest.raises(ValueError, match=message):
        layer.update_topology(drop, grow, optimizer)

    assert_equal_state(layer.state_dict(), before)
