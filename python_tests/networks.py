"""Small networks and data for the pruning tests."""

import torch
from torch import nn

from fullspectrum_ext._layers import prunable_weights
from fullspectrum_ext.pruning.base import ScoringContext, find_method
from fullspectrum_ext.pruning.batches import Batches


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def conv_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(128, 10),
    )


def digits(count=128, batch=32, *, image=False, seed=0):
    """Batches that look like digits: eight-by-eight, non-negative, with a class in them."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, (count,), generator=generator)
    prototypes = torch.rand(10, 64, generator=generator)
    inputs = prototypes[targets] + 0.1 * torch.rand(count, 64, generator=generator)
    if image:
        inputs = inputs.reshape(-1, 1, 8, 8)
    return list(zip(inputs.split(batch), targets.split(batch), strict=True))


def scores_of(method, model, *, data=None, density=0.1, scope=None, seed=0, **options):
    """What a method returns before it is cut to masks."""
    registered = find_method(method)
    context = ScoringContext(
        weights={name: weight.detach() for name, weight in prunable_weights(model)},
        density=density,
        scope=registered.resolve_scope(scope),
        generator=torch.Generator().manual_seed(seed),
        batches=None if data is None else Batches(data),
        loss=nn.functional.cross_entropy,
        _model=model,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registered.function(context, **options)
