"""What several processes find out together; dynamic/test_ranks.py starts them and reads this.

Run as ``python dynamic_ranks.py FOLDER``: four processes do the checks for four, then two of them
all checks, and each writes None or a traceback for every check.
"""

import argparse
import copy
import hashlib
import importlib
import io
import json
import multiprocessing
import pathlib
import runpy
import sys
import traceback
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from dynamic_courses import METHODS, OPTIMIZERS, SHAPES, conv, mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fullspectrum_ext as fs
from fullspectrum_ext import dynamic as methods
from fullspectrum_ext.compat import itop
from fullspectrum_ext.dynamic import DynamicSparsity

RECIPE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "recipes" / "ddp.py"
CHECKS = {4: [], 2: []}  # by the number of processes


def check(function):
    CHECKS[2].append(function.__name__)
    return function


def check_with_four_too(function):
    CHECKS[4].append(function.__name__)
    return check(function)


class Course:
    """A network that all ranks train, each on its rows of every batch."""

    def __init__(
        self,
        method,
        build=mlp,
        backend="sparse",
        optimizer=OPTIMIZERS["momentum"],
        group=None,
        **options,
    ):
        torch.manual_seed(1)
        self.build, self.rank = build, dist.get_rank(group)
        self.size = dist.get_world_size(group)
        model = build()
        fs.sparsify(model, fs.prune(model, "erk", sparsity=0.7, seed=2), backend=backend)
        self.ddp = DistributedDataParallel(model, process_group=group, **options.pop("ddp", {}))
        self.optimizer = optimizer(model.parameters())
        options = {"steps": 60, "every": 5, "seed": self.rank, **options}  # rank 0's seed counts
        if isinstance(method, dict):
            options.pop("every")
        self.course = hashlib.sha256()
        self.updates = []
        self.dynamic = DynamicSparsity(
            self.ddp, self.optimizer, method, on_update=self.updates.append, **options
        )
        self.data = torch.Generator().manual_seed(4)

    @property
    def model(self):
        return self.ddp.module

    def backward(self, model):
        y = torch.randint(10, (16,), generator=self.data)
        x = torch.randn(16, *SHAPES[self.build], generator=self.data, dtype=torch.float64)
        x[:, 0] += y.view(-1, *[1] * (x.dim() - 2))
        rows = slice(self.rank, None, self.size)
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.backward(self.ddp)
            self.optimizer.step()
            self.update()
        return self

    def update(self):
        if self.dynamic.step():
            self.course.update(self.dynamic.masks.digest().encode())

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "dynamic": self.dynamic.state_dict(),
            "data": self.data.get_state(),
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.dynamic.load_state_dict(state["dynamic"])
        self.data.set_state(state["data"])
        return self


def everywhere(value):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def same_everywhere(value):
    found = everywhere(value)
    assert all(other == found[0] for other in found), found


def bits(model):
    state = hashlib.sha256()
    for tensor in model.state_dict().values():
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def refused(error, *words):
    """Expect an error on all ranks, and words in it."""

    class Refused:
        def __enter__(self):
            return self

        def __exit__(self, kind, value, _trace):
            assert kind is not None, "nothing was refused"
            if not issubclass(kind, error):
                return False
            for word in words:
                assert word in str(value), f"{word!r} not in {value}"
            return True

    return Refused()


