"""The examples of ITOP, GraNet and sparse_learning, as their main scripts and READMEs call them."""

import argparse
import copy
import inspect
import io
import math

import pytest
import torch
from torch import nn, optim

import fullspectrum_ext as fs
from fullspectrum_ext.compat import granet, itop, sparse_learning

STEPS_IN_EPOCH = 10


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    )


def batches():
    torch.manual_seed(1)
    return [(torch.randn(8, 2, 6, 6), torch.randint(5, (8,))) for _ in range(STEPS_IN_EPOCH)]


def parser_of(origin):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--multiplier", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--l2", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--optimizer")
    parser.add_argument("--decay_frequency", type=int)
    parser.add_argument("--batch-size", type=int)
    origin.add_sparse_args(parser)
    return parser


def train(model, optimizer, loader, mask):
    model.train()
    for data, target in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data), target).backward()
        if mask is not None:
            mask.step()
        else:
            optimizer.step()


def sgd(model, args):
    return optim.SGD(
        model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.l2, nesterov=True
    )


def nonzero(model):
    return {
        name: int(weight.count_nonzero())
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }


# ---- ITOP --------------------------------------------------------------------------------------

ITOP_README = (
    "--sparse --seed 18 --sparse_init ERK --multiplier 1 --lr 0.1 --density 0.05 "
    "--update_frequency {every} --epochs 250 --model vgg-c --data cifar10 --decay_frequency 30000 "
    "--batch-size 128 --growth {growth} --death magnitude --redistribution none"
)


def itop_masking(model, *extra, growth="random", every=4, epochs=3, **options):
    line = ITOP_README.format(growth=growth, every=every).split()
    args = parser_of(itop).parse_args([*line, "--epochs", str(epochs), "--lr", "0.05", *extra])
    torch.manual_seed(args.seed)
    optimizer = sgd(model, args)
    decay = itop.CosineDecay(args.death_rate, STEPS_IN_EPOCH * (args.epochs * args.multiplier))
    mask = itop.Masking(
        optimizer,
        death_rate=args.death_rate,
        death_mode=args.death,
        death_rate_decay=decay,
        growth_mode=args.growth,
        redistribution_mode=args.redistribution,
        args=args,
    )
    mask.add_module(model, sparse_init=args.sparse_init, density=args.density, **options)
    return optimizer, mask


@pytest.mark.parametrize("growth", ["random", "gradient", "momentum"])
@pytest.mark.parametrize("death", ["magnitude", "SET", "Taylor_FO"])
def test_itop_as_its_main_script_trains(growth, death):
    model, loader = network(), batches()
    parameters = list(model.parameters())
    optimizer, mask = itop_masking(model, "--death", death, growth=growth)
    total = 8 * 2 * 9 + 8 * 36 * 20 + 20 * 5
    assert mask.masks.nnz == round(0.05 * total)
    counts = {name: int(m.sum()) for name, m in mask.masks.items()}
    before = sum(nn.functional.cross_entropy(model(x), y).item() for x, y in loader)
    for _ in range(3):
        masks = mask.masks
        train(model, optimizer, loader, mask)
        assert mask.masks != masks
        # exact in each layer, and nothing beside the masks
        assert {name: int(m.sum()) for name, m in mask.masks.items()} == counts
        for name, m in mask.masks.items():
            assert not model.get_parameter(name)[~m].any()
    after = sum(nn.functional.cross_entropy(model(x), y).item() for x, y in loader)
    assert after < before
    # the optimizer made before still trains the same objects, and holds nothing under the masks
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    for name, m in mask.masks.items():
        assert not optimizer.state[model.get_parameter(name)]["momentum_buffer"][~m].any()

    layer_fired_weights, total_fired_weights = mask.fired_masks_update()
    assert set(layer_fired_weights) == set(counts)
    assert mask.masks.density < total_fired_weights < 1
    assert math.isclose(mask.death_rate, 0.005)


