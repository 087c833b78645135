"""A sparse network that data come from, and how much of it masks have found."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fullspectrum_ext.masks import MaskSet


@dataclass(frozen=True)
class Teacher:
    """The network that data come from, by the names of the network that is to learn them.

    Attributes:
        masks: Which of its weights are there: the true support.
        parameters: Name to value of each parameter, zero outside the support.
        planted: Whether it has to be in the initial weights of the network that learns: where there
            are hidden units, which have no order, its support could not be found otherwise.
    """

    masks: MaskSet
    parameters: Mapping[str, Tensor]
    planted: bool

    @torch.no_grad()
    def plant(self, model: nn.Module) -> None:
        """Write the teacher's weights and biases into a model's where it has to be planted.

        Args:
            model: A dense network of the teacher's shape, changed in place; its other weights stay.

        Raises:
            ValueError: If it has other parameters.
        """
        parameters = dict(model.named_parameters())
        for name, value in self.parameters.items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise ValueError(
                    f"model: expected the teacher's parameter {name} {tuple(value.shape)}, "
                    f"got {', '.join(f'{n} {tuple(p.shape)}' for n, p in parameters.items())}"
                )
        for name, value in self.parameters.items() if self.planted else ():
            parameter = parameters[name]
            kept = self.masks[name] if name in self.masks else torch.ones_like(value).bool()
            kept = kept.to(parameter.device)
            parameter[kept] = value.to(parameter)[kept]

    def recovered(self, masks: MaskSet) -> float:
        """Return the share of the true support that masks keep; of random masks, their density.

        Args:
            masks: Masks of a network of the teacher's shape.

        Returns:
            A fraction in [0, 1].

        Raises:
            ValueError: If they are masks of other weights.

        Example:
            >>> support = MaskSet({"fc.weight": torch.tensor([[1, 1, 0, 0]])})
            >>> teacher = Teacher(support, {}, planted=False)
            >>> teacher.recovered(MaskSet({"fc.weight": torch.tensor([[0, 1, 1, 1]])}))
            0.5
        """
        shapes = {name: tuple(mask.shape) for name, mask in self.masks.items()}
        given = {name: tuple(mask.shape) for name, mask in masks.items()}
        if shapes != given:
            raise ValueError(f"masks: expected those of {shapes}, got {given}")
        both = sum(
            int((truth & masks[name].to(truth.device)).sum()) for name, truth in self.masks.items()
        )
        return both / self.masks.nnz
