"""Search method and strength for the best combined score on one half of the items, and report on the other half."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from deltamend.errors import EvaluationError, MethodError, UsageError, option
from deltamend.evaluation.record import Evaluation
from deltamend.inputs.open_models import open_checkpoint
from deltamend.methods.method import Method
from deltamend.methods.registry import get_method
from deltamend.progress import Progress, ignore_progress
from deltamend.records import FiniteRecord
from deltamend.repairing.options import RepairOptions
from deltamend.repairing.run import repair_folders
from deltamend.scoring.cell_means import observed_means
from deltamend.scoring.cell_score import score_cells
from deltamend.scoring.metric import parts_of
from deltamend.scoring.paired_cell import open_cell
from deltamend.scoring.result import Score
from deltamend.scoring.settings import Settings

Evaluate = Callable[[Path], Evaluation]
"""What scores the model in a folder."""


STRENGTHS = (1.0, 0.8, 0.6, 0.4, 0.2)
_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}

METHODS = ("dg-hard", "magnitude", "task-arithmetic")


class Trial(FiniteRecord):
    """One candidate on the half it was chosen by; figures without intervals, as they only choose."""

    name: str = Field(description="Method and strength, such as dg-hard × 0.8.")
    method: str
    strength: float = Field(description="Factor on what the method keeps: W* = W_base + strength · Δ*.")
    healing: float | None
    retention: float | None
    combined: float | None


class Tuning(FiniteRecord):
    """What was tried, what is best, and what that is worth on items that did not choose it."""

    trials: tuple[Trial, ...] = Field(description="On the choosing half, in the order they were tried.")
    stopped: tuple[str, ...] = Field(description="Candidates left out, as the score had fallen before them.")
    chosen: str = Field(description="Name of the trial with the best combined score on the choosing half.")
    front: tuple[str, ...] = Field(description="Trials that no other beats in both healing and retention there.")
    choosing: Score = Field(description="The front on the half that chose it: too good, by having been chosen.")
    reporting: Score = Field(description="The front on the other half: what to believe.")
    command: str = Field(description="The command that makes the chosen model.")


def tune(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    evaluate: Evaluate,
    *,
    target: str,
    methods: Sequence[str | Method] = METHODS,
    strengths: Sequence[float] = STRENGTHS,
    patience: int = 1,
    settings: Settings | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Try every method at falling strengths, until the combined score falls.

    Each method filters the weights once, into a float32 checkpoint; its strengths are W_base + strength · (W* − W_base) of
    that. Which half an item belongs to follows from its id alone.

    Args:
        base: folder of the checkpoint fine-tuning started from.
        finetuned: folder of its descendant.
        evaluate: what scores a model's folder, on the target and on benchmarks.
        target: the task the model was fine-tuned for.
        methods: names, or methods made with `get_method`.
        strengths: in the order to try them, each in (0, 1].
        patience: strengths without a better score after which the method's others are left out.
        settings: of the score.
        work: folder for the candidates; one filtered model in float32 and one candidate at a time.
        progress: called before each candidate.

    Returns:
        Every trial on the choosing half, the best of them, and what the best are worth on the reporting half.

    Raises:
        UsageError: a method or strength is invalid, a method is given twice, or the target is not evaluated.
        EvaluationError: the choosing half leaves nothing to choose by.

    Source: ours.
    """
    chosen_by = settings or Settings()
    candidates = [_made(method) for method in methods]
    names = [method.described() for method in candidates]
    if len(set(names)) < len(names) or not names:
        raise UsageError(f"{option('methods')}: give each method once, and one at least")
    if not strengths or len(set(strengths)) < len(strengths) or not all(0 < strength <= 1 for strength in strengths):
        raise UsageError(f"{option('strengths')}: give numbers above 0 and up to 1, each once")
    if patience < 1:
        raise UsageError(f"{option('patience')}: give 1 or more")
    report = progress or ignore_progress
    search = _Search(Path(base), Path(finetuned), evaluate, target, chosen_by)
    report("base", 0.0)
    search.records["base"] = evaluate(Path(base))
    check_target(target, search.records["base"].tasks)
    report("fine-tuned", 0.0)
    search.records["finetuned"] = evaluate(Path(finetuned))
    with tempfile.TemporaryDirectory(dir=work, prefix="deltamend-tune-") as folder:
        for number, method in enumerate(candidates):
            search.try_method(method, strengths, patience, Path(folder), _at(report, number / len(candidates)))
    return search.found()