def sparse_linear(inputs, outputs, keep, backend="sparse", seed=0):
    """A layer of whole numbers, so that sums are exact and there are ties."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-3, 4, (outputs, inputs), generator=generator) + 0.25)
    mask = torch.rand(outputs, inputs, generator=generator) < keep
    return fs.sparsify(model, {"0.weight": mask}, backend=backend)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def alone():
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    return groups[dist.get_rank()]


@check
def every_method_takes_one_course():
    for method, options in METHODS.items():
        course = Course(method, **{"every": 2, **options}).train(13)
        assert len(course.updates) >= 6, method
        same_everywhere((course.course.hexdigest(), bits(course.model)))


@check
def masked_layers_and_convolutions_take_one_course():
    for build, backend in ((mlp, "masked"), (conv, "sparse"), (conv, "masked")):
        for method in ("rigl", "snfs"):
            course = Course(method, build, backend, every=3).train(10)
            assert len(course.updates) == 3
            parameters = [parameter.tolist() for parameter in course.model.parameters()]
            same_everywhere((course.course.hexdigest(), parameters))


@check_with_four_too
def five_hundred_updates_keep_one_topology():
    """Training where gradients are looked at; between, all ranks move their weights alike."""
    method = {"0": methods.SET(every=1), "2": methods.GradientITOP(every=25)}
    course = Course(method, steps=501)
    for _ in range(501):
        if course.dynamic.is_listening:
            course.train(1)
            continue
        with torch.no_grad():
            for values in (course.model[0].values, course.model[2].values):
                values.add_(torch.randn(values.shape, generator=course.data), alpha=0.01)
        course.update()
    assert len(course.updates) == 500
    same_everywhere((course.course.hexdigest(), bits(course.model)))


@check_with_four_too
def rigl_grows_what_one_process_with_the_whole_batch_does():
    rank, size = dist.get_rank(), dist.get_world_size()
    group = alone()
    cases = [
        (lambda: sparse_linear(40, 30, 0.3), (9, 40)),  # the batch is sent
        (lambda: sparse_linear(40, 30, 0.3), (97, 40)),  # the gradient is
        (lambda: sparse_linear(40, 30, 0.3, "masked"), (9, 40)),
        (lambda: sparse_linear(900, 1, 0.01), (9, 900)),  # fewer rows than ranks
        (lambda: whole_conv("sparse"), (7, 4, 6, 5)),
        (lambda: whole_conv("masked"), (7, 4, 6, 5)),
    ]
    for make, shape in cases:
        for batches in ([*range(1, size), shape[0] - size * (size - 1) // 2], None):
            x = torch.randint(-2, 3, shape).double()  # the same on all ranks
            if batches is None:  # rank 0 sees nothing
                batches = [0, *[0] * (size - 2), shape[0]]
            begin = sum(batches[:rank])
            rows = slice(begin, begin + batches[rank])
            grown = []
            for part, of in ((rows, None), (slice(None), group)):
                model = make()
                y = torch.randint(-2, 3, model(x).shape, generator=torch.Generator().manual_seed(5))
                optimizer = sgd(model)
                rigl = DynamicSparsity(
                    model, optimizer, "rigl", steps=9, every=1, fraction=0.5, process_group=of
                )
                if x[part].numel():
                    (model(x[part]) * y[part]).sum().backward()
                optimizer.step()
                assert rigl.step()
                grown.append(rigl.masks)
                assert (of is None) == (rigl.exchanged_bytes > 0)
            assert grown[0] == grown[1]


def whole_conv(backend):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-3, 4, (6, 2, 3, 3), generator=generator) + 0.25)
    mask = torch.rand(6, 2, 3, 3, generator=generator) < 0.3
    return fs.sparsify(model, {"0.weight": mask}, backend=backend)


@check
def a_gradient_of_several_slabs_is_selected_from_as_one():
    held = methods.shared_gradients._SLAB
    methods.shared_gradients._SLAB = 80  # two rows of the longest
    try:
        rigl_grows_what_one_process_with_the_whole_batch_does()
    finally:
        methods.shared_gradients._SLAB = held


@check
def momenta_of_dense_gradients_are_those_of_the_whole_batch():
    x = torch.randint(-2, 3, (16, 6)).double()
    rows = slice(dist.get_rank(), None, dist.get_world_size())
    momenta = []
    for part, group in ((rows, None), (slice(None), alone())):
        model = sparse_linear(6, 5, 0.4)
        snfs = DynamicSparsity(model, sgd(model), "snfs", steps=9, every=4, process_group=group)
        for _ in range(2):
            model(x[part]).square().mean().backward()
            snfs.step()
        (state,) = snfs.state_dict()["methods"]
        momenta.append(state["momenta"]["0.weight"])
    assert momenta[0].abs().sum() > 0
    torch.testing.assert_close(momenta[0], momenta[1])


@check_with_four_too
def a_rank_that_is_made_to_differ_is_named_at_the_next_update():
    odd = dist.get_world_size() - 1
    course = Course("set").train(6)
    if dist.get_rank() == odd:
        layer = course.model[2]
        free = (layer.to_dense().flatten() == 0).nonzero()[3]
        layer.update_topology(torch.tensor([1]), free, course.optimizer)
    with refused(RuntimeError, "2.weight", f"rank {odd}", "step 10"):
        course.train(5)
    assert course.dynamic.steps_done == 9


@check
def ranks_whose_weights_have_parted_are_named_and_nothing_changes():
    odd = dist.get_world_size() - 1
    course = Course("set").train(9)
    if dist.get_rank() == odd:
        with torch.no_grad():
            course.model[0].values.copy_(course.model[0].values.flip(0))
    before = course.dynamic.masks
    course.optimizer.zero_grad()
    course.backward(course.ddp)
    with refused(RuntimeError, "0.weight", f"rank {odd}", "step 10", "parted"):
        course.dynamic.step()
    assert course.dynamic.masks == before


@check
def masks_of_a_seed_a_rank_are_refused():
    """ITOP and GraNet draw each rank's mask from seed + rank, and train on."""
    model = mlp()
    fs.sparsify(model, fs.prune(model, "erk", sparsity=0.7, seed=dist.get_rank()), backend="sparse")
    with refused(ValueError, "model: 0.weight differs on rank", "one seed"):
        DynamicSparsity(model, sgd(model), "set", steps=20, every=2)
    # of truly sparse layers, DistributedDataParallel sends those of rank 0
    found = DynamicSparsity(
        DistributedDataParallel(model), sgd(model), "set", steps=20, every=2, seed=dist.get_rank()
    )
    same_everywhere(found.masks.digest())
    model(torch.randn(3, 20).double())