def test_itop_updates_come_at_the_steps_of_the_original_and_drop_by_the_decayed_rate():
    model, loader = network(), batches()
    optimizer, mask = itop_masking(model, every=4, epochs=1)
    changed, decay = [], itop.CosineDecay(0.5, 10)
    for step, (data, target) in enumerate(loader, 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data), target).backward()
        masks = mask.masks
        mask.step()
        decay.step()
        assert mask.death_rate == decay.get_dr()
        if mask.masks != masks:
            changed.append(step)
            for name, m in mask.masks.items():
                dropped = int((masks[name] & ~m).sum())
                assert dropped <= int(decay.get_dr() * int(m.sum()))
    assert changed == [4, 8]


def test_growth_by_gradient_is_that_of_the_dense_gradient():
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    optimizer, mask = itop_masking(model, "--density", "0.2", growth="gradient", every=1)
    inputs, targets = torch.randn(8, 30).double(), torch.randint(5, (8,))
    dense = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    dense.load_state_dict({k: v for k, v in model.state_dict().items() if "mask" not in k})
    nn.functional.cross_entropy(dense(inputs), targets).backward()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    before = mask.masks
    optimizer.step()
    stepped = {name: model.get_parameter(name).detach().clone() for name in before}
    # the same step again, by the mask
    model.load_state_dict({**model.state_dict(), **dense.state_dict()})
    optimizer.state.clear()
    mask.step()
    for name, now in mask.masks.items():
        count = int(mask.death_rate * int(before[name].sum()))
        magnitudes = stepped[name].abs().masked_fill(~before[name], torch.inf).view(-1)
        kept = before[name].clone()
        kept.view(-1)[magnitudes.argsort()[:count]] = False
        gradient = dense.get_parameter(name).grad.abs().masked_fill(kept, -1).view(-1)
        kept.view(-1)[gradient.argsort(descending=True)[:count]] = True
        assert torch.equal(now, kept)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_truly_sparse_and_masked_train_alike(momentum):
    found = []
    for backend in ("masked", "sparse"):
        model = network().double()
        optimizer, mask = itop_masking(model, "--momentum", "0.9", backend=backend)
        for group in optimizer.param_groups:
            group["momentum"], group["nesterov"] = momentum, momentum > 0
        loader = [(data.double(), target) for data, target in batches()]
        train(model, optimizer, loader, mask)
        found.append((mask.masks, fs.densify(model).state_dict()))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value)


def test_truly_sparse_takes_the_optimizer_s_state_along():
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5))
    args = parser_of(itop).parse_args(["--update_frequency", "5"])
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    model(torch.randn(4, 30)).square().sum().backward()
    optimizer.step()
    average = optimizer.state[model[0].weight]["exp_avg"].clone()
    mask = itop.Masking(optimizer, growth_mode="random", args=args)
    mask.add_module(model, 0.1, "uniform", backend="sparse")
    values = model[0].values
    assert any(p is values for p in optimizer.param_groups[0]["params"])
    assert len(optimizer.param_groups[0]["params"]) == len(optimizer.state) == 4
    assert torch.equal(optimizer.state[values]["exp_avg"], average[mask.masks["0.weight"]])
    assert float(optimizer.state[values]["step"]) == 1
    before = values.detach().clone()
    model(torch.randn(4, 30)).square().sum().backward()
    mask.step()
    assert (values != before).all()


@pytest.mark.parametrize("growth", ["random", "gradient", "momentum"])
def test_resuming_is_bit_for_bit(growth):
    def begin():
        model = network()
        return model, *itop_masking(model, growth=growth)

    model, optimizer, mask = begin()
    loader = batches()
    train(model, optimizer, loader[:6], mask)
    saved = [thing.state_dict() for thing in (model, optimizer, mask)]
    saved = torch.load(_saved(saved))
    train(model, optimizer, loader, mask)

    other, other_optimizer, other_mask = begin()
    for thing, state in zip((other, other_optimizer, other_mask), saved, strict=True):
        thing.load_state_dict(state)
    assert other_mask.steps == 6
    train(other, other_optimizer, loader, other_mask)
    assert other_mask.masks == mask.masks
    assert other_mask.death_rate == mask.death_rate
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def _saved(states):
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("init", "kept"), [("uniform", 0.1), ("ER", 0.1), ("lottery_ticket", 0.1), ("GMP", 1.0)]
)
def test_itop_begins_as_asked(init, kept):
    model = network()
    weight = model[4].weight.detach().clone()
    args = parser_of(itop).parse_args(["--fix"])
    mask = itop.Masking(sgd(model, args), args=args)
    mask.add_module(model, sparse_init=init, density=0.1)
    assert mask.masks.nnz == round(kept * mask.masks.numel)
    assert nonzero(model) == {name: int(m.sum()) for name, m in mask.masks.items()}
    assert torch.equal(model[4].weight, weight * mask.masks["4.weight"])
    if init == "lottery_ticket":
        kept = weight.abs()[mask.masks["4.weight"]]
        assert kept.min() >= weight.abs()[~mask.masks["4.weight"]].max()