def check_target(target: str, tasks: Collection[str]) -> None:
    """Refuse a target that is not among the tasks, or is the only one, before anything is spent on it.

    Raises:
        UsageError: there is no such task, or no benchmark beside it.
    """
    if target not in tasks:
        raise UsageError(f"{option('target')} {target!r}: is none of the tasks; there are {', '.join(tasks)}")
    if len(tasks) == 1:
        raise UsageError(f"{option('target')} {target!r}: is the only task; add benchmarks that may have been damaged")


def _at(progress: Progress, share: float) -> Callable[[str], None]:
    return lambda doing: progress(doing, share)


def halves(record: Evaluation) -> tuple[Evaluation, Evaluation]:
    """The choosing and the reporting half of a record's items, by a hash of each task and item id.

    Raises:
        EvaluationError: a task has so few items that a half of it is empty.
    """
    kept: tuple[dict[str, object], dict[str, object]] = ({}, {})
    for name, task in record.tasks.items():
        for half, tasks in enumerate(kept):
            items = tuple(item for item in task.items if _half(name, item.id) == half)
            if not items:
                raise EvaluationError(f"task {name!r}: {len(task.items)} items cannot be halved; evaluate more")
            tasks[name] = task.model_copy(update={"items": items})
    first, second = (record.model_copy(update={"tasks": tasks}) for tasks in kept)
    return first, second


def _half(task: str, item: str) -> int:
    return hashlib.sha256(json.dumps([task, item]).encode()).digest()[0] & 1


def _made(method: str | Method) -> Method:
    made = method if isinstance(method, Method) else get_method(method)
    if made.name in ("none", "revert"):
        raise UsageError(f"{option('methods')}: {made.name!r} is always scored; leave it out")
    return made


