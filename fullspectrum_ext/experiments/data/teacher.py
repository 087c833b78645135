"""Synthetic data whose classes come from a sparse network that is known."""

import math
from collections.abc import Callable

import torch
from torch import nn

from fullspectrum_ext.experiments.data.planted import Teacher
from fullspectrum_ext.experiments.data.split import Dataset, Split
from fullspectrum_ext.experiments.models.mlp import lenet_300_100, linear
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.spectral.ramanujan import biregular_random

LINEAR_INPUTS = 256
MLP_INPUTS = 64
CLASSES = 10
_SIZES = (8000, 1000, 2000)  # train, validation, test

# Of each layer 5 % of the weights or near it, in all exactly what a sparsity of 0.95 leaves.
# Degrees are equal, so that each unit of the MLP has inputs and outputs, and each weight a say.
_LINEAR_EDGES = {"fc.weight": 128}
_MLP_EDGES = {"fc1.weight": 960, "fc2.weight": 1350, "fc3.weight": 200}


def linear_teacher_data(_path: str) -> Dataset:
    """Classes by the largest of ten sparse sums of 256 normal inputs.

    The support can be found: it is the only one that tells the classes without a mistake. Weights
    are of either sign and between 0.5 and 1.5 in size.

    Returns:
        The data set, with its teacher.
    """
    generator = torch.Generator().manual_seed(0)
    masks = _draw_masks(linear((LINEAR_INPUTS,), CLASSES), _LINEAR_EDGES, generator)
    values = torch.rand(CLASSES, LINEAR_INPUTS, generator=generator) + 0.5
    values *= torch.randint(2, values.shape, generator=generator) * 2 - 1
    parameters = {"fc.weight": values * masks["fc.weight"], "fc.bias": torch.zeros(CLASSES)}
    teacher = Teacher(masks, parameters, planted=False)
    return _asked(teacher, linear, LINEAR_INPUTS, generator)


def mlp_teacher_data(_path: str) -> Dataset:
    """Classes by a sparse MLP of 64 normal inputs, to be planted in the network that learns.

    The teacher's weights have twice the standard deviation that initial weights have, its last bias
    puts all classes at the same mean.

    Returns:
        The data set, with its teacher.
    """
    generator = torch.Generator().manual_seed(0)
    network = lenet_300_100((MLP_INPUTS,), CLASSES)
    masks = _draw_masks(network, _MLP_EDGES, generator)
    parameters = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for name, mask in masks.items():
        std = 2 * math.sqrt(2 / mask.shape[1])
        parameters[name] = torch.randn(mask.shape, generator=generator) * std * mask
    teacher = Teacher(masks, parameters, planted=True)
    sample = _asked(teacher, lenet_300_100, MLP_INPUTS, generator).train
    parameters["fc3.bias"] = -_logits(teacher, lenet_300_100, sample.x).mean(0)
    return _asked(teacher, lenet_300_100, MLP_INPUTS, generator)


def _draw_masks(network: nn.Module, edges: dict[str, int], generator: torch.Generator) -> MaskSet:
    masks = {}
    for name, count in edges.items():
        rows, cols = network.get_parameter(name).shape
        masks[name] = biregular_random(rows, cols, edges=count, generator=generator).mask
    return MaskSet(masks)


_Build = Callable[[tuple[int, ...], int], nn.Module]


def _asked(teacher: Teacher, build: _Build, inputs: int, generator: torch.Generator) -> Dataset:
    """Draw inputs, and ask the teacher for their classes."""
    parts = []
    for size in _SIZES:
        x = torch.randn(size, inputs, generator=generator)
        parts.append(Split(x, _logits(teacher, build, x).argmax(1)))
    train, validation, test = parts
    return Dataset(train, validation, test, CLASSES, teacher)


@torch.no_grad()
def _logits(teacher: Teacher, build: _Build, x: torch.Tensor) -> torch.Tensor:
    network = build(tuple(x.shape[1:]), CLASSES)
    network.load_state_dict(dict(teacher.parameters))
    return network(x)
