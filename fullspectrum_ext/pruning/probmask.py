"""ProbMask: which weights to keep is learned by gradient, as a probability for each of them."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import PRUNABLE, Patterns
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.ops.projection import project_scores_
from fullspectrum_ext.pruning.arguments import (
    chosen_weights,
    refuse_collapse,
    resolve_density,
    resolve_seed,
)
from fullspectrum_ext.pruning.densities import total_count
from fullspectrum_ext.pruning.selection import keep_top

Estimator = Literal["relaxed", "vr_pge"]
_SAMPLES = 2  # masks drawn for a step
_RAMP = (0.16, 0.6)  # of the steps: where the density begins to fall, and where it has fallen
_CERTAIN = 1e-6  # how near to 0 and 1 the sampler lets a probability come
_UNIFORM = 1e-7  # likewise a random number: float32's lie 6e-8 apart
_LEAST_LOGIT = -20.0  # of a relaxed mask, 2e-9: the products with less are slow denormal numbers


class ProbMask:
    r"""Learns masks while a network is trained: each weight is kept with a probability of its own.

    With probabilities :math:`s` and a budget of :math:`K` weights out of :math:`N`, it solves

    .. math:: \min_{w, s}\ \mathbb{E}_{m \sim \mathrm{Bernoulli}(s)}\, L(w \circ m)
        \quad\text{subject to}\quad 0 \le s \le 1,\ \sum_i s_i \le K

    over all layers together. From when it is made to :meth:`finish`, the model computes with
    masked weights: in training mode with a mask that is drawn for each call, in evaluation mode
    with the :math:`K` most probable weights. Names, parameters and their optimizer stay as they
    are, and a copy of the model computes with all of its weights. In the training loop, call
    :meth:`backward` in place of ``loss.backward()``, and :meth:`step` after the step of the
    optimizer::

        probmask = fs.ProbMask(model, sparsity=0.95, steps=epochs * len(loader))
        for x, y in batches:
            optimizer.zero_grad()
            probmask.backward(lambda: loss_of(model(x), y))
            optimizer.step()
            probmask.step()
        model = fs.sparsify(model, probmask.finish())  # and train it for some epochs more

    A step draws two masks. With ``estimator="relaxed"`` they are not quite zeros and ones, but

    .. math:: m = \sigma\bigl((\operatorname{logit}(s) + g) / \tau\bigr),\quad
        g \sim \mathrm{Logistic}(0, 1),\quad \tau = 1 - 0.97\, t

    (the Gumbel-softmax of two classes), so that the loss has a gradient for :math:`s`; :math:`t`
    is the fraction of ``steps`` that are done. With ``"vr_pge"`` they are zeros and ones, and the
    gradient is estimated from the losses, with the mean loss as baseline and preconditioned by
    :math:`\sqrt{s(1-s)}`:

    .. math:: g_s = \sum_{j=1}^{2} (L_j - \bar L)\, (m_j - s) / \sqrt{s (1 - s)}

    Adam takes a step along it, at a rate that falls along a cosine, and the scores are projected
    exactly on the budget of that step. For ``"relaxed"`` they begin at 1, and the budget falls from
    :math:`N` to :math:`K` along a cubic between 16 and 60 % of the steps; for ``"vr_pge"`` they
    begin at the density, and the budget is :math:`K` throughout.

    Args:
        model: Its ``Linear``, ``Conv2d``, ``RNN``, ``LSTM`` and ``GRU`` layers are masked. All on
            one device.
        sparsity: Fraction of the weights that is removed in the end. Give this or ``density``.
        density: Fraction that is kept.
        steps: Training steps, after which the probabilities have settled.
        estimator: How the scores get their gradient: ``"relaxed"`` or ``"vr_pge"``.
        train_weights: False learns a supermask: the weights under the masks get no gradient and so
            stay what they are. Biases and normalisation are the optimizer's, as ever.
        learning_rate: Of the scores, in the first step.
        include: Glob patterns of parameter or layer names; only these are masked (and counted).
        exclude: Glob patterns of names to leave out.
        seed: Of all masks that are drawn; by default torch's random state decides it.

    Attributes:
        scores: Name to the probabilities of a layer, float32 parameters. Their gradients are there
            between :meth:`backward` and :meth:`step`, to be clipped or looked at.
        steps_done: Steps taken.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a value is out of range, or the model cannot be masked.

    References:
        Zhou, Zhang, Xu, Zhang: Effective Sparsification of Neural Networks with Global Sparsity
        Constraint, CVPR 2021, https://arxiv.org/abs/2105.01571. Zhou et al.: Efficient Neural
        Network Training via Forward and Backward Propagation Sparsification, NeurIPS 2021,
        https://arxiv.org/abs/2111.05685 (``"vr_pge"``, there for channels).

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> probmask = ProbMask(model, sparsity=0.75, steps=10, seed=0)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     loss = probmask.backward(lambda: model(torch.ones(1, 8)).square().sum())
        ...     optimizer.step()
        ...     probmask.step()
        >>> probmask.finish()
        MaskSet(2 layers, 10 of 40 weights kept, sparsity 0.7500)
    """  # noqa: DOC502

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float | None = None,
        density: float | None = None,
        steps: int,
        estimator: Estimator = "relaxed",
        train_weights: bool = True,
        learning_rate: float = 6e-3,
        include: Patterns = None,
        exclude: Patterns = None,
        seed: int | None = None,
    ) -> None:
        self.density = resolve_density(sparsity, density)
        _checks.check_integer("steps", steps, 1)
        _checks.check_choice("estimator", estimator, get_args(Estimator))
        self.steps, self.steps_done = steps, 0
        self.estimator, self.train_weights = estimator, train_weights
        self.learning_rate = learning_rate
        self._model = model
        self._weights = chosen_weights(model, include, exclude)
        self._places = _places(model, self._weights)
        sizes = [weight.numel() for weight in self._weights.values()]
        self._size, self._count = sum(sizes), total_count(sizes, self.density)
        start = 1.0 if estimator == "relaxed" else self._count / self._size
        self.scores = {
            name: nn.Parameter(torch.full(weight.shape, start, device=weight.device))
            for name, weight in self._weights.items()
        }
        self._optimizer = torch.optim.Adam(self.scores.values(), lr=learning_rate)
        self._generator = torch.Generator(_only_device(self._weights))
        self.seed = resolve_seed(seed)
        self._generator.manual_seed(self.seed)
        self._drawn: dict[str, Tensor] = {}  # the masks of the latest call in training mode
        self._masks: dict[str, Tensor] | None = None  # the most probable weights, once asked for
        self._hooks = [
            model.register_forward_pre_hook(self._put_masked_weights),
            model.register_forward_hook(self._put_weights_back, always_call=True),
        ]

    @property
    def temperature(self) -> float:
        """The temperature of the relaxed masks: 1 in the first step, 0.03 after the last."""
        return 1 - 0.97 * self._progress

    @property
    def budget(self) -> float:
        """The largest sum of the scores after the latest step."""
        if self.estimator == "vr_pge":
            return float(self._count)
        begin, end = _RAMP
        left = 1 - (min(max(self._progress, begin), end) - begin) / (end - begin)
        return self._count + (self._size - self._count) * left**3

    @property
    def masks(self) -> MaskSet:
        """The most probable weights, exactly as many as asked for."""
        made_by = {
            "method": "probmask",
            "density": self.density,
            "seed": self.seed,
            "options": {
                "steps": self.steps,
                "estimator": self.estimator,
                "train_weights": self.train_weights,
                "learning_rate": self.learning_rate,
            },
        }
        return MaskSet(self._most_probable(), meta=made_by)

    def backward(self, forward: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients of the weights and of the scores, averaged over two masks.

        Args:
            forward: Passes the batch through the model, in training mode and once, and returns the
                loss. It is called twice.

        Returns:
            The mean loss, detached.

        Raises:
            ValueError: If ``forward`` does not call the model in training mode, or returns no
                scalar.
        """
        losses, masks = [], []
        for _ in range(_SAMPLES):
            self._drawn = {}
            loss = forward()
            if not self._drawn:
                raise ValueError("forward: expected it to call the model, in training mode")
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ValueError(f"forward: expected a scalar loss, got {type(loss).__name__}")
            if loss.requires_grad or self.estimator == "relaxed":
                (loss / _SAMPLES).backward()
            losses.append(loss.detach())
            masks.append(self._drawn)
        self._drawn = {}
        mean = torch.stack(losses).mean()
        if self.estimator == "vr_pge":
            for loss, mask in zip(losses, masks, strict=True):
                self._add_score_gradients((loss - mean) / (_SAMPLES - 1), mask)
        return mean

    def step(self) -> None:
        """Take a step of the scores, project them on the budget, and clear their gradients.

        Raises:
            ValueError: If there is no gradient, or the scores are no longer finite.
        """
        if all(score.grad is None for score in self.scores.values()):
            raise ValueError("step: expected gradients of the scores: call backward first")
        rate = self.learning_rate * (1 + math.cos(math.pi * self._progress)) / 2
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps_done += 1
        self._masks = None
        if project_scores_(list(self.scores.values()), self.budget).isnan():
            raise ValueError(
                f"the scores became NaN in step {self.steps_done}; look at the loss, or try a "
                "smaller learning rate of the weights"
            )

    def finish(self, *, allow_collapse: bool = False) -> MaskSet:
        """Let go of the model, which computes with all of its weights again, and return the masks.

        Args:
            allow_collapse: Accept masks that leave a layer without a single weight.

        Returns:
            :attr:`masks`.

        Raises:
            ValueError: If a layer has no weight left. The model is still masked then.
        """
        masks = self.masks
        if not allow_collapse:
            refuse_collapse(masks)
        for hook in self._hooks:
            hook.remove()
        return masks

    def state_dict(self) -> dict[str, Any]:
        """Return all that its further doings depend on, beside the model and its optimizer."""
        return {
            "steps_done": self.steps_done,
            "seed": self.seed,
            "scores": {name: score.detach().clone() for name, score in self.scores.items()},
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, bit for bit, from where :meth:`state_dict` was taken.

        Args:
            state: Of an object that was made for the same model with the same arguments.

        Raises:
            ValueError: If it is of another model. Nothing has changed then.
        """
        shapes = {name: score.shape for name, score in self.scores.items()}
        if {name: score.shape for name, score in state["scores"].items()} != shapes:
            raise ValueError("state: expected scores for the weights of this model")
        for name, score in self.scores.items():
            score.copy_(state["scores"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"].cpu())
        self.steps_done, self.seed = int(state["steps_done"]), int(state["seed"])
        self._masks = None

    @property
    def _progress(self) -> float:
        return min(self.steps_done / self.steps, 1.0)

    def __deepcopy__(self, _memo: object) -> "ProbMask":
        return self  # a copied model copies its hooks, but it is not the one that is masked

    def _put_masked_weights(self, model: nn.Module, _arguments: object) -> None:
        if model is not self._model:
            return
        if model.training:
            masks = self._drawn = {name: self._draw(score) for name, score in self.scores.items()}
        else:
            masks = self._most_probable()
        for name, weight in self._weights.items():
            source = weight if self.train_weights else weight.detach()
            masked = source * masks[name].to(weight.dtype)
            for place in self._places[name]:
                place.put(masked)

    def _put_weights_back(self, _model: nn.Module, _arguments: object, _output: object) -> None:
        for name, weight in self._weights.items():
            for place in self._places[name]:
                place.put(weight)

    def _draw(self, score: Tensor) -> Tensor:
        uniform = torch.rand(score.shape, generator=self._generator, device=score.device)
        if self.estimator == "vr_pge":
            return (uniform < score.detach()).float()
        # The value is clamped, its derivative not: else a score of 0 or 1 could not move.
        inside = score + (score.clamp(_CERTAIN, 1 - _CERTAIN) - score).detach()
        logit = inside.log() - torch.log1p(-inside)
        relaxed = (logit + torch.logit(uniform, eps=_UNIFORM)) / self.temperature
        return torch.sigmoid(relaxed.clamp(min=_LEAST_LOGIT))

    @torch.no_grad()
    def _add_score_gradients(self, advantage: Tensor, masks: Mapping[str, Tensor]) -> None:
        for name, score in self.scores.items():
            deviation = (score * (1 - score)).sqrt()
            # a mask differs from a score of 0 or 1 by nothing
            gradient = advantage * (masks[name] - score) / deviation.clamp(min=1e-10)
            score.grad = gradient if score.grad is None else score.grad + gradient

    @torch.no_grad()
    def _most_probable(self) -> dict[str, Tensor]:
        if self._masks is None:
            # Scores may be equal, as all are in the first steps: what is larger in its layer stays.
            keys = {
                name: score.double() + 1e-9 * _relative_magnitude(self._weights[name])
                for name, score in self.scores.items()
            }
            self._masks = keep_top(keys, self._count)
        return self._masks


class _Place(NamedTuple):
    """Where a layer finds a weight to compute with."""

    layer: nn.Module
    parameter: str

    def put(self, weight: Tensor) -> None:
        """Let the layer compute with this weight; its own stays in the state dict."""
        if isinstance(self.layer, nn.RNNBase):  # hands a list of all its weights to torch's kernels
            self.layer._update_flat_weights()  # before, as torch would do it in its forward
            place = self.layer._flat_weights_names.index(self.parameter)
            self.layer._flat_weights[place] = weight
        else:
            self.layer._parameters[self.parameter] = weight  # type: ignore[assignment]


def _places(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, list[_Place]]:
    """Return for each weight the layers that use it: more than one where they share it."""
    names = {id(weight): name for name, weight in weights.items()}
    places: dict[str, list[_Place]] = {name: [] for name in weights}
    for layer in model.modules():
        for parameter, weight in layer._parameters.items():
            if id(weight) not in names:
                continue
            name = names[id(weight)]
            if not isinstance(layer, (*PRUNABLE, nn.RNNBase)):
                raise ValueError(
                    "model: ProbMask masks the weights of Linear, Conv2d, RNN, LSTM and GRU, but "
                    f"{name} is {parameter!r} of {type(layer).__name__}; exclude it"
                )
            places[name].append(_Place(layer, parameter))
    return places


def _relative_magnitude(weight: Tensor) -> Tensor:
    magnitude = weight.double().abs()
    return magnitude / magnitude.max().clamp(min=1e-300) if weight.numel() else magnitude


def _only_device(weights: Mapping[str, Tensor]) -> torch.device:
    devices = {weight.device for weight in weights.values()}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"model: expected all weights on one device, got {names}")
    return devices.pop()
