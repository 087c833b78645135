"""The object that goes into a training loop and changes the topology of sparse layers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import select_names
from fullspectrum_ext.dynamic import distributed
from fullspectrum_ext.dynamic.gradients import share_gradients
from fullspectrum_ext.dynamic.layer import DynamicLayer, dynamic_layers
from fullspectrum_ext.dynamic.method import Change, Method, Turn, make_method
from fullspectrum_ext.dynamic.ranks import Ranks
from fullspectrum_ext.dynamic.updates import Explored, LayerUpdate, Update
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.arguments import resolve_seed
from fullspectrum_ext.pruning.gradual import check_optimizer

Methods = str | Method | Mapping[str, str | Method | None]
Layers = list[DynamicLayer]


class DynamicSparsity:
    """Changes which weights a sparse network has, while it is trained.

    Call :meth:`step` after each step of the optimizer; the loop is the same for every method:

    .. code-block:: python

        optimizer.zero_grad()
        loss_of(model(inputs), targets).backward()
        optimizer.step()
        dynamic.step()

    Where the method puts an update in the place of a step (RigL), the gradients are taken away
    before that step, so that ``optimizer.step()`` does nothing. Where it asks for dense gradients,
    the inputs and output gradients of the layers are caught at update steps, and no dense gradient
    is ever held (but for ``"snfs"``); all backward passes since the last step count together. An
    update whose gradients are not all finite is left out, and so is a layer that took no part.

    Weights that come begin at 0, with the optimizer state of a new parameter; those that stay keep
    their values and states; parameters stay the same objects. Layers may be truly sparse or dense
    under a mask: both take the same course.

    To resume: make model, optimizer and this object as before, then load the state of each. The
    topology is in the model's.

    Several processes that train one model (``torchrun``) give their DistributedDataParallel model.
    All of them must call :meth:`step`, and take the same course: scores are those of the whole
    batch, and before each update they make sure that their topologies are the same, and before it
    is carried out that they have decided the same.

    Args:
        model: One that :func:`fullspectrum_ext.sparsify` has made sparse, or the
            DistributedDataParallel of it.
        optimizer: The one that trains it.
        method: The name of a method (:func:`fullspectrum_ext.dynamic.methods`), one made by hand,
            or a mapping of glob patterns of parameter or layer names to these: a layer takes the
            first pattern that matches. Layers of ``None``, or of no pattern, keep their topology.
        steps: Steps of the optimizer in the whole training.
        seed: Of all that is drawn. None takes one that torch's random state decides. Of several
            processes, that of rank 0 counts.
        explored: Keep a bit for each weight, to say which share of them was ever kept.
        on_update: Called with an :class:`fullspectrum_ext.dynamic.Update` after each update.
        process_group: The processes that train the model together. None takes those of its
            DistributedDataParallel, else all of ``torch.distributed``.
        **options: Of the method, where it is given by its name: ``every``, ``fraction``,
            ``anneal``, ``until``, ...

    Attributes:
        steps_done: Steps of the optimizer seen.

    Raises:
        TypeError: If an argument is of a wrong type, or the method does not have an option.
        ValueError: If the model has no sparse layer, the optimizer does not train one or holds its
            state otherwise than by weight, a pattern matches nothing, or a value is out of range;
            if processes begin with different topologies or arguments (it says in which layer, and
            which rank); or if the values are shards.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> model = fs.sparsify(model, fs.prune(model, "erk", sparsity=0.9, seed=0))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        >>> dynamic = fs.DynamicSparsity(model, optimizer, "rigl", steps=100, every=10, seed=0)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     optimizer.step()
        ...     updated = dynamic.step()
        >>> dynamic.masks
        MaskSet(2 layers, 237 of 2368 weights kept, sparsity 0.8999)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Methods = "rigl",
        *,
        steps: int,
        seed: int | None = None,
        explored: bool = False,
        on_update: Callable[[Update], object] | None = None,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        check_optimizer(optimizer)
        _checks.check_integer("steps", steps, 1)
        distributed.check_optimizer_sharding(optimizer)
        self._ranks = distributed.ranks_of(model, process_group)
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.optimizer, self.steps, self.steps_done = optimizer, steps, 0
        self._generator = torch.Generator().manual_seed(resolve_seed(seed))
        self._on_update = on_update
        self._groups = _groups(dynamic_layers(self.model), method, options)
        self._hooks: list[Any] = []
        self._copies: list[Mapping[str, DynamicLayer]] = []
        distributed.check_sharding(model, self._layers())
        for method_of, layers in self._groups:
            _check_group(method_of, layers, optimizer, steps)
            method_of.bind(layers)
        self._is_agreed = False
        if self._ranks is not None:
            self._begin_together(self._ranks)
        self._follow_sizes: Any = None
        if isinstance(model, DistributedDataParallel):
            distributed.leave_topology_to_us(model, self._layers())
            follow = distributed.FollowSizes(self._layers()).__call__
            # disabled here: as a decorator this would import torch's compiler with the package
            self._follow_sizes = model.register_forward_pre_hook(torch.compiler.disable(follow))
        for method_of, layers in self._groups:
            if method_of.starts:
                self._start(method_of, layers)
        self._explored: dict[str, Explored] = {}
        if explored:
            for layer in self._layers():
                seen = Explored(layer.numel, layer.values.device)
                seen.add(layer.positions)
                self._explored[layer.name] = seen
        self._listen()

    @property
    def masks(self) -> MaskSet:
        """Which weights the network now computes with."""
        masks = MaskSet.from_model(self.model)
        found = {layer.name: masks[layer.name] for layer in self._layers()}
        for layer in self._layers():
            if layer.active is not None:
                inactive = layer.positions[layer.active.logical_not()]
                found[layer.name].view(-1)[inactive] = False
        return MaskSet(found)

    @property
    def explored(self) -> dict[str, float]:
        """The share of each layer's weights that was ever kept, if that was asked for."""
        return {name: seen.rate for name, seen in self._explored.items()}

    @property
    def is_listening(self) -> bool:
        """Whether the next step looks at dense gradients, which a compiled model does not show.

        ``(model if dynamic.is_listening else compiled)(inputs)`` trains a compiled model, but for
        the steps that give way to updates.
        """
        return any(layer.tap is not None and layer.tap.is_open for layer in self._layers())

    @property
    def exchanged_bytes(self) -> int:
        """What this process has sent to others, beside the gradients of the kept weights."""
        return 0 if self._ranks is None else self._ranks.sent_bytes

    @torch.no_grad()
    def step(self) -> bool:
        """Count a step of the optimizer, and change the topology if it is time.

        Returns:
            Whether there was an update.

        Raises:
            RuntimeError: If gradients are needed and none were seen; or if processes have come to
                differ: it says in which layer, and which rank.
            ValueError: If a layer would lose all of its weights. Nothing has changed then.
        """
        step, sent = self.steps_done + 1, self.exchanged_bytes
        begins = self._agree(step)
        decided: list[tuple[DynamicLayer, Change]] = []
        updated: list[Method] = []
        for method, layers in self._groups:
            due, observed = self._wants(method, step)
            if observed or (due and method.needs_gradients):
                seen = self._with_gradients(layers)
                if seen is None:
                    continue
                if observed:
                    method.observe(seen)
                if method.needs_gradients:
                    layers = seen
            if due:
                decided += zip(layers, self._decide(method, layers, step), strict=True)
                updated += [method] * len(layers)
        if decided and self._ranks is not None:
            digests = {layer.name: distributed.digest(*change) for layer, change in decided}
            what = f"the update of step {step}"
            same = distributed.Same(digests, what, distributed.SAME_DECISION)
            distributed.check_same(self._ranks, *begins, same)
        told = {layer.name: self._apply(layer, change) for layer, change in decided}
        for method, (layer, change) in zip(updated, decided, strict=True):
            method.settle(layer, change.grow, [copy[layer.name] for copy in self._copies])
        self.steps_done = step
        self._listen()
        if told and self._on_update is not None:
            by_name = {layer.name: layer for layer, _ in decided}
            self._on_update(Update(step, told, self.exchanged_bytes - sent, by_name))
        return bool(told)

    def follow(self, copy: nn.Module) -> None:
        """Take a copy of the model along, such as an average of its weights.

        Each update changes its topology too: what goes is forgotten there, and what comes begins at
        0. To resume, make and load the copy as before, and let it follow again.

        Args:
            copy: A model with the same layers; of an ``AveragedModel``, its ``module``.

        Raises:
            ValueError: If its layers are others, or of another topology.
        """
        found = dynamic_layers(copy)
        for layer in self._layers():
            twin = found.get(layer.name)
            if twin is None or type(twin) is not type(layer):
                raise ValueError(
                    f"copy: expected a sparse or masked layer {layer.name} as in the model"
                )
            if twin.shape != layer.shape or not torch.equal(twin.positions, layer.positions):
                raise ValueError(f"copy: expected the topology of the model in {layer.name}")
        self._copies.append(found)

    def remove(self) -> None:
        """Take its hooks off model and optimizer, if it is not stepped to the end of training."""
        for layer in self._layers():
            if layer.tap is not None:
                layer.tap.close()
        self._take_hooks_off()
        if self._follow_sizes is not None:
            self._follow_sizes.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return all that its further doings depend on, beside model and optimizer."""
        return {
            "steps_done": self.steps_done,
            "generator": self._generator.get_state(),
            "methods": [method.state_dict() for method, _ in self._groups],
            "layers": [[layer.name for layer in layers] for _, layers in self._groups],
            "explored": {name: seen.bits.clone() for name, seen in self._explored.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken.

        Args:
            state: Of an object that was made for the same model with the same arguments.

        Raises:
            ValueError: If it is of another one. Nothing has changed then.
        """
        layers = [[layer.name for layer in layers] for _, layers in self._groups]
        if state["layers"] != layers or state["explored"].keys() != self._explored.keys():
            raise ValueError("state: expected that of the same layers, methods and arguments")
        self.steps_done = int(state["steps_done"])
        self._generator.set_state(state["generator"].cpu())
        for (method, _), held in zip(self._groups, state["methods"], strict=True):
            method.load_state_dict(held)
        for name, bits in state["explored"].items():
            self._explored[name].bits.copy_(bits)
        self._is_agreed = False
        self._listen()

    @torch.no_grad()
    def _start(self, method: Method, layers: Layers) -> None:
        for layer, change in zip(layers, self._decide(method, layers, 0), strict=True):
            layer.change(*change, self._holder(layer))
            method.settle(layer, change.grow, [])

    def _holder(self, layer: DynamicLayer) -> torch.optim.Optimizer | None:
        return distributed.holder_of_state(self.optimizer, layer.weight)

    def _layers(self) -> Layers:
        return [layer for _, layers in self._groups for layer in layers]

    def _begin_together(self, ranks: Ranks) -> None:
        """Make sure that all processes begin with the same, and draw the same."""
        rest = {
            "layers": ", ".join(layer.name for layer in self._layers()),
            "method": ", ".join(repr(method) for method, _ in self._groups),
            "steps": str(self.steps),
        }
        distributed.check_beginning(ranks, self._layers(), rest)
        state = self._generator.get_state()
        self._generator.set_state(ranks.gather(state)[0])

    def _agree(self, step: int) -> list[distributed.Same]:
        """Before an update, and before the first step, make sure that all processes agree.

        Returns:
            What is left to compare with the decision: for an update that exchanges nothing else,
            one exchange is enough.
        """
        wants = [self._wants(method, step) for method, _ in self._groups]
        is_due = any(due for due, _ in wants)
        if self._ranks is None or not (is_due or not self._is_agreed):
            return []
        digests = {
            "steps_done": step,
            "what is drawn": distributed.digest(self._generator.get_state()),
            **{layer.name: distributed.digest(*layer.topology) for layer in self._layers()},
        }
        same = distributed.Same(digests, f"what step {step} begins with", distributed.SAME_TOPOLOGY)
        exchanges = any(
            observed or (due and method.needs_gradients)
            for (method, _), (due, observed) in zip(self._groups, wants, strict=True)
        )
        if self._is_agreed and not exchanges:
            return [same]
        distributed.check_same(self._ranks, same)
        self._is_agreed = True
        return []

    def _wants(self, method: Method, step: int) -> tuple[bool, bool]:
        """Say whether a method updates after a step, and whether it looks at its gradients."""
        observed = method.observes and step <= method.last_step(self.steps)
        return method.is_due(step, self.steps), observed

    def _listen(self) -> None:
        """Look at what the next step needs, and at nothing else."""
        step = self.steps_done + 1
        skips = adjusts = False
        for method, layers in self._groups:
            due, observed = self._wants(method, step)
            skips |= due and method.skips_step
            adjusts |= method.adjusts and step <= method.last_step(self.steps)
            for layer in layers:
                if layer.tap is not None:
                    layer.tap.close()
                    if observed or (due and method.needs_gradients):
                        layer.tap.open()
        self._take_hooks_off()
        hooks = [_take_gradients] * skips + [self._adjust] * adjusts
        self._hooks = [self.optimizer.register_step_pre_hook(hook) for hook in hooks]

    def _take_hooks_off(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @torch.no_grad()
    def _adjust(
        self, _optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Let methods change the gradients, before a step of the optimizer."""
        _refuse_closure(args, kwargs, "whose gradients a method changes before it")
        for method, layers in self._groups:
            if method.adjusts and self.steps_done < method.last_step(self.steps):
                method.adjust(layers)

    def _with_gradients(self, layers: Layers) -> Layers | None:
        """Return the layers of which gradients were seen; None if some are not finite."""
        taps = [layer.tap for layer in layers if layer.tap is not None]
        if self._ranks is None:
            is_finite = all(tap.is_finite() for tap in taps)
        else:
            is_finite = share_gradients(self._ranks, taps)
        seen = [layer for layer in layers if layer.tap is not None and not layer.tap.is_empty]
        if not seen:
            raise RuntimeError(
                "step: no gradient of the layers was seen, which this method needs now: it must "
                "come after the backward pass of a model in training. A compiled model hides its "
                "layers: while is_listening says so, call the model that was compiled instead"
            )
        return seen if is_finite else None

    def _decide(self, method: Method, layers: Layers, step: int) -> list[Change]:
        turn = Turn(
            step=step,
            progress=step / self.steps,
            is_last=step == method.last_step(self.steps),
            fraction=method.fraction_at(step, self.steps),
            generator=self._generator,
        )
        changes = method.update(layers, turn)
        for layer, change in zip(layers, changes, strict=True):
            if layer.nnz and layer.nnz + change.grow.numel() == change.drop.numel():
                raise ValueError(f"{layer.name} would lose all of its weights")
        return changes

    def _apply(self, layer: DynamicLayer, change: Change) -> LayerUpdate:
        before, grown = layer.nnz, 0
        if change.drop.numel() or change.grow.numel():
            grown = layer.change(*change, self._holder(layer))
            for copy in self._copies:
                copy[layer.name].change(*change, None)
        seen = self._explored.get(layer.name)
        if seen is not None:
            seen.add(change.grow)
        rate = None if seen is None else seen.rate
        after = layer.nnz
        return LayerUpdate(before, after, before + grown - after, grown, layer.numel, rate)


def _take_gradients(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Make a step of an optimizer do nothing: it passes over what has no gradient."""
    _refuse_closure(args, kwargs, "which gives way to an update of the topology")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _refuse_closure(args: tuple[Any, ...], kwargs: dict[str, Any], step: str) -> None:
    if any(value is not None for value in (*args[1:], *kwargs.values())):
        raise ValueError(
            f"optimizer.step: expected no closure at a step {step}: a closure would bring its "
            "gradients back; compute them before the step"
        )


def _groups(
    layers: Mapping[str, DynamicLayer], method: Methods, options: Mapping[str, Any]
) -> list[tuple[Method, Layers]]:
    """Give each layer its method: the first whose pattern matches."""
    if not layers:
        raise ValueError(
            "model: expected a sparse or masked layer, found none; fullspectrum_ext.sparsify makes "
            "them"
        )
    if not isinstance(method, Mapping):
        return [(make_method(method, options), list(layers.values()))]
    if options:
        raise TypeError(
            f"{next(iter(options))}: expected options with a single method only; give them to the "
            "methods of the mapping"
        )
    groups: list[tuple[Method, Layers]] = []
    left = dict(layers)
    for pattern, one in method.items():
        names = [name for name in select_names(layers, include=pattern) if name in left]
        if not names:
            raise ValueError(
                f"method: all layers of the pattern {pattern!r} are taken by earlier patterns"
            )
        taken = [left.pop(name) for name in names]
        if one is not None:
            groups.append((make_method(one, {}), taken))
    if not groups:
        raise ValueError("method: expected a method for some layer, got None for all")
    return groups


def _check_group(
    method: Method, layers: Layers, optimizer: torch.optim.Optimizer, steps: int
) -> None:
    last = method.last_step(steps)
    if not any(method.is_due(step, steps) for step in (method.every, last)):
        raise ValueError(
            f"every: expected fewer than the {last} steps in which the topology changes "
            f"(until = {method.until} of steps = {steps}), got {method.every}"
        )
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for layer in layers:
        if id(layer.weight) not in trained:
            raise ValueError(
                f"optimizer: expected one that trains {layer.name}; make it after sparsify"
            )
        if layer.tap is None and (method.needs_gradients or method.observes):
            raise ValueError(
                f"method: {type(method).__name__} needs dense gradients, which are not to be had "
                f"of {layer.name} in a {type(layer.module).__name__}; give it another method"
            )
