"""The batches that a method scores on, whatever the caller gave them as."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class _Drawn(Protocol):
    """A source that draws its batches itself."""

    def draw(self, count: int, generator: torch.Generator) -> list[Batch]: ...


class Batches:
    """Batches of (inputs, targets), to be read in order or drawn freshly shuffled.

    Args:
        data: A DataLoader or another iterable of ``(inputs, targets)``, or one such pair. What can
            be read only once, such as a generator, is kept in memory.

    Raises:
        TypeError: If it is none of these.
    """

    def __init__(self, data: Any):
        if _is_batch(data):
            data = [tuple(data)]
        elif isinstance(data, Dataset):
            raise TypeError(
                f"data: expected batches (inputs, targets), got the data set {type(data).__name__};"
                " wrap it in a torch.utils.data.DataLoader"
            )
        elif not isinstance(data, Iterable):
            raise TypeError(
                "data: expected an iterable of batches (inputs, targets), "
                f"got {type(data).__name__}"
            )
        self._data: Iterable[Any] = list(data) if isinstance(data, Iterator) else data
        self._memory: tuple[Tensor, Tensor, int] | None = None  # inputs, targets, batch size

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for batch in self._data:
            if not _is_batch(batch):
                raise TypeError(
                    "data: expected batches (inputs, targets) of two tensors, got "
                    f"{_described(batch)}"
                )
            empty = False
            yield batch[0], batch[1]
        if empty:
            raise ValueError("data: expected at least one batch, got none")

    def draw(self, count: int, generator: torch.Generator) -> list[Batch]:
        """Draw batches at random, without repeating a sample, of the size of the first batch.

        A DataLoader over a map-style data set reads only the samples that are drawn, and so does a
        source that has this method itself; from any other all samples are read and kept in memory.

        Args:
            count: How many batches; fewer come back where there is less data.
            generator: Source of the shuffle, on the CPU.

        Returns:
            The batches.
        """
        data = self._data
        if isinstance(data, _Drawn):
            return data.draw(count, generator)
        if (
            isinstance(data, DataLoader)
            and not isinstance(data.dataset, IterableDataset)
            and data.batch_size is not None
        ):
            samples = min(count * data.batch_size, len(data.dataset))  # type: ignore[arg-type]
            order = RandomSampler(data.dataset, num_samples=samples, generator=generator)  # type: ignore[arg-type]
            loader: DataLoader[Any] = DataLoader(
                data.dataset, data.batch_size, sampler=order, collate_fn=data.collate_fn
            )
            return list(Batches(loader))
        return self._draw_from_memory(count, generator)

    def _draw_from_memory(self, count: int, generator: torch.Generator) -> list[Batch]:
        if self._memory is None:
            batches = list(self)
            self._memory = (
                torch.cat([inputs for inputs, _ in batches]),
                torch.cat([targets for _, targets in batches]),
                len(batches[0][0]),
            )
        inputs, targets, size = self._memory
        order = torch.randperm(len(inputs), generator=generator)
        parts = order[: count * size].split(size)
        return [
            (inputs[part.to(inputs.device)], targets[part.to(targets.device)]) for part in parts
        ]


def _is_batch(data: object) -> bool:
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and all(isinstance(part, Tensor) for part in data)
    )


def _described(batch: object) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {', '.join(type(p).__name__ for p in batch) or '0'}"
    return type(batch).__name__
