"""Search for the method and strength with the best score on one half of the evaluation items; report on the other half."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from deltamend.errors import EvaluationError, MethodError, UsageError, option
from deltamend.evaluation.record import Evaluation
from deltamend.inputs.open_models import open_checkpoint
from deltamend.machine.temporary_folders import temporary_folder
from deltamend.methods.interpolation import TaskArithmetic
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
"""Evaluates the model in a folder."""

METHODS = ("dg-hard", "magnitude", "task-arithmetic")
"""The methods that are tried by default."""

STRENGTHS = (1.0, 0.8, 0.6, 0.4, 0.2)
"""The strengths that are tried by default, in this order."""

_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


class Trial(FiniteRecord):
    """The score of one candidate on the choosing half of the items, without intervals."""

    name: str = Field(description="Method and strength, such as dg-hard × 0.8.")
    method: str = Field(description="Name of the method, followed by the parameters that differ from their defaults.")
    strength: float = Field(description="Factor on the update that the method keeps: W* = W_base + strength · Δ*.")
    healing: float | None = Field(description="Share of the damage that is healed; see docs/score.md.")
    retention: float | None = Field(description="Share of the gain on the target task that is retained.")
    combined: float | None = Field(description="The combined score, 0 to 100.")


class Tuning(FiniteRecord):
    """The result of a search: what was tried, what was chosen, and its score on items that had no part in the choice."""

    trials: tuple[Trial, ...] = Field(description="The candidates in the order in which they were tried.")
    stopped: tuple[str, ...] = Field(
        description="Candidates that were not tried, because the score had already fallen at a greater strength."
    )
    chosen: str = Field(description="Name of the trial with the best combined score on the choosing half.")
    front: tuple[str, ...] = Field(
        description="Names of the Pareto-optimal trials: no other trial beats them in healing and in retention there."
    )
    choosing: Score = Field(
        description="Score of the front on the choosing half; too optimistic, as these items chose it."
    )
    reporting: Score = Field(description="Score of the front on the other half, which is the one to rely on.")
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
    """Try several methods, each at falling strengths until the combined score falls.

    Each method repairs the model once, into a float32 checkpoint W*. Its candidates are W_base + strength · (W* − W_base). The
    id of an item alone decides whether it belongs to the choosing or to the reporting half.

    Args:
        base: folder of the checkpoint that fine-tuning started from.
        finetuned: folder of the fine-tuned checkpoint.
        evaluate: evaluates the model in a folder on the target task and on benchmarks.
        target: the task that the model was fine-tuned for.
        methods: names of methods, or methods made with `get_method`.
        strengths: the strengths in the order in which they are tried, each in (0, 1].
        patience: a method is given up after this number of strengths in a row that did not improve its score.
        settings: settings of the score.
        work: folder for temporary models. It holds one float32 model and one candidate at a time.
        progress: callback for the name of each step before it begins, and the share of the methods that are done.

    Returns:
        Every trial, the best of them, and the scores of the best on both halves.

    Raises:
        UsageError: a method or strength is invalid, a method is given twice, or the target is not evaluated.
        EvaluationError: on the choosing half fine-tuning damaged nothing or improved nothing, so nothing can be chosen.

    Source: ours.
    """
    candidates = [_made(method) for method in methods]
    names = [_shown(method) for method in candidates]
    if len(set(names)) < len(names) or not names:
        raise UsageError(f"{option('methods')}: give at least one method, and each method only once")
    if not strengths or len(set(strengths)) < len(strengths) or not all(0 < strength <= 1 for strength in strengths):
        raise UsageError(f"{option('strengths')}: give numbers above 0 and up to 1, each only once")
    if patience < 1:
        raise UsageError(f"{option('patience')}: give 1 or more")
    report = progress or ignore_progress
    search = _Search(Path(base), Path(finetuned), evaluate, target, settings or Settings())
    report("base", 0.0)
    search.records["base"] = evaluate(Path(base))
    check_target(target, search.records["base"].tasks)
    report("fine-tuned", 0.0)
    search.records["finetuned"] = evaluate(Path(finetuned))
    with temporary_folder(work, "deltamend-tune-") as folder:
        for number, method in enumerate(candidates):
            search.try_method(method, strengths, patience, folder, _at(report, number / len(candidates)))
    return search.found()


def check_target(target: str, tasks: Collection[str]) -> None:
    """Refuse a target that is not among the tasks, or is the only task, before any time is spent.

    Raises:
        UsageError: the target is not among the tasks, or there is no benchmark besides it.
    """
    if target not in tasks:
        raise UsageError(f"{option('target')} {target!r}: is not one of the tasks; they are {', '.join(tasks)}")
    if len(tasks) == 1:
        raise UsageError(
            f"{option('target')} {target!r}: is the only task; add benchmarks that fine-tuning may have damaged"
        )


def _at(progress: Progress, share: float) -> Callable[[str], None]:
    return lambda doing: progress(doing, share)


def halves(record: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Split the items of an evaluation into a choosing and a reporting half, by a hash of the task's name and the item's id.

    Raises:
        EvaluationError: a task has so few items that one of its halves is empty.
    """
    kept: tuple[dict[str, object], dict[str, object]] = ({}, {})
    for name, task in record.tasks.items():
        for half, tasks in enumerate(kept):
            items = tuple(item for item in task.items if _half(name, item.id) == half)
            if not items:
                raise EvaluationError(
                    f"task {name!r}: {len(task.items)} items are too few to split into halves; evaluate more items"
                )
            tasks[name] = task.model_copy(update={"items": items})
    first, second = (record.model_copy(update={"tasks": tasks}) for tasks in kept)
    return first, second


