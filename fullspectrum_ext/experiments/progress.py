"""What a person sees while a job runs: a bar for the job, one for the current run, a line each."""

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress:
    """Two progress bars on a terminal; where there is none, only the line that ends each run.

    Args:
        console: Where to write; None shows nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            transient=True,
            disable=console is None,
        )
        self._job = self._bars.add_task("all runs")
        self._run = self._bars.add_task("", visible=False)

    def __enter__(self) -> "TrainingProgress":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start_job(self, epochs: int) -> None:
        """Set the length of the job, in epochs of all its runs."""
        self._bars.update(self._job, total=epochs, completed=0)

    def start_run(self, title: str, epochs: int, done: int) -> None:
        """Begin a run; ``done`` epochs of it come from its checkpoint."""
        self._bars.reset(self._run, description=title, total=epochs, completed=done, visible=True)
        self._bars.advance(self._job, done)

    def note(self, title: str) -> None:
        """Say what the current run is at."""
        self._bars.update(self._run, description=title)

    def end_epoch(self) -> None:
        """Move both bars one epoch on."""
        self._bars.advance(self._job)
        self._bars.advance(self._run)

    def end_run(self, line: str) -> None:
        """Leave a line above the bars."""
        if not self._bars.disable:
            self._bars.console.print(line)