@check
def ranks_of_other_arguments_are_refused():
    rank = dist.get_rank()
    model = sparse_linear(6, 5, 0.4)
    with refused(ValueError, "method: expected the same on all ranks", "every=3"):
        DynamicSparsity(model, sgd(model), "set", steps=20, every=3 if rank else 2)
    with refused(ValueError, "steps: expected the same on all ranks"):
        DynamicSparsity(model, sgd(model), "set", steps=20 + rank, every=2)
    ddp = DistributedDataParallel(model)
    with refused(ValueError, "process_group: expected None"):
        DynamicSparsity(ddp, sgd(model), "set", steps=20, every=2, process_group=alone())


@check
def a_rank_that_loads_another_checkpoint_is_named_at_the_first_step():
    course = Course("set").train(4)  # the next step is an update, and on the others none
    early = copy.deepcopy(course.state())
    late = copy.deepcopy(course.train(8).state())
    course = Course("set").load(late if dist.get_rank() else early)
    with refused(RuntimeError, "steps_done"):
        course.dynamic.step()


@check
def an_update_without_gradients_is_one_exchange():
    for method in ("set", "dsr"):
        course = Course(method).train(10)
        # a step, a generator, two topologies, two changes
        assert course.updates[-1].exchanged_bytes == 6 * 8 * (course.size - 1), method


@check
def an_update_that_overflows_on_one_rank_is_left_out_on_all():
    model = sparse_linear(6, 5, 0.4)
    optimizer = sgd(model)
    rigl = DynamicSparsity(model, optimizer, "rigl", steps=9, every=1)
    before = rigl.masks
    for factor, updates in ((float("inf"), False), (1.0, True)):
        x = torch.randint(-2, 3, (4, 6)).double()
        scale = factor if dist.get_rank() == 0 else 1.0
        (model(x).square().sum() * scale).backward()
        optimizer.step()
        assert rigl.step() is updates
        assert (rigl.masks != before) is updates
    same_everywhere(rigl.masks.digest())


@check
def gradients_that_no_rank_saw_are_missed_on_all():
    model = sparse_linear(6, 5, 0.4)
    rigl = DynamicSparsity(model, sgd(model), "rigl", steps=9, every=1)
    with refused(RuntimeError, "no gradient of the layers was seen"):
        rigl.step()