def _half(task: str, item: str) -> int:
    return hashlib.sha256(json.dumps([task, item]).encode()).digest()[0] & 1


def _made(method: str | Method) -> Method:
    # Its strengths scale the whole update, so it has none of its own.
    given = {"weight": 1.0} if method == "task-arithmetic" else None
    made = method if isinstance(method, Method) else get_method(method, given)
    if made.name in ("none", "revert"):
        raise UsageError(
            f"{option('methods')}: {made.name!r} is the fine-tuned model or the base, which are always evaluated; leave it out"
        )
    return made


def _is_whole_update(method: Method) -> bool:
    """Whether a method keeps the update as it is, so that only the strength decides."""
    return isinstance(method, TaskArithmetic) and method.weight == 1.0


def _shown(method: Method) -> str:
    return method.name if _is_whole_update(method) else method.described()


class _Search:
    """A search that is going on: the evaluations and trials so far."""

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
        """Repair once with the method, then try the strengths until `patience` of them in a row are not better."""
        filtered, candidate = folder / "filtered", folder / "candidate"
        best, without_gain = -1.0, 0
        report(_shown(method))
        repair_folders(self._base, self._finetuned, filtered, RepairOptions(method=method, out_dtype="fp32"))
        dtype = _dtype_of(self._finetuned)
        for strength in strengths:
            name = f"{_shown(method)} × {strength:g}"
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
            what = "damaged no benchmark" if healing is None else f"did not improve {self._target}"
            raise EvaluationError(
                f"on the choosing half of the items fine-tuning {what} by more than the margin, so no candidate can be "
                "chosen; evaluate more items or other benchmarks"
            )
        return Trial(
            name=name,
            method=_shown(method),
            strength=strength,
            healing=healing,
            retention=retention,
            combined=combined,
        )

    def found(self) -> Tuning:
        """Choose the best trial, and score it and the Pareto front on both halves."""
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
        """The command that makes a candidate, in one pass over the weights if possible."""
        # Not the dumped values, as a method dumps a file as its name and hash, and the command needs the path.
        given = {key: getattr(method, key) for key in method.model_dump(exclude_defaults=True)}
        parameters: dict[str, Any] = json.loads(json.dumps(given, default=str))
        settings: list[str] = []
        for key, value in parameters.items():
            settings += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        words = ["deltamend", "repair", str(self._base), str(self._finetuned), "OUT", "--method"]
        if strength == 1:
            words += [method.name, *settings]
        elif _is_whole_update(method):
            words += [method.name, "--set", f"weight={strength:g}"]
        else:
            steps = [{"method": method.name, **parameters}, {"method": "task-arithmetic", "weight": strength}]
            try:
                get_method("hybrid", {"steps": steps})
            except MethodError:
                # A method that looks at the whole model cannot be a step of hybrid, so a second command applies the strength.
                words[4] = "FILTERED"
                second = ["deltamend", "repair", str(self._base), "FILTERED", "OUT", "--method", "task-arithmetic"]
                second += ["--set", f"weight={strength:g}", "--out-dtype", _dtype_of(self._finetuned)]
                words += [method.name, *settings, "--out-dtype", "fp32"]
                return f"{shlex.join(words)} && {shlex.join(second)}"
            words += ["hybrid", "--set", f"steps={json.dumps(steps)}"]
        return shlex.join(words)


def _dtype_of(folder: Path) -> str:
    """The dtype of most of a model's weights, as the option `out_dtype` names it; fp32 if it cannot be written."""
    bytes_of: Counter[str] = Counter()
    with open_checkpoint(folder) as checkpoint:
        for tensor in checkpoint.tensors.values():
            bytes_of[tensor.dtype] += tensor.nbytes
    return _DTYPES.get(bytes_of.most_common(1)[0][0], "fp32")


def _beats(one: Trial, other: Trial) -> bool:
    """Whether one trial is at least as good as another in healing and in retention, and better in one of them."""
    first, second = ((trial.healing or 0.0, trial.retention or 0.0) for trial in (one, other))
    return first != second and first[0] >= second[0] and first[1] >= second[1]
