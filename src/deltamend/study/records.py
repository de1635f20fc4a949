"""The records of a study: a packed file for each cell, with the score of every item of every model."""

from __future__ import annotations

import lzma
import re
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from deltamend.errors import EvaluationError
from deltamend.evaluation.record import Evaluation
from deltamend.machine.atomic import write_whole
from deltamend.machine.bounded_files import UnreadableError, read_unpacked
from deltamend.machine.json_text import MAX_OBJECTS, JsonError, check_size
from deltamend.records import FiniteRecord, first_problem
from deltamend.study.own_folders import file_name

_LARGEST = 500_000_000
"""Bytes a record may unpack to; more is refused rather than read into memory."""
_LONGEST = 1e12
"""Seconds that anything may have taken."""
TARGET, TARGET_LIKELIHOOD, OWN_ANSWERS, FORM = "target", "target_likelihood", "own_answers", "form"
"""Names of the study's own tasks in every evaluation; those of a further source of prompts have its name behind them."""

MISPLACED = "target_misplaced"
"""Name of the task that scores the target's right answers after the questions of other items: what the form alone is worth."""

FINETUNED = "finetuned"
"""Name of the fine-tuned model among the models of a cell."""


class AdapterFacts(FiniteRecord):
    """How BASE+ADAPTER, as this program reads the two, differs from the model that the trainer merged in fp32."""

    distance: float = Field(ge=0, description="‖difference‖ over all tensors, in units of ‖Δ‖.")
    largest: float = Field(ge=0, description="Largest difference of one weight.")


class FinetuneFacts(FiniteRecord):
    """How a fine-tuning went."""

    steps: int
    seconds: float = Field(ge=0, le=_LONGEST, description="Wall time.")
    first_loss: float = Field(description="Nats a token of the answers, mean over the first tenth of the steps.")
    last_loss: float = Field(description="The same over the last tenth.")
    model_hash: str = Field(description="SHA-256 over the weight files.")
    adapter: AdapterFacts | None = Field(default=None, description="Of a regime that trains an adapter.")


class DiagnosisFacts(FiniteRecord):
    """What `deltamend diagnose` says of the update."""

    verdict: str = Field(description="Verdict on the whole update.")
    verdicts: dict[str, int] = Field(description="Number of matrices with each verdict.")
    median_ks: float | None = Field(
        default=None,
        description="Median over the matrices of the Kolmogorov–Smirnov distance of the bulk to Marchenko–Pastur.",
    )
    zeros: float = Field(ge=0, le=1, description="Share of the entries that did not change at all.")
    kept_energy: float = Field(ge=0, le=1, description="Share of ‖Δ‖² above τ.")
    kept_rank: float = Field(ge=0, le=1, description="Mean share of the singular values above τ.")
    relative_size: float = Field(ge=0, description="‖Δ‖/‖W_base‖ over all matrices.")


class RepairFacts(FiniteRecord):
    """What a repair did, all norms over all matrices."""

    method: str = Field(description="The method with its parameters.")
    kept_energy: float = Field(ge=0, description="‖Δ*‖²/‖Δ‖²; above 1 where a method rescales.")
    realised_error: float = Field(ge=0, description="How far the written weights are from W_base + Δ*, in ‖Δ*‖.")
    realised_energy: float = Field(ge=0, description="‖written − W_base‖²/‖Δ‖².")
    kept_rank: float | None = Field(
        default=None, description="Mean share of the singular values kept, where the method counts them."
    )
    seconds: float = Field(ge=0, le=_LONGEST, description="Wall time.")


class ModelRecord(FiniteRecord):
    """One model of a cell: the fine-tuned one, or a repair."""

    key: str = Field(description="Hash of everything the scores depend on.")
    exam: str = Field(description="Hash of all questions and of how they were asked.")
    facts: RepairFacts | None = Field(default=None, description="None for the fine-tuned model.")
    evaluation: Evaluation
    seconds: float | None = Field(default=None, ge=0, le=_LONGEST, description="Wall time of asking it.")


class CellRecord(FiniteRecord):
    """One cell, finished or not."""

    format: Literal[1] = 1
    cell: str
    key: str = Field(description="Hash of everything the fine-tuned model depends on.")
    finetune: FinetuneFacts
    diagnosis: DiagnosisFacts
    models: dict[str, ModelRecord] = Field(description="`finetuned`, then the repairs by name.")
    versions: dict[str, str] = Field(description="Versions of the packages and of Python.")
    machine: str
    best_constant: float | None = Field(
        default=None, description="Share of the target's test items that the best constant answer gets right."
    )
    base_source: str | None = Field(
        default=None, description="Where the base came from; its hash is in the base's record."
    )


class BaseRecord(FiniteRecord):
    """A base model asked what the models of one target are asked."""

    format: Literal[1] = 1
    key: str
    evaluation: Evaluation
    versions: dict[str, str]
    machine: str
    source: str | None = Field(default=None, description="Where the model came from, by the study or as it was run.")


_Kept = TypeVar("_Kept", CellRecord, BaseRecord)


def cell_file(out: Path, cell: str) -> Path:
    """Where the record of a cell lies."""
    return out / "cells" / f"{file_name(cell)}.json.xz"


def base_file(out: Path, model: str, target: str, device: str) -> Path:
    """Where the record of a base model lies that was asked on `device`, such as cpu or cuda."""
    kind = "" if device == "cpu" else f"__{re.sub(r'[^A-Za-z0-9]', '', device)}"
    return out / "bases" / f"{file_name(f'{model}/{target}')}{kind}.json.xz"


def device_of(evaluation: Evaluation) -> str:
    """Where a model was asked."""
    return evaluation.settings.get("device", "cpu")


def write_record(record: CellRecord | BaseRecord, path: Path) -> None:
    """Write a record, whole or not at all; the same record gives the same bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    content = record.model_dump_json(exclude_none=True).encode()
    write_whole(path, lzma.compress(content, preset=6))


def read_record(path: Path, kind: type[_Kept]) -> _Kept | None:
    """Read a record; None where there is none.

    Raises:
        EvaluationError: the file is damaged.
    """
    try:
        content = read_unpacked(path, _LARGEST)
        check_size(content, objects=MAX_OBJECTS)
        return kind.model_validate_json(content)
    except (UnreadableError, JsonError, ValidationError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        # The whole content would stand in what pydantic says by itself.
        said = ": ".join(filter(None, first_problem(error))) if isinstance(error, ValidationError) else str(error)
        reason = " ".join(said.split())[:200]
        raise EvaluationError(f"{path}: is damaged ({reason}); delete it and run the study again") from error
