"""The record of one evaluation: what every item scored, and all that a comparison with another model depends on."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from deltamend.errors import EvaluationError
from deltamend.machine.atomic import write_whole
from deltamend.machine.bounded_files import UnreadableError, read_unpacked
from deltamend.machine.json_text import MAX_OBJECTS, JsonError, check_size
from deltamend.records import FiniteRecord, first_problem

_LARGEST = 500_000_000
"""Bytes a record may unpack to; more is refused rather than read into memory."""
FARTHEST_SCORE = 1e15
"""Largest size of a score, so that the squares and sums of scores are finite."""


class ItemScore(FiniteRecord):
    """What one model scored on one item."""

    id: str = Field(
        description="Unique within the task and the same for every model; a group's items begin with the subtask."
    )
    prompt_hash: str = Field(
        description="SHA-256 of the whole prompt, the item and its right answer: items are compared only where these agree."
    )
    score: float = Field(
        ge=-FARTHEST_SCORE,
        le=FARTHEST_SCORE,
        description="Higher is better; 0 to 1 for accuracies, any number for likelihoods.",
    )
    loglikelihoods: tuple[float, ...] = Field(
        default=(), description="Log-likelihood of each choice, in nats; empty for generated answers."
    )
    response: str | None = Field(
        default=None, description="The generated answer, where the run was asked to keep responses."
    )


class TaskScores(FiniteRecord):
    """One benchmark."""

    metric: str = Field(description="What `score` is, by lm-eval's name: acc, acc_norm, exact_match, …")
    version: str = Field(description="Version of the task's definition.")
    fewshot: int = Field(ge=0, description="Worked examples in the prompt.")
    chance: float | None = Field(default=None, ge=0, lt=1, description="Expected score of a guess, where there is one.")
    weak: str | None = Field(default=None, description="Why the scores are weak evidence; shown wherever they are.")
    asked: str | None = Field(
        default=None, description="Hash of how the answers were obtained: answer filter and generation settings."
    )
    key: str | None = Field(
        default=None, description="Hash of everything the scores depend on, which a resumed run compares."
    )
    items: tuple[ItemScore, ...] = Field(min_length=1)

    @property
    def mean(self) -> float:
        """Mean score over the items."""
        return math.fsum(item.score for item in self.items) / len(self.items)

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean over the items; None for a single item."""
        count = len(self.items)
        if count < 2:
            return None
        mean = self.mean
        squares = math.fsum((item.score - mean) ** 2 for item in self.items)
        return math.sqrt(squares / (count - 1) / count)

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        doubled = [name for name, times in Counter(item.id for item in self.items).items() if times > 1]
        if doubled:
            raise ValueError(f"item {doubled[0]!r} occurs twice")
        return self


class Evaluation(FiniteRecord):
    """What one model scored on a suite."""

    format: Literal[1] = 1
    model: str = Field(description="As the user named it.")
    model_hash: str | None = Field(
        default=None, description="SHA-256 over the model's weight files, where they are local."
    )
    suite: str
    suite_version: str
    template_hash: str | None = Field(default=None, description="SHA-256 of the chat template, where one was applied.")
    limit: int | None = Field(
        default=None, ge=1, description="Number of items asked of each task, where there was a limit."
    )
    seed: int
    settings: dict[str, str] = Field(
        default_factory=dict, description="What else the scores depend on: backend, dtype, device, judge."
    )
    versions: dict[str, str] = Field(
        default_factory=dict, description="Versions of deltamend, lm_eval, torch, transformers, …"
    )
    tasks: dict[str, TaskScores] = Field(min_length=1)


def read_evaluation(path: Path) -> Evaluation:
    """Read a record that `write_evaluation` wrote; gzip is recognised by its first bytes.

    Raises:
        EvaluationError: the file is missing, too large, or not a record.
    """
    try:
        content = read_unpacked(path, _LARGEST)
        check_size(content, objects=MAX_OBJECTS)
        return Evaluation.model_validate_json(content)
    except (UnreadableError, JsonError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}); give a file `deltamend evaluate` wrote") from error
    except ValidationError as error:
        field, problem = first_problem(error)
        raise EvaluationError(
            f"{path}: {field or 'the file'}: {problem}; give a file `deltamend evaluate` wrote"
        ) from error


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write a record, whole or not at all; packed with gzip where the name ends in .gz, the same bytes each time.

    Raises:
        OutputError: the file cannot be written.
    """
    content = evaluation.model_dump_json(indent=1, exclude_none=True).encode()
    write_whole(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
