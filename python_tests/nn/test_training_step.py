"""A whole training step is sparse, with all that people put around one.

Many of these are cases in which other packages fail: their docstrings say how.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import swa_utils
from torch.utils import checkpoint

from fullspectrum_ext.nn import densify, load_sparse_state_dict, sparsify, training_bytes

FLOAT64 = {"rtol": 1e-11, "atol": 1e-12}


def mlp():
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


INPUTS = {mlp: (20,), conv_net: (2, 6, 6)}
both_kinds = pytest.mark.parametrize("build", INPUTS)


def masks_of(model, density=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parameter.shape, generator=generator) < density
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }


def pair(build, dtype=torch.float64, density=0.2):
    """The same sparse network, truly sparse and dense with masks."""
    torch.manual_seed(0)
    model = build().to(dtype)
    masks = masks_of(model, density)
    return tuple(
        sparsify(copy.deepcopy(model), masks, backend=backend) for backend in ("sparse", "masked")
    )


def batch(build, size=8, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *INPUTS[build], generator=generator, dtype=dtype)
    return x, torch.randint(5, (size,), generator=generator)


def loss_of(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def backward(model, x, y):
    model.zero_grad()
    loss_of(model, x, y).backward()


def dense_state(model):
    """The parameters of the dense network that the model computes."""
    return densify(copy.deepcopy(model)).state_dict()


def assert_same_network(a, b, **tolerance):
    found, expected = dense_state(a), dense_state(b)
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], **tolerance)


def assert_same_bits(a, b, x, y):
    """Outputs and gradients are equal bit for bit."""
    for model in (a, b):
        backward(model, x, y)
    assert torch.equal(a(x), b(x))
    for own, other in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)


# ---- what is held --------------------------------------------------------------------------------


@both_kinds
def test_gradients_and_optimizer_state_hold_what_is_kept(build):
    """torch's own CSR weights get a dense gradient, and optimizers refuse them."""
    sparse, masked = pair(build)
    kept = sum(int(mask.sum()) for mask in masks_of(build()).values())
    others = sum(p.numel() for p in build().parameters() if p.dim() == 1)
    optimizer = torch.optim.Adam(sparse.parameters())

    backward(sparse, *batch(build))
    optimizer.step()

    assert sum(p.grad.numel() for p in sparse.parameters()) == kept + others
    for key in ("exp_avg", "exp_avg_sq"):
        assert sum(state[key].numel() for state in optimizer.state.values()) == kept + others


def test_adam_at_99_percent_holds_one_percent_of_the_state():
    """Masks over dense weights save no memory: 2639 MB dense became 2765 MB "sparse"."""
    model = nn.Sequential(*[nn.Linear(200, 200, bias=False) for _ in range(3)])
    masks = {name: torch.rand(200, 200).argsort(1) < 2 for name, _ in model.named_parameters()}
    sparsify(model, masks, backend="sparse")
    optimizer = torch.optim.Adam(model.parameters())

    model(torch.randn(4, 200)).sum().backward()
    optimizer.step()

    held = sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.dim() == 1)
    assert held == 2 * 3 * 200 * 2  # of 2 * 3 * 200 * 200


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
def test_a_checkpoint_shrinks_with_the_weights(sparsity):
    """With torch's pruning a 90 % sparse checkpoint has twice the size of the dense one."""
    model = nn.Linear(500, 500)
    sizes = []
    for state in (
        model.state_dict(),
        sparsify(model, masks_of(model, 1 - sparsity), backend="sparse").state_dict(),
    ):
        file = io.BytesIO()
        torch.save(state, file)
        sizes.append(file.tell())
    # a value and a column index for each kept weight
    assert sizes[1] < (2.1 * (1 - sparsity) + 0.02) * sizes[0]


def test_memory_of_training_at_95_percent_is_below_12_percent_of_dense():
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024))
    dense = training_bytes(model)
    sparsify(model, masks_of(model, 0.05), backend="sparse")
    assert training_bytes(model) < 0.12 * dense


