"""Several processes that train one model: what they agree on, and what they send each other."""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.ranks import Ranks

SAME_BEGINNING = (
    "all ranks must begin with the same topology: prune with one seed (fs.prune(..., seed=0), not "
    "seed + rank), or let all load the masks of one file"
)
SAME_TOPOLOGY = (
    "it was changed on some ranks only, or they loaded different checkpoints; load one on all"
)
SAME_DECISION = (
    "their weights or gradients have parted: train through the DistributedDataParallel model, "
    "which averages gradients; nothing was changed"
)


def ranks_of(model: nn.Module, group: Any) -> Ranks | None:
    """Find the processes that train a model together.

    Args:
        model: Perhaps in a DistributedDataParallel, whose processes they are.
        group: A process group, or None: the model's, or the default one.

    Returns:
        The processes; None where there is only this one.

    Raises:
        ValueError: If the model's processes are others than those of the group.
    """
    if isinstance(model, DistributedDataParallel):
        if group is not None and group is not model.process_group:
            raise ValueError(
                "process_group: expected None, or that of the DistributedDataParallel model"
            )
        group = model.process_group
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_world_size(group) == 1:
        return None
    device = next(model.parameters()).device
    return Ranks(group, torch.device("cpu") if distributed.get_backend(group) == "gloo" else device)


def check_sharding(model: nn.Module, layers: Sequence[DynamicLayer]) -> None:
    """Refuse ways of spreading a model over processes that hold values elsewhere.

    Raises:
        ValueError: If values are shards, or DistributedDataParallel holds copies of them.
    """
    if isinstance(model, DistributedDataParallel) and model.mixed_precision is not None:
        raise ValueError(
            "model: DistributedDataParallel(mixed_precision=...) holds copies of the values, which "
            "cannot follow the topology; use torch.autocast"
        )
    for layer in layers:
        if hasattr(layer.weight, "full_tensor"):  # a DTensor
            raise ValueError(
                f"model: {layer.name} is sharded (fully_shard), and its shards cannot follow the "
                "topology. Sparse values are few: use DistributedDataParallel, and "
                "ZeroRedundancyOptimizer for the optimizer's state"
            )


def leave_topology_to_us(ddp: DistributedDataParallel, layers: Sequence[DynamicLayer]) -> None:
    """Keep DistributedDataParallel from sending the topology before every forward pass.

    It sends all buffers of rank 0, which for a sparse layer are several times its gradient, and
    would hide that ranks have parted.
    """
    ours = {id(buffer) for layer in layers for buffer in layer.module.buffers(recurse=False)}
    names = {name for name, buffer in ddp.module.named_buffers() if id(buffer) in ours}
    ddp.parameters_to_ignore = set(ddp.parameters_to_ignore) | names
    ddp._assign_modules_buffers()


class FollowSizes:
    """A forward pre-hook that lets DistributedDataParallel see how many values there are.

    It keeps memory for gradients of the sizes that it began with; parameters of other sizes it
    would not average. After an update that moves weights between layers, or after a checkpoint was
    loaded, its reducer is made anew, as it does itself when it is made.

    Args:
        layers: Of its model.
    """

    def __init__(self, layers: Sequence[DynamicLayer]) -> None:
        self._layers = layers
        self._sizes = self._now()

    def __call__(self, ddp: nn.Module, _inputs: tuple[Any, ...]) -> None:
        """See a forward pass begin, on all ranks."""
        sizes = self._now()
        if sizes == self._sizes:
            return
        assert isinstance(ddp, DistributedDataParallel)
        self._sizes = sizes
        is_static, ddp.static_graph = ddp.static_graph, False
        parameters, is_sparse = ddp._build_params_for_reducer()
        names = ddp._build_debug_param_to_name_mapping(parameters)
        ddp._ddp_init_helper(parameters, is_sparse, names, is_static)
        if is_static:
            ddp._set_static_graph()
        for hook, state in ddp._comm_hooks:
            torch.distributed._register_comm_hook(ddp.reducer, state, hook)

    def _now(self) -> list[torch.Size]:
        return [layer.weight.shape for layer in self._layers]


