"""A recurrent network that predicts the next character at every place of a text."""

import math

import torch
from torch import Tensor, nn

from fullspectrum_ext.experiments.models.layers import Shape


def character_lstm(shape: Shape, classes: int, width: int = 128) -> nn.Module:
    """Two recurrent layers and a linear one.

    Args:
        shape: Of one input: length, characters. Characters come one-hot.
        classes: Number of characters to choose the next one from.
        width: Units of each recurrent layer.

    Returns:
        The network; its outputs are ``[batch, classes, length]``, as cross entropy takes them.
    """
    return _CharacterLSTM(shape[-1], classes, width)


class _LSTM(nn.Module):
    """One layer of Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    Its two matrices are linear layers, so that they are pruned and made sparse as any other.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Linear(inputs, 4 * width)
        self.hidden = nn.Linear(width, 4 * width, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """As ``torch.nn.LSTM``, uniform in ±1/√width; a forget gate begins open."""
        bound = 1 / math.sqrt(self.width)
        for layer in (self.input, self.hidden):
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        with torch.no_grad():
            self.input.bias[self.width : 2 * self.width] = 1

    def forward(self, x: Tensor) -> Tensor:
        """States at all places, ``[batch, length, width]``, from zero before the first."""
        state = cell = x.new_zeros(len(x), self.width)
        states = []
        for gates in self.input(x).unbind(1):
            enter, forget, new, leave = (gates + self.hidden(state)).chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, 1)


class _CharacterLSTM(nn.Module):
    def __init__(self, characters: int, classes: int, width: int) -> None:
        super().__init__()
        self.lstm1 = _LSTM(characters, width)
        self.lstm2 = _LSTM(width, width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm2(self.lstm1(x))).transpose(1, 2)
