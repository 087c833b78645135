"""The coordinate of a network while it trains."""

import time
from pathlib import Path
from typing import Any

from torch import nn

from fullspectrum_ext.experiments.extras import MissingExtraError
from fullspectrum_ext.spectral import FullSpectrum, full_spectrum
from fullspectrum_ext.spectral.coordinates import COORDINATES

_DIGITS = 6  # of a layer's coordinates in the records: what their tolerance certifies


class SpectrumLogger:
    """Measures the full-spectrum coordinate of a model every so many optimizer steps.

    The first measurement is at step 0, where training begins: at once. Call :meth:`step` after
    each step of the optimizer. The model is only read and no random number is drawn, so that
    training goes the same way, bit for bit, with a logger and without.

    Args:
        model: The network, in training; masks and weights are read off it anew each time, so that
            its topology may change.
        every: Steps between two measurements.
        steps: Steps already taken, where training goes on from a checkpoint.
        tensorboard: Folder to write TensorBoard events to, or None.
        **arguments: Keywords of :func:`fullspectrum_ext.full_spectrum`.

    Attributes:
        writer: What writes TensorBoard events, for others to write to as well; None without.

    Raises:
        ValueError: If ``every`` is below 1 or ``steps`` below 0.
        MissingExtraError: If TensorBoard is asked for and not installed.

    Example:
        >>> import torch
        >>> model = nn.Linear(8, 8)
        >>> logger = SpectrumLogger(model, every=2)
        >>> for _ in range(4):
        ...     logger.step()
        >>> logger.take()["coordinate_steps"]
        [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int,
        steps: int = 0,
        tensorboard: Path | None = None,
        **arguments: Any,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1, got {every}")
        if steps < 0:
            raise ValueError(f"steps: expected at least 0, got {steps}")
        self.model = model
        self.every = every
        self.steps = steps
        self._arguments = arguments
        self.writer = None if tensorboard is None else _new_writer(tensorboard, steps)
        self._measured: list[tuple[int, FullSpectrum]] = []
        self._seconds = 0.0
        if not steps:
            self._measure()

    def step(self) -> None:
        """Count a step, and measure after every ``every``-th."""
        self.steps += 1
        if not self.steps % self.every:
            self._measure()

    def _measure(self) -> None:
        start = time.perf_counter()
        spectrum = full_spectrum(self.model, **self._arguments)
        seconds = time.perf_counter() - start
        self._seconds += seconds
        self._measured.append((self.steps, spectrum))
        if self.writer is not None:
            scalars = dict(zip(COORDINATES, spectrum.vector.tolist(), strict=True))
            for name, value in (scalars | {"norm": spectrum.norm(), "seconds": seconds}).items():
                self.writer.add_scalar(f"coordinate/{name}", value, self.steps)
            for name, layer in spectrum.layers.items():
                for coordinate, value in zip(COORDINATES, layer.vector.tolist(), strict=True):
                    self.writer.add_scalar(f"{coordinate}/{name}", value, self.steps)
            self.writer.flush()

    def take(self) -> dict[str, Any]:
        """Return what was measured since the last call, as lists that JSON can hold.

        Returns:
            ``coordinate_steps``, ``coordinate_means`` (the four, mean over the layers),
            ``coordinate_norms``, ``coordinate_layers`` (the four of each layer, by its name, to six
            digits), and ``coordinate_seconds``, what all of it cost.
        """
        names = self._measured[0][1].layers if self._measured else ()
        record = {
            "coordinate_steps": [step for step, _ in self._measured],
            "coordinate_means": [spectrum.vector.tolist() for _, spectrum in self._measured],
            "coordinate_norms": [spectrum.norm() for _, spectrum in self._measured],
            "coordinate_layers": {
                name: [
                    [float(f"{value:.{_DIGITS}g}") for value in spectrum.layers[name].vector]
                    for _, spectrum in self._measured
                ]
                for name in names
            },
            "coordinate_seconds": self._seconds,
        }
        self._measured, self._seconds = [], 0.0
        return record

    def close(self) -> None:
        """Finish the TensorBoard file, if there is one."""
        if self.writer is not None:
            self.writer.close()


def _new_writer(folder: Path, steps: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "logging") from error
    # What a killed run wrote beyond its checkpoint is measured again.
    return SummaryWriter(str(folder), purge_step=steps + 1 if steps else 0)