@check
def gradients_of_parameters_that_change_size_are_averaged():
    """DistributedDataParallel keeps memory for gradients of the first size."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    for ddp in ({"gradient_as_bucket_view": True}, {"static_graph": True}, None):
        course = Course("mest:soft", every=3, ddp=ddp or {})
        if ddp is None:
            course.ddp.register_comm_hook(None, default_hooks.allreduce_hook)
        for _ in range(7):
            course.train(1)
            twin = copy.deepcopy(course.model)
            at = course.data.get_state()
            course.backward(twin)
            course.data.set_state(at)
            course.optimizer.zero_grad()
            course.backward(course.ddp)
            pairs = zip(twin.parameters(), course.model.parameters(), strict=True)
            for own, averaged in pairs:
                dist.all_reduce(own.grad)
                torch.testing.assert_close(own.grad / course.size, averaged.grad)
        assert len(course.updates) == 2
        assert len({update.total.after for update in course.updates}) > 1


@check
def autocast_gradients_are_shared_in_their_type():
    torch.manual_seed(0)
    for shape, batch in (((64, 48), 4), ((8, 6), 40)):
        model = nn.Sequential(nn.Linear(*shape))
        fs.sparsify(model, fs.prune(model, "random", sparsity=0.7, seed=1), backend="sparse")
        ddp, optimizer = DistributedDataParallel(model), sgd(model)
        rigl = DynamicSparsity(ddp, optimizer, "rigl", steps=9, every=1)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                ddp(torch.randn(batch, shape[0])).float().square().sum().backward()
            optimizer.step()
            assert rigl.step()
        same_everywhere(rigl.masks.digest())


@check
def accumulated_gradients_count_together():
    x = torch.randint(-2, 3, (12, 6)).double()
    found = []
    for group in (None, alone()):
        model = sparse_linear(6, 5, 0.4)
        ddp = model if group else DistributedDataParallel(model)
        rigl = DynamicSparsity(ddp, sgd(model), "rigl", steps=9, every=1, process_group=group)
        rows = slice(dist.get_rank(), None, dist.get_world_size()) if group is None else slice(None)
        if group is None:
            with ddp.no_sync():
                ddp(x[rows]).sum().backward()
        else:
            ddp(x[rows]).sum().backward()
        (ddp(-x[rows]) * 3).sum().backward()
        rigl.step()
        found.append(rigl.masks)
    assert found[0] == found[1]


@check_with_four_too
def what_was_sent_is_told():
    size = dist.get_world_size()
    model = sparse_linear(64, 32, 0.1)
    told = []
    ddp, optimizer = DistributedDataParallel(model), sgd(model)
    rigl = DynamicSparsity(
        ddp, optimizer, "rigl", steps=9, every=1, fraction=0.5, anneal="constant",
        on_update=told.append,
    )  # fmt: skip
    before, count = rigl.exchanged_bytes, model[0].nnz // 2
    ddp(torch.randn(2, 64).double()).square().sum().backward()
    optimizer.step()
    rigl.step()
    # digests of 3 things, a report of 3 numbers, 2 rows of inputs and output gradients, the found
    # positions and scores, and one digest
    (layer,) = rigl._layers()
    crow_indices = layer.after_drop(layer.values.new_empty(0, dtype=torch.int64))[0]
    assert crow_indices.numel() == 33
    fixed = 8 * (3 + 3 + 2 * (64 + 32) + 1)
    sent = told[0].exchanged_bytes
    assert sent == rigl.exchanged_bytes - before
    assert (fixed + 16) * (size - 1) <= sent <= (fixed + 16 * count) * (size - 1)
    assert sent < model[0].to_dense().nbytes * (size - 1)


@check
def topologies_are_not_sent_before_every_forward_pass():
    for backend in ("sparse", "masked"):
        course = Course("set", conv, backend)
        sent = set(dict(course.model.named_buffers())) - course.ddp.parameters_to_ignore
        assert sent == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    with torch.no_grad():
        course.model[0].mask.fill_(dist.get_rank() > 0)
    course.ddp(torch.randn(2, 3, 6, 6).double())
    assert course.model[0].mask.all() == (dist.get_rank() > 0)


@check
def a_resumed_course_is_the_uninterrupted_one():
    for method in ("rigl", "snfs", "dsr", "granet"):
        whole = Course(method, **METHODS[method]).train(22)
        half = Course(method, **METHODS[method]).train(13)
        file = io.BytesIO()
        torch.save(half.state(), file)
        written = [file.getvalue()]
        dist.broadcast_object_list(written, src=0)  # what rank 0 has saved
        state = torch.load(io.BytesIO(written[0]), weights_only=True)
        again = Course(method, **METHODS[method], seed=99).load(state).train(9)
        assert bits(again.model) == bits(whole.model), method
        theirs, ours = whole.optimizer.state_dict()["state"], again.optimizer.state_dict()["state"]
        for index, held in theirs.items():
            for key, value in held.items():
                torch.testing.assert_close(ours[index][key], value, rtol=0, atol=0)


@check
def another_number_of_processes_resumes_a_course():
    group = alone()
    for method in ("set", "rigl", "snfs"):
        for first, then in ((None, group), (group, None)):
            state = Course(method, group=first).train(12).state()
            whole = Course(method).train(30)
            again = Course(method, group=then).load(state).train(18)
            assert len(whole.updates) >= 4
            assert again.dynamic.masks == whole.dynamic.masks
            for ours, theirs in zip(
                again.model.parameters(), whole.model.parameters(), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@check
def a_sharded_optimizer_moves_its_state():
    for method in ("rigl", "snfs"):
        plain = Course(method, optimizer=adam).train(13)
        sharded = Course(method, optimizer=zero_adam).train(13)
        assert bits(sharded.model) == bits(plain.model)
        sharded.optimizer.consolidate_state_dict(to=0)
        if sharded.rank == 0:
            whole = sharded.optimizer.state_dict()["state"]
            for index, held in plain.optimizer.state_dict()["state"].items():
                for key, value in held.items():
                    torch.testing.assert_close(whole[index][key], value, rtol=0, atol=0)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def zero_adam(parameters):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(parameters, torch.optim.Adam, lr=1e-3)


@check
def shards_are_refused():
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = sparse_linear(6, 5, 0.4)
    fully_shard(model)
    with refused(ValueError, "0.weight is sharded", "DistributedDataParallel"):
        DynamicSparsity(model, sgd(model), "set", steps=9, every=2)
    model = sparse_linear(6, 5, 0.4)
    zero = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.SGD, lr=0.1, parameters_as_bucket_view=True
    )
    with refused(ValueError, "parameters_as_bucket_view"):
        DynamicSparsity(model, zero, "set", steps=9, every=2)


@check
def the_recipe_leads_to_a_checkpoint():
    """With which that of a run that was killed is compared; it reads the digits from a file."""
    if dist.get_rank() == 0:
        digits = sys.modules["sklearn.datasets"].load_digits()
        np.savez(FOLDER / "digits.npz", data=digits.data, target=digits.target)
    held = dist.init_process_group, dist.destroy_process_group
    dist.init_process_group = dist.destroy_process_group = lambda *_: None  # we have one
    try:
        runpy.run_path(str(RECIPE))["main"](FOLDER / "whole.pt")
    finally:
        dist.init_process_group, dist.destroy_process_group = held


@check
def masking_of_elsewhere_draws_and_changes_the_same_masks_on_all_ranks():
    args = argparse.Namespace(fix=False, update_frequency=5)
    for growth in ("random", "gradient"):
        torch.manual_seed(3)
        ddp = DistributedDataParallel(mlp().float())
        torch.manual_seed(17 + dist.get_rank())  # as ITOP's script for ImageNet does
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
        mask = itop.Masking(optimizer, 0.5, growth_mode=growth, args=args)
        mask.add_module(ddp, density=0.2, sparse_init="ERK")
        first = mask.masks
        same_everywhere(first.digest())
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ddp(torch.randn(8, 20)), torch.zeros(8).long()).backward()
            mask.step()
        assert mask.masks != first
        assert mask.masks.nnz == round(0.2 * first.numel)
        same_everywhere((mask.masks.digest(), mask.fired_masks_update()))
    with refused(ValueError, "backend: expected 'masked' with torch.distributed"):
        mask = itop.Masking(optimizer, args=args)
        mask.add_module(ddp, 0.2, "ERK", backend="sparse")


def check_together(rank):
    """Do the checks for four processes, of which this is one, and then perhaps those for two."""
    torch.set_num_threads(1)
    for size, names in CHECKS.items():
        if rank >= size:
            continue
        dist.init_process_group(
            "gloo",
            init_method=f"file://{FOLDER / f'meeting-{size}'}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=40),
        )
        found = {}
        for name in names:
            torch.manual_seed(0)
            try:
                globals()[name]()
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
            (FOLDER / f"{size}-{rank}.json").write_text(json.dumps(found))
            if not all(ok is None for ok in everywhere(found[name])):
                break  # the ranks may be at different places now
        dist.destroy_process_group()


if __name__ == "__main__":
    for name in ("torch._dynamo", "torch.distributed.optim", "sklearn.datasets"):
        importlib.import_module(name)  # once: what will be imported anyway, before the fork
    FOLDER = pathlib.Path(sys.argv[1])
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=check_together, args=(rank,)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