class _Search:
    """The records so far, and what they say."""

    def __init__(self, base: Path, finetuned: Path, evaluate: Evaluate, target: str, settings: Settings) -> None:
        self._base, self._finetuned, self._evaluate = base, finetuned, evaluate
        self._target, self._settings = target, settings
        self.records: dict[str, Evaluation] = {}
        self._methods: dict[str, Method] = {}
        self._trials: list[Trial] = []
        self._stopped: list[str] = []

    def try_method(
        self, method: Method, strengths: Sequence[float], patience: int, folder: Path, report: Callable[[str], None]
    ) -> None:
        """Filter once, then try the strengths until `patience` of them were no better."""
        filtered, candidate = folder / "filtered", folder / "candidate"
        best, without_gain = -1.0, 0
        report(method.described())
        repair_folders(self._base, self._finetuned, filtered, RepairOptions(method=method, out_dtype="fp32"))
        dtype = _dtype_of(self._finetuned)
        for strength in strengths:
            name = f"{method.described()} × {strength:g}"
            if without_gain >= patience:
                self._stopped.append(name)
                continue
            report(name)
            scaled = RepairOptions(method="task-arithmetic", parameters={"weight": strength}, out_dtype=dtype)
            repair_folders(self._base, filtered, candidate, scaled)
            self.records[name] = self._evaluate(candidate)
            shutil.rmtree(candidate)
            trial = self._trial(name, method, strength)
            self._methods[name] = method
            self._trials.append(trial)
            without_gain = 0 if (trial.combined or 0.0) > best else without_gain + 1
            best = max(best, trial.combined or 0.0)
        shutil.rmtree(filtered)

    def _trial(self, name: str, method: Method, strength: float) -> Trial:
        base, finetuned, candidate = (halves(self.records[model])[0] for model in ("base", "finetuned", name))
        cell = open_cell(base, finetuned, {name: candidate}, target=self._target)
        parts = parts_of(observed_means(cell, self._settings))
        first = (parts.healing[0], parts.retention[0], parts.combined[0])
        healing, retention, combined = (None if np.isnan(value) else float(value) for value in first)
        if healing is None or retention is None:
            what = "damaged no benchmark" if healing is None else f"made {self._target} no better"
            raise EvaluationError(
                f"on the choosing half of the items fine-tuning {what} beyond the margin, so nothing can be chosen by it; "
                "evaluate more items or other benchmarks"
            )
        return Trial(
            name=name,
            method=method.described(),
            strength=strength,
            healing=healing,
            retention=retention,
            combined=combined,
        )

    def found(self) -> Tuning:
        """The best trial and the front, on both halves."""
        best = max(self._trials, key=lambda trial: trial.combined or 0.0)
        front = [trial.name for trial in self._trials if not any(_beats(other, trial) for other in self._trials)]
        shown = list(dict.fromkeys([best.name, *front]))
        split = {name: halves(self.records[name]) for name in ("base", "finetuned", *shown)}
        scores = [
            score_cells(
                [
                    open_cell(
                        split["base"][half],
                        split["finetuned"][half],
                        {name: split[name][half] for name in shown},
                        target=self._target,
                        name=f"{self._finetuned.name}, {about} half",
                    )
                ],
                self._settings,
            )[0]
            for half, about in enumerate(("choosing", "reporting"))
        ]
        return Tuning(
            trials=tuple(self._trials),
            stopped=tuple(self._stopped),
            chosen=best.name,
            front=tuple(front),
            choosing=scores[0],
            reporting=scores[1],
            command=self._command(self._methods[best.name], best.strength),
        )

    def _command(self, method: Method, strength: float) -> str:
        """How to make a candidate in one pass over the weights."""
        # The values themselves: what the method writes of a file, its name and content, is no path.
        given = {key: getattr(method, key) for key in method.model_dump(exclude_defaults=True)}
        parameters: dict[str, Any] = json.loads(json.dumps(given, default=str))
        settings: list[str] = []
        for key, value in parameters.items():
            settings += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        words = ["deltamend", "repair", str(self._base), str(self._finetuned), "OUT", "--method"]
        if strength == 1:
            words += [method.name, *settings]
        else:
            steps = [{"method": method.name, **parameters}, {"method": "task-arithmetic", "weight": strength}]
            try:
                get_method("hybrid", {"steps": steps})
            except MethodError:
                # Methods that look at the whole model cannot be a step; the factor is then applied to what they wrote.
                words[4] = "FILTERED"
                second = ["deltamend", "repair", str(self._base), "FILTERED", "OUT", "--method", "task-arithmetic"]
                second += ["--set", f"weight={strength:g}", "--out-dtype", _dtype_of(self._finetuned)]
                words += [method.name, *settings, "--out-dtype", "fp32"]
                return f"{shlex.join(words)} && {shlex.join(second)}"
            words += ["hybrid", "--set", f"steps={json.dumps(steps)}"]
        return shlex.join(words)


def _dtype_of(folder: Path) -> str:
    """The dtype of most of a model's weights, as `--out-dtype` names it; what cannot be written is cast to fp32."""
    bytes_of: Counter[str] = Counter()
    with open_checkpoint(folder) as checkpoint:
        for tensor in checkpoint.tensors.values():
            bytes_of[tensor.dtype] += tensor.nbytes
    return _DTYPES.get(bytes_of.most_common(1)[0][0], "fp32")


def _beats(one: Trial, other: Trial) -> bool:
    ours, theirs = (((trial.healing or 0.0), (trial.retention or 0.0)) for trial in (one, other))
    return ours != theirs and all(mine >= yours for mine, yours in zip(ours, theirs, strict=True))
