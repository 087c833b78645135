"""Runs of a sweep in processes of their own, which end with the process that started them."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Literal, cast

import torch

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.data import Dataset, load_data
from fullspectrum_ext.experiments.folder import FolderInUseError, RunFolder
from fullspectrum_ext.experiments.suite import train


@dataclass(frozen=True)
class Task:
    """A run to do.

    Attributes:
        config: Its settings, with one method and one seed.
        path: Its folder.
    """

    config: TrainConfig
    path: Path


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        config: Of the task.
        status: ``busy`` where another process is at work in the folder.
        message: What is wrong, where it failed.
        accuracy: On the test data, as a fraction, where it is finished.
        seconds: What it took.
    """

    config: TrainConfig
    status: Literal["finished", "failed", "busy"]
    message: str = ""
    accuracy: float = 0.0
    seconds: float = 0.0


Load = Callable[..., Dataset]


def run_tasks(tasks: Iterable[Task], jobs: int) -> Generator[Outcome, None, None]:
    """Do the tasks, as many at a time as there are jobs.

    Args:
        tasks: In the order to begin them.
        jobs: Processes; one is this process.

    Yields:
        What came of each, as they end.
    """
    if jobs > 1:
        yield from _run_in_processes(tasks, jobs)
        return
    load = functools.lru_cache(maxsize=1)(load_data)
    for task in tasks:
        yield _run(task, load)


def _run(task: Task, load: Load) -> Outcome:
    folder = RunFolder(task.path)
    begun = time.perf_counter()
    try:
        _choose_gpu(task.config.device)
        folder.error.unlink(missing_ok=True)
        results = train(task.config, folder, load=load)
    except FolderInUseError:
        return Outcome(task.config, "busy")
    except Exception as error:  # the sweep goes on, whatever stops one of its runs
        if not isinstance(error, ValueError | TypeError | OSError):
            return _failed(task, traceback.format_exc().strip())
        title = f"{task.config.methods[0]}, seed {task.config.seeds[0]}: "
        return _failed(task, str(error).removeprefix(title))  # as the folder is called
    accuracy = results["runs"][0]["test_accuracy"]
    return Outcome(task.config, "finished", accuracy=accuracy, seconds=time.perf_counter() - begun)


def _failed(task: Task, message: str) -> Outcome:
    write_atomically(RunFolder(task.path).error, f"{message}\n".encode())
    return Outcome(task.config, "failed", message)


def _choose_gpu(device: str) -> None:
    """Let ``cuda`` be the GPU that torchrun gave this process."""
    local_rank = os.environ.get("LOCAL_RANK")
    if device != "cuda" or local_rank is None:
        return
    if int(local_rank) >= torch.cuda.device_count():
        raise ValueError(
            f"--nproc-per-node: expected at most one process for each of "
            f"{torch.cuda.device_count()} GPUs, got local rank {local_rank}"
        )
    torch.cuda.set_device(int(local_rank))


# ---- in processes of their own -------------------------------------------------------------------


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    task: Task


def _run_in_processes(tasks: Iterable[Task], jobs: int) -> Generator[Outcome, None, None]:
    waiting = deque(tasks)
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                with _interrupts_held_back():
                    connection, process = _start()
                    workers[connection] = _give(connection, process, waiting.popleft())
            for connection in cast(list[Connection], wait(list(workers))):
                worker = workers.pop(connection)
                try:
                    outcome = connection.recv()
                except EOFError:
                    worker.process.join()
                    yield _failed(worker.task, _how_it_ended(worker.process.exitcode))
                    continue
                if waiting:
                    workers[connection] = _give(connection, worker.process, waiting.popleft())
                else:
                    connection.close()  # the process ends
                yield outcome
    finally:
        for worker in workers.values():
            worker.process.kill()  # what it was at goes on from its checkpoint
            worker.process.join()


def _start() -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that its end is seen at ours
    return ours, process


def _give(connection: Connection, process: SpawnProcess, task: Task) -> _Worker:
    with contextlib.suppress(BrokenPipeError):  # it has ended: seen where an answer is awaited
        connection.send(task)
    return _Worker(process, task)


@contextlib.contextmanager
def _interrupts_held_back() -> Generator[None, None, None]:
    """Hold SIGINT back; a process started within never gets it, and leaves it to its parent."""
    resource_tracker.ensure_running()  # else the first start does so, and lets SIGINT through
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    # Blocked for the new process; this one may still be told of it by another of its threads.
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(1)) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"
    return f"its process ended with exit code {code}"


def _work(connection: Connection) -> None:
    """Do task after task, until no more come."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    load = functools.lru_cache(maxsize=1)(load_data)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(_run(connection.recv(), load))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # also where it was killed
    os._exit(1)
