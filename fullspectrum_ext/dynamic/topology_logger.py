"""What becomes of a topology, update by update: as lists and in TensorBoard."""

from typing import Any

from fullspectrum_ext.dynamic.updates import LayerUpdate, Update

_DIGITS = 6  # of shares, in the lists


class TopologyLogger:
    """Keeps what updates did to a topology, and writes it to TensorBoard.

    It is what :class:`fullspectrum_ext.DynamicSparsity` calls after each update. A writer gets, at
    the steps of the updates: overlap, churn, number of weights and, where it is asked for, the
    share of the weights that was explored, of all layers (``topology/churn``) and of each
    (``churn/0.weight``); and histograms of the in- and out-degrees of each layer
    (``in_degree/0.weight``).

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or what has its ``add_scalar`` and
            ``add_histogram``; None keeps the lists alone.
        steps: Steps of the optimizer before the first one that the updates count, where training
            began without them.

    Attributes:
        writer: As given.

    Example:
        >>> import torch
        >>> model = fs.sparsify(torch.nn.Linear(8, 8), {"weight": torch.eye(8)})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> log = fs.dynamic.TopologyLogger()
        >>> dynamic = fs.DynamicSparsity(
        ...     model, optimizer, "set", steps=9, every=4, seed=0, on_update=log
        ... )
        >>> for _ in range(9):
        ...     updated = dynamic.step()
        >>> log.take()["topology_steps"]
        [4, 8]
    """

    def __init__(self, writer: Any = None, *, steps: int = 0) -> None:
        self.writer = writer
        self._steps_before = steps
        self._told: list[tuple[int, LayerUpdate]] = []

    def __call__(self, update: Update) -> None:
        """Keep an update, and write it.

        Args:
            update: What was done.
        """
        step = self._steps_before + update.step
        self._told.append((step, update.total))
        if self.writer is None:
            return
        for name, figure in _figures(update.total).items():
            self.writer.add_scalar(f"topology/{name}", figure, step)
        for layer, told in update.layers.items():
            for name, figure in _figures(told).items():
                self.writer.add_scalar(f"{name}/{layer}", figure, step)
            degrees = update.degrees(layer)
            self.writer.add_histogram(f"in_degree/{layer}", degrees.inward, step)
            self.writer.add_histogram(f"out_degree/{layer}", degrees.outward, step)

    def take(self) -> dict[str, list[Any]]:
        """Return what was done since the last call, as lists that JSON can hold.

        Returns:
            ``topology_steps``, and of the updated layers together ``topology_overlap``,
            ``topology_churn`` and ``topology_explored`` (None, where it was not asked for).
        """
        told, self._told = self._told, []
        return {
            "topology_steps": [step for step, _ in told],
            "topology_overlap": [round(total.overlap, _DIGITS) for _, total in told],
            "topology_churn": [round(total.churn, _DIGITS) for _, total in told],
            "topology_explored": [
                None if total.explored is None else round(total.explored, _DIGITS)
                for _, total in told
            ],
        }


def _figures(told: LayerUpdate) -> dict[str, float]:
    figures = {"overlap": told.overlap, "churn": told.churn, "nnz": told.after}
    return figures if told.explored is None else figures | {"explored": told.explored}