def test_training_bytes_are_what_tensors_hold():
    model = conv_net()
    optimizer = torch.optim.Adam(model.parameters())
    backward(model, *batch(conv_net, dtype=torch.float32))
    optimizer.step()
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    tensors += [state[key] for state in optimizer.state.values() for key in state if key != "step"]
    assert training_bytes(model) == sum(t.numel() * t.element_size() for t in tensors)
    model[0].weight.requires_grad_(False)
    assert (
        training_bytes(model)
        == sum(t.numel() * t.element_size() for t in tensors) - 3 * model[0].weight.nbytes
    )


# ---- optimizers ----------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "adam foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@both_kinds
def test_every_optimizer_does_to_a_sparse_model_what_it_does_to_a_masked_one(build, name):
    """SGD and Adam both raise on torch's CSR parameters."""
    sparse, masked = pair(build)
    start = dense_state(sparse)
    for model in (sparse, masked):
        optimizer = OPTIMIZERS[name](model.parameters())
        for step in range(4):
            backward(model, *batch(build, seed=step))
            optimizer.step()
    assert_same_network(sparse, masked, rtol=1e-8, atol=1e-9)
    moved = dense_state(sparse)
    assert any(not torch.equal(moved[key], start[key]) for key in start)


@both_kinds
def test_gradient_clipping(build):
    models = pair(build)
    norms = []
    for model in models:
        backward(model, *batch(build))
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
        nn.utils.clip_grad_value_(model.parameters(), 0.02)
        torch.optim.SGD(model.parameters(), 1.0).step()
    torch.testing.assert_close(norms[0], norms[1], **FLOAT64)
    assert norms[0] > 0.1
    assert_same_network(*models, **FLOAT64)


def test_gradients_accumulate():
    sparse, masked = pair(mlp)
    x, y = batch(mlp)
    backward(masked, x, y)
    for half in (slice(4), slice(4, 8)):
        (loss_of(sparse, x[half], y[half]) / 2).backward()
    for model in (sparse, masked):
        torch.optim.SGD(model.parameters(), 1.0).step()
    assert_same_network(sparse, masked, **FLOAT64)


@both_kinds
def test_averaged_weights(build):
    averages = []
    for model in pair(build):
        average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(5):
            backward(model, *batch(build, seed=step))
            optimizer.step()
            average.update_parameters(model)
        averages.append(average.module)
    assert_same_network(*averages, **FLOAT64)