def test_fix_keeps_the_masks():
    model, loader = network(), batches()
    optimizer, mask = itop_masking(model, "--fix")
    before = mask.masks
    train(model, optimizer, loader, mask)
    assert mask.masks == before
    assert mask.dynamic is None
    rates, total = mask.fired_masks_update()
    assert math.isclose(total, before.density)
    assert rates["0.weight"] == int(before["0.weight"].sum()) / before["0.weight"].numel()
    with pytest.raises(RuntimeError, match="these are fixed"):
        mask.truncate_weights()


def test_layers_that_are_excluded_stay_dense():
    model = network()
    _, mask = itop_masking(model, exclude="0")
    assert type(model[0]) is nn.Conv2d
    assert list(mask.masks) == ["4.weight", "6.weight"]
    assert mask.masks.nnz == round(0.05 * mask.masks.numel)


def test_the_state_of_another_masking_is_refused():
    _, mask = itop_masking(network())
    _, fixed = itop_masking(network(), "--fix")
    for of, to in ((mask, fixed), (fixed, mask)):
        with pytest.raises(ValueError, match="state: expected that of the same arguments"):
            to.load_state_dict(of.state_dict())


# ---- GraNet ------------------------------------------------------------------------------------

GRANET_README = {
    "GraNet from dense": "--method GraNet --init-density 1",
    "GraNet from half": "--method GraNet --init-density 0.50",
    "GraNet, the same in each layer": "--method GraNet_uniform --init-density 0.50",
    "RigL": "--method DST --init-density 0.10",
    "GMP": "--method GMP --init-density 1",
    "GMP, the same in each layer": "--method GMP_uniform --init-density 1",
}


GRANET_LINE = (
    "--sparse --prune-rate 0.5 --optimizer sgd --sparse-init ERK --final-density 0.10 {} "
    "--l2 0.0005 --lr 0.1 --epochs 160 --model ResNet50 --data cifar10 "
    "--update-frequency 3 --lr 0.05 --epochs 4 --final-prune-epoch 3"  # in so short a training
)


def granet_masking(model, line, *extra, **options):
    args = parser_of(granet).parse_args([*GRANET_LINE.format(line).split(), *extra])
    torch.manual_seed(args.seed)
    loader = batches()
    optimizer = sgd(model, args)
    decay = granet.CosineDecay(args.prune_rate, len(loader) * (args.epochs * args.multiplier))
    mask = granet.Masking(
        optimizer,
        prune_rate=args.prune_rate,
        death_mode=args.prune,
        prune_rate_decay=decay,
        growth_mode=args.growth,
        redistribution_mode=args.redistribution,
        args=args,
        train_loader=loader,
    )
    mask.add_module(model, sparse_init=args.sparse_init, **options)
    return optimizer, mask, loader


