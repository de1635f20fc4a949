"""What an evaluation that was interrupted leaves beside OUT: the benchmarks that were finished."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from deltamend.errors import OutputError
from deltamend.evaluation.record import TaskScores
from deltamend.machine.atomic import write_whole
from deltamend.machine.bounded_files import UnreadableError, read_bytes
from deltamend.machine.json_text import MAX_OBJECTS, JsonError, check_size
from deltamend.records import Record

_LARGEST = 500_000_000
"""Bytes the file may have."""


class FinishedBenchmark(Record):
    """A benchmark that is done, a hash of what its figures depend on, and the hash of the chat template that was applied."""

    key: str
    template_hash: str | None = None
    scores: TaskScores


class _UnfinishedRun(Record):
    tasks: dict[str, FinishedBenchmark]


def work_file(out: Path) -> Path:
    """The file beside OUT that holds what is finished until OUT is complete."""
    return out.with_name(f".{out.name}.deltamend-partial.json")


def read_finished(path: Path) -> dict[str, FinishedBenchmark]:
    """What an interrupted run had finished, by benchmark; empty where it left nothing.

    Raises:
        OutputError: the work file is damaged.
    """
    if not os.path.lexists(path):
        return {}
    try:
        content = read_bytes(path, _LARGEST)
        check_size(content, objects=MAX_OBJECTS)
        return _UnfinishedRun.model_validate_json(content).tasks
    except (UnreadableError, JsonError, ValidationError) as error:
        raise OutputError(f"{path}: is damaged; delete it and start again") from error


def write_finished(path: Path, finished: Mapping[str, FinishedBenchmark]) -> None:
    """Write what is finished so far, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_whole(path, _UnfinishedRun(tasks=dict(finished)).model_dump_json(exclude_none=True))