def holder_of_state(
    optimizer: torch.optim.Optimizer, weight: nn.Parameter
) -> torch.optim.Optimizer | None:
    """Return the optimizer that holds a weight's state in this process, if one does."""
    if not _is_zero_redundancy(optimizer):
        return optimizer
    own: torch.optim.Optimizer = optimizer.optim  # type: ignore[attr-defined]
    parameters = [parameter for group in own.param_groups for parameter in group["params"]]
    return own if any(parameter is weight for parameter in parameters) else None


def check_optimizer_sharding(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a ZeroRedundancyOptimizer that holds values elsewhere, or steps on its own.

    Raises:
        ValueError: If it was made with ``parameters_as_bucket_view`` or ``overlap_with_ddp``.
    """
    if not _is_zero_redundancy(optimizer):
        return
    if optimizer.parameters_as_bucket_view or optimizer._overlap_with_ddp:  # type: ignore[attr-defined]
        raise ValueError(
            "optimizer: a ZeroRedundancyOptimizer cannot follow a topology that changes with "
            "parameters_as_bucket_view or overlap_with_ddp; leave both False"
        )


def check_beginning(ranks: Ranks, layers: Sequence[DynamicLayer], rest: Mapping[str, str]) -> None:
    """Refuse ranks that begin differently.

    Args:
        ranks: All of them must call this.
        layers: The layers of which the topology changes.
        rest: What else must be the same, in words.

    Raises:
        ValueError: On all ranks, if one differs: it says in what, and which.
    """
    mine = {layer.name: digest(*layer.topology) for layer in layers}
    all_rest = ranks.gather_objects(dict(rest))
    for label in rest:
        odd = odd_ones([other.get(label) for other in all_rest])
        if odd:
            said = {rank: other.get(label) for rank, other in enumerate(all_rest)}
            raise ValueError(f"{label}: expected the same on all ranks, got {said}")
    of_ranks = ranks.gather_objects(mine)
    for name in dict.fromkeys(name for other in of_ranks for name in other):
        odd = odd_ones([other.get(name) for other in of_ranks])
        if odd:
            raise ValueError(f"model: {name} differs on {in_words(odd)}: {SAME_BEGINNING}")


class Same(NamedTuple):
    """What must be the same on all ranks.

    Attributes:
        digests: By the names of what they are of.
        what: Of which they are.
        why: How it may have come to differ, and what to do.
    """

    digests: Mapping[str, int]
    what: str
    why: str


def check_same(ranks: Ranks, *compared: Same) -> None:
    """Compare digests, all in one exchange.

    Args:
        ranks: All of them must call this, with as many digests.
        compared: What to compare; of several differences the first is told.

    Raises:
        RuntimeError: On all ranks, if one differs: it says in what, and which.
    """
    named = [(name, same) for same in compared for name in same.digests]
    mine = [same.digests[name] for name, same in named]
    table = ranks.gather(torch.tensor(mine, dtype=torch.int64))
    for index, (name, same) in enumerate(named):
        odd = odd_ones([int(other[index]) for other in table])
        if odd:
            raise RuntimeError(f"{name}: {same.what} differs on {in_words(odd)}: {same.why}")


def digest(*tensors: Tensor) -> int:
    """Return a fingerprint of 8 bytes."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(tensor.contiguous().cpu().numpy().data)
    return int.from_bytes(state.digest()[:8], "little", signed=True)


def odd_ones(values: Sequence[object]) -> list[int]:
    """Return the ranks that differ from most, or of two camps from that of the lowest rank."""
    usual = Counter(values).most_common(1)[0][0]
    return [rank for rank, value in enumerate(values) if value != usual]


def in_words(ranks: Sequence[int]) -> str:
    """Name some ranks."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _is_zero_redundancy(optimizer: torch.optim.Optimizer) -> bool:
    module = sys.modules.get("torch.distributed.optim")  # importing it takes long
    return module is not None and isinstance(optimizer, module.ZeroRedundancyOptimizer)