@pytest.mark.parametrize("what", GRANET_README)
def test_granet_as_its_readme_trains(what):
    model = network()
    optimizer, mask, loader = granet_masking(model, GRANET_README[what])
    total = mask.masks.numel
    first = {"RigL": 0.1}.get(what, 0.5 if "half" in what or what.startswith("GraNet,") else 1.0)
    assert mask.masks.nnz == round(first * total)
    seen = [mask.masks.nnz]
    for _ in range(4):
        masks = mask.masks
        train(model, optimizer, loader, mask)
        seen.append(mask.masks.nnz)
        # after the end of the schedule gradual pruning alone has done
        assert (mask.masks != masks) or ("GMP" in what and len(seen) == 5)
        for name, m in mask.masks.items():
            assert not model.get_parameter(name)[~m].any()
    final = round(0.1 * total)
    if "each layer" in what:
        final = sum(round(0.1 * m.numel()) for m in mask.masks.values())
    assert seen[3:] == [final, final]
    assert seen == sorted(seen, reverse=True)
    if what != "RigL":
        # the density after the second epoch, as the original counts it: updates 0 to 10
        x = (20 // 3) / (30 // 3)
        density = 0.1 + (first - 0.1) * (1 - x) ** 3
        assert abs(seen[2] - density * total) <= 2


@pytest.mark.parametrize("method", ["GraNet", "GMP"])
def test_granet_truly_sparse_takes_the_same_course(method):
    found = []
    for backend in ("masked", "sparse"):
        model = network().double()
        line = f"--method {method} --init-density 1"
        optimizer, mask, loader = granet_masking(model, line, backend=backend)
        loader = [(data.double(), target) for data, target in loader]
        for _ in range(3):
            train(model, optimizer, loader, mask)
        found.append(mask.masks)
        state = copy.deepcopy(model.state_dict())
        train(model, optimizer, loader, mask)
        model.load_state_dict(state)  # the best model, as their scripts do
        assert mask.masks == found[-1]
    assert found[0] == found[1]
    assert found[0].nnz == round(0.1 * found[0].numel)


@pytest.mark.parametrize("method", ["GraNet", "GMP"])
def test_granet_begins_in_the_epoch_asked_for(method):
    model = network()
    line = f"--method {method} --init-density 1 --init-prune-epoch 1"
    optimizer, mask, loader = granet_masking(model, line)
    counts = []
    for _ in range(4):
        for batch in loader:
            train(model, optimizer, [batch], mask)
            counts.append(mask.masks.nnz)
    total = mask.masks.numel
    # the first update from step 10 on, at 12, is the fourth; the tenth, at 30, is the last of them
    assert counts[:11] == [total] * 11
    for number in range(4, 10):
        left = 1 - (number - 3) / 7
        assert abs(counts[3 * number - 1] - (0.1 + 0.9 * left**3) * total) <= 1
    assert counts[29:] == [round(0.1 * total)] * 11


def test_pruning_more_between_goes_by_the_schedule():
    optimizer, mask, loader = granet_masking(model := network(), "--method GMP --init-density 1")
    counts = []
    for batch in loader:
        train(model, optimizer, [batch], mask)
        counts.append(mask.masks.nnz)
        mask.truncate_weights()
        assert mask.masks.nnz == counts[-1]  # what is due is there already
    changed = [step for step in range(2, 11) if counts[step - 1] != counts[step - 2]]
    assert changed == [3, 6, 9]


def test_granet_keeps_the_first_layer_dense():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(self.conv(x).flatten(1))

    _, mask, _ = granet_masking(Net(), GRANET_README["RigL"], "--rm-first")
    assert list(mask.masks) == ["fc.weight"]


# ---- sparse_learning ---------------------------------------------------------------------------


@pytest.mark.parametrize("growth", ["momentum", "random"])
@pytest.mark.parametrize("redistribution", ["momentum", "magnitude", "nonzero", "none"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_sparse_learning_as_its_template_trains(growth, redistribution, schedule):
    model, loader = network(), batches()
    args = parser_of(sparse_learning).parse_args([
        *("--growth", growth, "--redistribution", redistribution, "--density", "0.1"),
        *("--epochs", "3", "--lr", "0.05"),
    ])
    optimizer = sgd(model, args)
    if schedule == "cosine":
        decay = sparse_learning.CosineDecay(args.prune_rate, len(loader) * (args.epochs))
    else:
        decay = sparse_learning.LinearDecay(args.prune_rate, len(loader) * (args.epochs) + 1)
    mask = sparse_learning.Masking(
        optimizer,
        decay,
        prune_rate=args.prune_rate,
        prune_mode=args.prune,
        growth_mode=args.growth,
        redistribution_mode=args.redistribution,
        verbose=args.verbose,
        fp16=False,
    )
    mask.add_module(model, density=args.density)
    first = {name: int(m.sum()) for name, m in mask.masks.items()}
    moved = False
    for _ in range(3):
        masks = mask.masks
        train(model, optimizer, loader, mask)
        assert mask.masks == masks
        mask.at_end_of_epoch()
        assert mask.masks.nnz == round(0.1 * mask.masks.numel)
        now = {name: int(m.sum()) for name, m in mask.masks.items()}
        moved |= now != first
        assert mask.masks != masks or mask.prune_rate < 0.02
        assert redistribution != "none" or now == first
    assert moved or redistribution == "none"
    assert mask.steps == 30


def test_an_update_between_does_not_move_the_regular_ones(capsys):
    model, loader = network(), batches()
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    mask = sparse_learning.Masking(
        optimizer, sparse_learning.CosineDecay(0.5, 100), prune_every_k_steps=4, verbose=True
    )
    mask.add_module(model, density=0.2, sparse_init="linear")
    changed = []
    for step, batch in enumerate(loader, 1):
        masks = mask.masks
        train(model, optimizer, [batch], mask)
        if mask.masks != masks:
            changed.append(step)
        if step in {2, 5}:
            masks = mask.masks
            mask.at_end_of_epoch()
            assert mask.masks != masks
            assert f"density: {float(mask.masks['6.weight'].float().mean()):.3f}" in (
                capsys.readouterr().out
            )
    assert changed == [4, 8]


def test_a_sparse_model_without_its_masks_is_gone_on_with():
    model = network()
    masks = fs.prune(model, "magnitude", sparsity=0.8)
    masks.apply(model)
    mask = sparse_learning.Masking(
        optim.SGD(model.parameters(), lr=0.1), sparse_learning.CosineDecay(0.5, 10)
    )
    mask.add_module(model, density=0.2, sparse_init="resume")
    assert mask.masks == masks


def test_layers_are_left_out_by_a_part_of_their_name():
    model = network()
    mask = sparse_learning.Masking(
        optim.SGD(model.parameters(), lr=0.1), sparse_learning.CosineDecay(0.5, 10)
    )
    mask.add_module(model, 0.2, "constant", ("4.", "6."))
    assert list(mask.masks) == ["0.weight"]


# ---- signatures and refusals -------------------------------------------------------------------

SIGNATURES = {
    itop.Masking: (
        "optimizer death_rate=0.3 growth_death_ratio=1.0 death_rate_decay=None "
        "death_mode='magnitude' growth_mode='momentum' redistribution_mode='momentum' "
        "threshold=0.001 args=None"
    ),
    itop.Masking.add_module: "module density sparse_init='ER'",
    itop.CosineDecay: "death_rate T_max eta_min=0.005 last_epoch=-1",
    granet.CosineDecay: "prune_rate T_max eta_min=0.005 last_epoch=-1",
    itop.LinearDecay: "death_rate factor=0.99 frequency=600",
    granet.Masking: (
        "optimizer prune_rate=0.3 growth_death_ratio=1.0 prune_rate_decay=None "
        "death_mode='magnitude' growth_mode='momentum' redistribution_mode='momentum' "
        "threshold=0.001 args=None train_loader=None device=None"
    ),
    granet.Masking.add_module: "module sparse_init='ERK' grad_dic=None",
    sparse_learning.Masking: (
        "optimizer prune_rate_decay prune_rate=0.5 prune_mode='magnitude' growth_mode='momentum' "
        "redistribution_mode='momentum' prune_every_k_steps=0 verbose=False fp16=False"
    ),
    sparse_learning.Masking.add_module: (
        "module density sparse_init='constant' remove_param_names=()"
    ),
    sparse_learning.LinearDecay: "prune_rate T_max",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_arguments_stand_where_the_original_has_them(function):
    found = [
        parameter.name + ("" if parameter.default is parameter.empty else f"={parameter.default!r}")
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self"
    ]
    assert found == SIGNATURES[function].split(" ")


def test_the_decays_are_those_of_torch():
    decay = itop.CosineDecay(0.5, 40)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = optim.SGD([weight], lr=0.5)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, 0.005)
    for _ in range(40):
        decay.step()
        optimizer.step()
        scheduler.step()
        assert math.isclose(decay.get_dr(), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
    decay.step()
    assert decay.get_dr() == 0.005
    linear = itop.LinearDecay(0.5, factor=0.5, frequency=3)
    rates = [0.5]
    for _ in range(7):
        linear.step()
        rates.append(linear.get_dr(rates[-1]))
    assert rates == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]


def make(origin, **options):
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    if origin is sparse_learning:
        return sparse_learning.Masking(optimizer, sparse_learning.CosineDecay(0.5, 10), **options)
    line = options.pop("line", "").split()
    options.setdefault("growth_mode", "gradient")
    options.setdefault("args", parser_of(origin).parse_args(line))
    if origin is granet:
        options.setdefault("train_loader", batches())
    return origin.Masking(optimizer, **options)


REFUSED = [
    (itop, {"death_mode": "threshold"}, "'dsr'"),
    (itop, {"growth_mode": "random_unfired"}, "fired_masks_update"),
    (itop, {"growth_mode": "momentum_neuron"}, "'momentum' looks"),
    (itop, {"growth_mode": "best"}, "growth_mode: expected one of random, gradient, momentum"),
    (itop, {"growth_death_ratio": 0.5}, "growth_death_ratio: expected 1, got 0.5"),
    (itop, {"args": None}, "add_sparse_args"),
    (itop, {"death_rate": 1.5}, "fraction"),
    (granet, {"line": "--method SNIP"}, "args.method: expected one of GraNet"),
    (granet, {"growth_mode": "random"}, "args.method 'DST' has others"),
    (granet, {"death_mode": "SET"}, "args.method 'DST' has others"),
    (granet, {"line": "--final-prune-epoch 0"}, "final_prune_epoch: expected an update"),
    (granet, {"train_loader": None, "args": None}, "args: expected the options"),
    (granet, {"train_loader": iter([])}, "train_loader: expected one with a length"),
    (sparse_learning, {"prune_mode": "global_magnitude"}, "'dsr'"),
    (sparse_learning, {"growth_mode": "global_momentum_growth"}, "redistribution 'momentum'"),
    (sparse_learning, {"redistribution_mode": "variance"}, "redistribution_mode: expected one of"),
    (sparse_learning, {"fp16": True}, r"torch\.autocast"),
]


@pytest.mark.parametrize(("origin", "options", "message"), REFUSED)
def test_what_has_no_counterpart_is_refused_by_what_to_use(origin, options, message):
    with pytest.raises(ValueError, match=message):
        make(origin, **options)


def test_a_function_of_one_s_own_is_refused_by_what_to_write():
    with pytest.raises(TypeError, match=r"write a fullspectrum_ext\.dynamic\.Method"):
        make(sparse_learning, prune_mode=lambda masking, mask, weight, name: mask)


def test_calls_that_make_no_sense_here_are_refused_by_message():
    mask = make(itop)
    with pytest.raises(AttributeError, match="name the layers that stay dense to add_module"):
        mask.remove_weight_partial_name("fc")
    with pytest.raises(AttributeError, match="Masking has no 'prunable' here$"):
        mask.prunable  # noqa: B018
    with pytest.raises(RuntimeError, match=r"add_module\(model\) first"):
        mask.masks  # noqa: B018
    with pytest.raises(ValueError, match="wrap it in Sequential"):
        mask.add_module(nn.Linear(4, 3), 0.5, "ERK")
    with pytest.raises(ValueError, match=r"expected one that trains 0\.weight"):
        mask.add_module(network(), 0.5, "ERK")

    model = network()
    _, mask = itop_masking(model, growth="gradient")
    with pytest.raises(ValueError, match="expected one model"):
        mask.add_module(model, 0.5, "ERK")
    with pytest.raises(RuntimeError, match="looks at the gradient of a step"):
        mask.truncate_weights()
    with pytest.raises(TypeError, match="optimizer: expected one of torch"):
        itop.Masking(model, args=parser_of(itop).parse_args([]))
    with pytest.raises(ValueError, match="sparse_init: expected one of ERK"):
        make(itop).add_module(model, 0.5, "prune")
    mask = make(granet, line="--sparse-init prune_and_grow_global")
    with pytest.raises(ValueError, match=r"fullspectrum_ext\.prune"):
        mask.add_module(network())


def test_apply_mask_zeroes_what_was_written():
    model = network()
    _, mask = itop_masking(model)
    with torch.no_grad():
        model[4].weight.add_(1)
    mask.apply_mask()
    assert torch.equal(model[4].weight != 0, mask.masks["4.weight"])
