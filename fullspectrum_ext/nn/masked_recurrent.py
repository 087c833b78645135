"""Recurrent layers whose masked weights are exactly zero, whatever the optimizer does."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fullspectrum_ext.nn.masked import Masked


def recurrent_arguments(layer: nn.RNNBase) -> dict[str, Any]:
    """Return what a recurrent layer of torch was made with."""
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    names += ["bidirectional"]
    names += ["nonlinearity"] if isinstance(layer, nn.RNN) else []
    names += ["proj_size"] if isinstance(layer, nn.LSTM) else []
    return {name: getattr(layer, name) for name in names}


class _MaskedRecurrent(Masked, nn.RNNBase):
    """What the masked recurrent layers share.

    Torch's kernels take all weights of the layer in one list, dense. For the time of a pass, views
    of the weights stand in it whose gradients are masked.
    """

    def __init__(self, layer: nn.RNNBase, masks: Mapping[str, Tensor]) -> None:
        # on the meta device, so that no random number is drawn for weights that are not used
        super().__init__(**recurrent_arguments(layer), device="meta")
        for name, parameter in layer.named_parameters():
            setattr(self, name, parameter)
        for name, mask in masks.items():
            if name not in self._flat_weights_names or not name.startswith("weight"):
                raise ValueError(f"masks: expected names of weights of the layer, got {name!r}")
            self._set_mask(mask, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the layer as torch's own does, with the same arguments."""
        self._update_flat_weights()  # before the views: torch would put the plain weights back
        masked = self.masks.keys()
        plain: list[Any] = self._flat_weights
        self._flat_weights = [
            self.used_weight(name) if name in masked else weight
            for name, weight in zip(self._flat_weights_names, plain, strict=True)
        ]
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._flat_weights = plain


class MaskedRNN(_MaskedRecurrent, nn.RNN):
    """A recurrent layer with masks on its weights, which are zero and have zero gradient there.

    Args:
        layer: The layer to mask; its parameters become this layer's own.
        masks: Name of a weight (``"weight_ih_l0"``, ``"weight_hh_l0"``, ...) to its mask, a bool
            tensor of its shape; False removes. Weights that are not named stay dense.

    Raises:
        TypeError: If a mask is not a bool tensor.
        ValueError: If a mask has another shape, or a name is not that of a weight.
    """  # noqa: DOC502


class MaskedLSTM(_MaskedRecurrent, nn.LSTM):
    """An LSTM with masks on its weights, as :class:`MaskedRNN`.

    Example:
        >>> import torch
        >>> lstm = MaskedLSTM(nn.LSTM(3, 2), {"weight_hh_l0": torch.eye(2).bool().repeat(4, 1)})
        >>> int((lstm.weight_hh_l0 != 0).sum())
        8
    """


class MaskedGRU(_MaskedRecurrent, nn.GRU):
    """A GRU with masks on its weights, as :class:`MaskedRNN`."""


MASKED_RECURRENT: dict[type[nn.RNNBase], Any] = {
    nn.RNN: MaskedRNN,
    nn.LSTM: MaskedLSTM,
    nn.GRU: MaskedGRU,
}
"""The masked layer of each of torch's."""
