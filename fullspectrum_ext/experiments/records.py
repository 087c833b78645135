"""The records of a job: one JSON line an epoch, all of them, each once."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fullspectrum_ext._files import write_atomically

Record = Mapping[str, Any]
Run = tuple[str, int]  # method and seed


def append_record(path: Path, record: Record) -> None:
    """Add a line and wait until it is on the disk."""
    with path.open("ab") as file:
        file.write(_line(record))
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read every whole line; none where there is no file.

    Args:
        path: The file.

    Returns:
        The records, in the order of the file.

    Raises:
        ValueError: If a line is no JSON object.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # cut short by a kill: its epoch is not checkpointed and will be run again
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: expected JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number}: expected a JSON object")
        records.append(record)
    return records


def rewind_records(path: Path, epochs: Mapping[Run, int]) -> None:
    """Cut the file back to what is checkpointed, so that no line is lost and none comes twice.

    A kill between the line of an epoch and its checkpoint leaves a line too many.

    Args:
        path: The file.
        epochs: Epochs that each run's checkpoint has, in the order of the runs.

    Raises:
        ValueError: If the line of a checkpointed epoch is missing.
    """
    lines = {(r.get("method"), r.get("seed"), r.get("epoch")): r for r in read_records(path)}
    kept: list[Record] = []
    for (method, seed), last in epochs.items():
        for epoch in range(1, last + 1):
            if (method, seed, epoch) not in lines:
                raise ValueError(
                    f"{path}: the line of method {method}, seed {seed}, epoch {epoch} is missing; "
                    f"start anew with --fresh"
                )
            kept.append(lines[method, seed, epoch])
    data = b"".join(map(_line, kept))
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, data)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        ValueError: If the file holds none.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON for people and programs, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
