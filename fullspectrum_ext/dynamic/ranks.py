"""The processes that train one model, and their collective operations, with what these send."""

from typing import Any

import torch
from torch import Tensor


class Ranks:
    """A group of processes. All of them must call a method for any of them to return.

    What one of them sends is counted as if tensors went round in a ring: each rank passes a
    gathered part on to the next, and of a sum every part once on the way to it and once back.

    Args:
        group: A process group of ``torch.distributed``; None for the default one.
        device: Where its backend takes tensors.

    Attributes:
        rank: Of this process.
        size: Number of processes.
        sent_bytes: What this process has sent to others.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group, self._device = group, device
        self.rank: int = torch.distributed.get_rank(group)
        self.size: int = torch.distributed.get_world_size(group)
        self.sent_bytes = 0

    def share(self, count: int, rank: int | None = None) -> tuple[int, int]:
        """Return which of ``count`` rows are those of a rank, this one if none is said."""
        rank = self.rank if rank is None else rank
        return rank * count // self.size, (rank + 1) * count // self.size

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, of the same shape and dtype on each."""
        if not tensor.numel():
            return [tensor] * self.size
        own = tensor.detach().contiguous().to(self._device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(parts, own, group=self._group)
        self.sent_bytes += own.nbytes * (self.size - 1)
        return [part.to(tensor.device) for part in parts]

    def gather_rows(self, tensor: Tensor, rows: list[int]) -> Tensor:
        """Return the rows of all ranks, one rank's after the other.

        Args:
            tensor: Those of this rank.
            rows: How many there are on each rank.
        """
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        parts = self.gather(padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    def gather_objects(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what all ranks give."""
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, mine, group=self._group)
        return found

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of the tensors of all ranks; these are used up."""
        own = tensor.contiguous().to(self._device)
        torch.distributed.all_reduce(own, group=self._group)
        self.sent_bytes += 2 * own.nbytes * (self.size - 1) // self.size
        return own.div_(self.size).to(tensor.device)