def test_averages_beside_batch_normalisation_leave_the_topology_alone():
    """``use_buffers=True`` would average indices: statistics come from ``update_bn`` instead."""
    model = pair(conv_net)[0]
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(5):
        backward(model, *batch(conv_net, seed=step))
        optimizer.step()
        average.update_parameters(model)
    swa_utils.update_bn([batch(conv_net, seed=step)[0] for step in range(3)], average)

    for own, averaged in zip(model, average.module, strict=True):
        for name, buffer in own.named_buffers():
            if not buffer.is_floating_point() and name != "num_batches_tracked":
                assert torch.equal(buffer, averaged.get_buffer(name))
    assert not torch.equal(average.module[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize("build", [mlp, conv_net])
def test_averaged_indices_are_refused(build):
    """Cut to integers, 0.9 * 7 + 0.1 * 7 may be 6: another network, without a word."""
    model = pair(build)[0]
    average = swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    for _ in range(5):
        average.update_parameters(model)
    with pytest.raises(RuntimeError, match=r"AveragedModel\(use_buffers=True\) averages indices"):
        average(batch(build, seed=0)[0])
    model(batch(build, seed=0)[0])


@both_kinds
def test_indices_may_be_written_over_with_themselves(build):
    """As data parallel training does it before each step."""
    model = pair(build)[0]
    x = batch(build, seed=0)[0]
    expected = model(x)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.copy_(buffer.clone())
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("where", ["model", "optimizer", "both"])
@both_kinds
def test_a_resumed_training_goes_on_bit_for_bit(build, where):
    """Others lose masks or topology on resume: outputs differ, or keys are missing."""

    def trained(model, optimizer, steps):
        for step in steps:
            backward(model, *batch(build, seed=step))
            optimizer.step()

    def start():
        model = pair(build)[0]
        return model, torch.optim.AdamW(model.parameters(), 0.01)

    model, optimizer = start()
    trained(model, optimizer, range(6))
    halfway, its_optimizer = start()
    trained(halfway, its_optimizer, range(3))
    file = io.BytesIO()
    torch.save([halfway.state_dict(), its_optimizer.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=True)

    resumed = build().double()
    if where == "model":  # another topology gives way to the saved one
        sparsify(resumed, masks_of(resumed, 0.5, seed=7), backend="sparse")
        resumed.load_state_dict(model_state)
    else:
        resumed = load_sparse_state_dict(resumed, model_state)
    new_optimizer = torch.optim.AdamW(resumed.parameters(), 0.5)
    new_optimizer.load_state_dict(optimizer_state)
    trained(resumed, new_optimizer, range(3, 6))

    assert resumed.state_dict().keys() == model.state_dict().keys()
    for key, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


# ---- mixed precision -----------------------------------------------------------------------------


@both_kinds
def test_autocast(build):
    """Sparse layers of others ignore autocast, or have no half precision at all."""
    sparse, masked = pair(build, torch.float32)
    x, y = batch(build, dtype=torch.float32)
    outputs = []
    for model in (sparse, masked):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
            outputs.append(output)
            loss = nn.functional.cross_entropy(output, y)
        loss.backward()
        assert output.dtype == torch.bfloat16
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        torch.optim.SGD(model.parameters(), 0.1).step()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0.05, atol=0.05)
    assert_same_network(sparse, masked, rtol=0.05, atol=0.01)


@both_kinds
def test_training_in_bfloat16(build):
    sparse, masked = pair(build, torch.bfloat16)
    for model in (sparse, masked):
        backward(model, *batch(build, dtype=torch.bfloat16))
        torch.optim.SGD(model.parameters(), 0.1).step()
    assert_same_network(sparse, masked, rtol=0.05, atol=0.02)


@both_kinds
def test_a_gradient_scaler_changes_nothing_and_skips_overflows(build):
    plain, scaled = (pair(build)[0] for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (plain, scaled)]
    x, y = batch(build)

    backward(plain, x, y)
    optimizers[0].step()
    scaler.scale(loss_of(scaled, x, y)).backward()
    scaler.unscale_(optimizers[1])
    nn.utils.clip_grad_norm_(scaled.parameters(), 1e9)
    scaler.step(optimizers[1])
    scaler.update()
    assert_same_network(scaled, plain, rtol=0, atol=0)

    before = copy.deepcopy(scaled)
    optimizers[1].zero_grad()
    scaler.scale(loss_of(scaled, x * float("inf"), y)).backward()
    scaler.step(optimizers[1])
    scaler.update()
    for own, old in zip(scaled.parameters(), before.parameters(), strict=True):
        assert torch.equal(own, old)
    assert scaler.get_scale() == 2.0**9


# ---- compile, checkpoint, copies -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["sparse", "masked"])
@both_kinds
def test_a_training_step_compiles_in_one_graph(build, form):
    """Sparse tensors and layers of others break the graph."""
    torch._dynamo.reset()
    model = pair(build, torch.float32)[form == "masked"]
    twin = copy.deepcopy(model)
    x, y = batch(build, dtype=torch.float32)
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")

    for _ in range(2):
        for each, loss in ((model, compiled), (twin, loss_of)):
            optimizer = torch.optim.SGD(each.parameters(), 0.1)
            optimizer.zero_grad()
            loss(each, x, y).backward()
            optimizer.step()

    assert_same_network(model, twin, rtol=1e-4, atol=1e-5)
    if form == "masked":
        for layer in model:
            if hasattr(layer, "mask"):
                assert not layer.weight[~layer.mask].any()
                assert not layer.weight.grad[~layer.mask].any()


@pytest.mark.parametrize("reentrant", [False, True])
@both_kinds
def test_activation_checkpointing(build, reentrant):
    model, _ = pair(build)
    model = model.eval()  # or the statistics of the normalisation move twice
    x, y = batch(build)
    x.requires_grad_()
    backward(model, x, y)
    expected = [x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    x.grad = None

    y_hat = checkpoint.checkpoint_sequential(model, 2, x, use_reentrant=reentrant)
    nn.functional.cross_entropy(y_hat, y).backward()

    found = [x.grad, *(p.grad for p in model.parameters())]
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("form", ["sparse", "masked"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
@both_kinds
def test_copies(build, duplicate, trained, form):
    """With torch's pruning, deepcopy raises once the model has run."""
    model = pair(build)[form == "masked"]
    x, y = batch(build)
    if trained:
        backward(model, x, y)
    twin = duplicate(model)
    assert_same_bits(model, twin, x, y)
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert not torch.equal(model(x), twin(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@both_kinds
def test_other_dtypes_and_orders_leave_the_indices_integers(build, dtype):
    model = pair(build)[0].eval()
    expected = model(batch(build)[0])
    model.to(dtype).to(memory_format=torch.channels_last)
    x = batch(build)[0].to(dtype)
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x).double(), expected, rtol=0.05, atol=0.05)
    for layer in model:
        if hasattr(layer, "values"):
            assert {buffer.dtype for buffer in layer.buffers()} == {torch.int32}


@both_kinds
def test_a_whole_model_takes_an_empty_batch(build):
    model = pair(build)[0].eval()
    y = model(batch(build)[0][:0])
    y.sum().backward()
    assert y.shape == (0, 5)
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_layers_without_any_weight_train():
    model = conv_net().double()
    masks = {name: torch.zeros(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    sparsify(model, masks, backend="sparse", allow_empty=True)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        backward(model, *batch(conv_net))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert model[5].values.shape == (0,)
    assert model[5].bias.any()


@both_kinds
def test_an_exported_model_is_the_model(build):
    model = pair(build)[0].eval()
    size = torch.export.Dim("size")
    exported = torch.export.export(model, (batch(build)[0],), dynamic_shapes=({0: size},)).module()
    x = batch(build, size=3)[0]
    torch.testing.assert_close(exported(x), model(x), **FLOAT64)


@both_kinds
def test_frozen_values_pass_the_gradient_on(build):
    model, twin = pair(build)[0], pair(build)[0]
    x, y = batch(build)
    for each in (model, twin):
        each.x = x.clone().requires_grad_()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    loss_of(model, model.x, y).backward()
    loss_of(twin, twin.x, y).backward()
    torch.testing.assert_close(model.x.grad, twin.x.grad, **FLOAT64)
    assert all(parameter.grad is None for parameter in model.parameters())


@both_kinds
def test_assigned_state_brings_its_device_along(build):
    model = pair(build)[0].eval()
    empty = copy.deepcopy(model).to("meta")
    empty.load_state_dict(model.state_dict(), assign=True)
    assert_same_bits(model, empty, *batch(build))


@both_kinds
def test_half_a_topology_is_refused(build):
    model = pair(build)[0]
    layer = next(name for name, each in model.named_children() if hasattr(each, "values"))
    before = copy.deepcopy(model.state_dict())
    for field in ("crow_indices", "col_indices"):
        key = f"{layer}.{field}"
        other = {key: torch.zeros_like(before[key])}
        with pytest.raises(RuntimeError, match="go together, missing: "):
            model.load_state_dict(other, strict=False)
    values = {f"{layer}.values": torch.ones_like(before[f"{layer}.values"])}
    model.load_state_dict(values, strict=False)  # on the topology that is there
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, values.get(key, before[key]))


@pytest.mark.cuda
@both_kinds
def test_a_captured_step_is_the_step(build):
    device = torch.device("cuda")
    model, twin = (pair(build, torch.float32)[0].to(device) for _ in range(2))
    x, y = (tensor.to(device) for tensor in batch(build, dtype=torch.float32))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            backward(model, x, y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    model.zero_grad()
    with torch.cuda.graph(graph):
        loss_of(model, x, y).backward()
    graph.replay()
    backward(twin, x, y)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)
