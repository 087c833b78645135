"""Models by name, with initial weights that depend on the seed alone."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fullspectrum_ext.experiments.models.imported import import_model
from fullspectrum_ext.experiments.models.layers import Initialised, Shape
from fullspectrum_ext.experiments.models.lstm import character_lstm
from fullspectrum_ext.experiments.models.mlp import lenet_300_100, linear, wide_mlp
from fullspectrum_ext.experiments.models.plain import VGG16, VGG19, convnet, imagenet_vgg, vgg
from fullspectrum_ext.experiments.models.residual import (
    cifar_resnet,
    imagenet_resnet,
    resnet,
    wide_resnet,
)
from fullspectrum_ext.experiments.models.vit import vit

MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "mlp": lenet_300_100,
    "lenet-300-100": lenet_300_100,  # as the field calls it
    "linear": linear,
    "mlp-4096": partial(wide_mlp, width=4096),
    "convnet": convnet,
    "resnet20": partial(cifar_resnet, depth=20),
    "resnet20-64": partial(cifar_resnet, depth=20, width=64),
    "resnet32": partial(cifar_resnet, depth=32),
    "resnet56": partial(cifar_resnet, depth=56),
    "resnet18": partial(resnet, blocks=(2, 2, 2, 2)),
    "resnet34": partial(resnet, blocks=(3, 4, 6, 3)),
    "resnet34-imagenet": partial(imagenet_resnet, blocks=(3, 4, 6, 3)),
    "vgg16": partial(vgg, stages=VGG16),
    "vgg19": partial(vgg, stages=VGG19),
    "vgg16-imagenet": partial(imagenet_vgg, stages=VGG16),
    "wrn-22-2": partial(wide_resnet, depth=22, factor=2),
    "vit": partial(vit, width=128, depth=6, heads=4),
    "vit-tiny": partial(vit, width=192, depth=12, heads=3),
    "lstm": character_lstm,
}
"""Name of each model, and the function that builds it. A new one is a new entry."""

_TAKEN_BY = {
    "images": tuple(name for name in MODELS if name != "lstm"),
    "text": ("lstm",),
    "teacher-linear": ("linear",),
    "teacher-mlp": ("mlp", "lenet-300-100"),
}


def check_model(name: str, kind: str) -> None:
    """Refuse a model that cannot take a kind of data.

    Args:
        name: Key of :data:`MODELS`; any other name is looked into when the model is built.
        kind: What the data are: ``images``, ``text``, ``teacher-linear`` or ``teacher-mlp``.

    Raises:
        ValueError: If the model is one for other data.

    Example:
        >>> check_model("lstm", "images")
        Traceback (most recent call last):
        ...
        ValueError: model: 'lstm' takes text, not images; expected one of mlp, ...
    """
    if name not in MODELS or name in _TAKEN_BY[kind]:
        return
    kinds = " and ".join(other for other, names in _TAKEN_BY.items() if name in names)
    raise ValueError(
        f"model: {name!r} takes {kinds}, not {kind}; expected one of {', '.join(_TAKEN_BY[kind])}"
    )


def build_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a model of :data:`MODELS`, or one by import path, on the CPU.

    Weights are normal with variance 2 / fan-in (He et al. 2015), biases zero, normalisation the
    identity; a transformer and a recurrent network begin with smaller weights, as in their papers.
    They come from a generator made of the seed: the global one is neither read nor moved. A model
    by import path makes its own weights, with torch's generator seeded for it.

    Args:
        name: Key of :data:`MODELS`, or ``package.module:function`` that returns a module.
        shape: Shape of one input: channels, height, width; of text: length, characters.
        classes: Number of outputs. A function is given it where it takes ``num_classes``.
        seed: Of the initial weights.

    Returns:
        The model, its weights float32.

    Raises:
        TypeError: If a function returns something else than a module.
        ValueError: If there is no module or function of this name.
    """  # noqa: DOC502
    if name not in MODELS:
        return import_model(name, MODELS, classes, seed)
    with torch.device("meta"):  # so that torch's own initialisation draws no random numbers
        model = MODELS[name](shape, classes)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            layer.reset_parameters()
    for layer in model.modules():  # where the above is not what the network begins with
        if isinstance(layer, Initialised):
            layer.initialise(generator)
    return model
