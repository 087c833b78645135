"""A progress bar for what may take long."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class LateProgress:
    """One progress bar on the error stream if that is a terminal, and only after two seconds.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("")
        self._begun = time.monotonic()

    def __enter__(self) -> "LateProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, title: str) -> None:
        """Begin anew under a title."""
        self._bars.reset(self._task, description=title)

    def advance(self, done: int, total: int) -> None:
        """Move the bar to where it should be."""
        if time.monotonic() - self._begun > 2:
            self._bars.start()
        self._bars.update(self._task, completed=done, total=total)
