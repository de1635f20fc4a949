"""Runs people already have: the logs that `inspect eval` (inspect-ai, inspect-evals) left, as an `Evaluation`.

A log holds one task. A folder of logs holds what one model was asked, such as inspect's `--log-dir`. Logs are read by
inspect-ai itself; everything in them is untrusted.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deltamend.errors import EvaluationError, option
from deltamend.evaluation.record import Evaluation, ItemScore, TaskScores
from deltamend.machine.digests import json_sha256

_LARGEST = 1 << 30
"""Bytes a log may unpack to; more is refused rather than read into memory."""

_JSON_LOG = re.compile(rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:')
"""How a log in JSON begins; a record of `deltamend evaluate` and lm-eval's results begin otherwise."""

_WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""What inspect's `value_to_float` makes of words: correct, partly correct, incorrect, no answer."""

_GENERATION = (
    "system_message",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop_seqs",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "num_choices",
    "best_of",
    "reasoning_effort",
    "reasoning_tokens",
)
"""Generation settings that answers depend on; the others are about connections."""

_ONE_MINUS = "1-"
"""Before a score's name: one minus it, for scores from 0 to 1 that are better when lower."""


def is_inspect_log(path: Path) -> bool:
    """Whether a path is a log of inspect-ai, or a folder with such logs in it."""
    if path.is_dir():
        return any(map(_is_log, path.iterdir()))
    return _is_log(path)


def _is_log(file: Path) -> bool:
    if not file.is_file() or file.suffix != ".json":
        return file.is_file() and file.suffix == ".eval"
    with file.open("rb") as opened:
        return _JSON_LOG.match(opened.read(200)) is not None


def read_inspect_logs(
    path: Path, metrics: Mapping[str, str] | None = None, wanted: Collection[str] | None = None
) -> tuple[Evaluation, list[str]]:
    """Read one log, or the newest finished log of every task in a folder.

    A score is the mean over an item's epochs of the number that inspect's `value_to_float` makes of the scorer's value.
    inspect does not say whether higher is better: it is taken for better, unless `metrics` has `1-NAME`.

    Args:
        path: a log (.eval or .json), or a folder of logs of one model.
        metrics: task to the scorer's name, with a value of several numbers `scorer/key`; `1-NAME` is one minus it. A task
            with one scorer and one number needs none.
        wanted: the tasks to judge, with their arguments where one was run with several; None for all.

    Returns:
        The record, and sentences on what was chosen.

    Raises:
        EvaluationError: inspect-ai is not installed; a log is damaged, too large, not finished or of another model; a sample
            failed or was not scored; there are several scores and none is named; a wanted task has no log.
    """
    files = sorted(filter(_is_log, path.iterdir())) if path.is_dir() else [path]
    logs, said = _newest(path, {file: _read(file) for file in files})
    for name in wanted or ():
        if name not in logs:
            raise EvaluationError(
                f"{path}: has no log of task {name!r} (there are: {', '.join(sorted(logs))}); evaluate it"
            )
    tasks: dict[str, TaskScores] = {}
    for name, (file, log) in logs.items():
        if wanted is not None and name not in wanted:
            continue
        tasks[name], notes = _task(file, log, name, (metrics or {}).get(name))
        said += notes
    specs = [log.eval for _, log in logs.values()]
    models = sorted({spec.model for spec in specs})
    if len(models) > 1:
        raise EvaluationError(
            f"{path}: has logs of several models ({', '.join(models)}); give each a folder of its own"
        )
    return Evaluation(
        model=models[0],
        suite="inspect logs",
        suite_version=specs[0].packages.get("inspect_ai", "unknown"),
        seed=specs[0].model_generate_config.seed or 0,
        versions=specs[0].packages,
        tasks=tasks,
    ), said


def _read(file: Path) -> Any:
    """The `EvalLog`, attachments put back in their places."""
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise EvaluationError(
            f"{file}: is a log of inspect, and reading it needs inspect-ai ({error}): pip install 'deltamend[inspect]'"
        ) from error
    try:
        if not file.is_file():
            raise EvaluationError(f"{file}: not a regular file; give a log of inspect")
        size = file.stat().st_size
        if file.suffix == ".eval":
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
        if size > _LARGEST:
            raise EvaluationError(f"{file}: unpacks to more than 1 GiB; evaluate fewer items at a time")
        return read_eval_log(str(file), resolve_attachments=True)
    except EvaluationError:
        raise
    except Exception as error:  # inspect raises whatever its zip, JSON and pydantic readers do
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EvaluationError(f"{file}: inspect-ai cannot read it ({reason}); run it again") from error


def _newest(path: Path, logs: Mapping[Path, Any]) -> tuple[dict[str, tuple[Path, Any]], list[str]]:
    """The newest finished log of each task by the task's name, with its arguments where it was run with several."""
    finished = {file: log for file, log in logs.items() if log.status == "success" and not log.invalidated}
    said = [
        f"{file}: is left out, its status is {'invalidated' if log.invalidated else log.status}"
        for file, log in logs.items()
        if file not in finished
    ]
    if not finished:
        raise EvaluationError(f"{path}: no finished log ({said[0].partition(', ')[2]}); run `inspect eval-retry` on it")
    variants: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file, log in sorted(finished.items(), key=lambda pair: (pair[1].eval.created, str(pair[0]))):
        variants[log.eval.task][_arguments(log)].append(file)
    chosen: dict[str, tuple[Path, Any]] = {}
    for task, by_arguments in variants.items():
        for arguments, files in by_arguments.items():
            name = task if len(by_arguments) == 1 else f"{task}({arguments})"
            chosen[name] = files[-1], finished[files[-1]]
            if len(files) > 1:
                said.append(f"{path}: {len(files)} logs of {name}; the newest, {files[-1].name}, is used")
    return chosen, said


def _arguments(log: Any) -> str:
    """A task's arguments as given, `subset=unsafe`."""
    return ",".join(f"{key}={value}" for key, value in sorted(log.eval.task_args_passed.items()))


def _task(file: Path, log: Any, name: str, wanted: str | None) -> tuple[TaskScores, list[str]]:
    """One log."""
    samples = log.samples or []
    for sample in samples:
        if sample.error is not None or not sample.scores:
            raise EvaluationError(
                f"{file}: task {name!r}: sample {sample.id!r} failed or has no score; run `inspect eval-retry` or `inspect score` on it"
            )
    if not samples:
        raise EvaluationError(f"{file}: task {name!r}: has no samples; run it without --no-log-samples")
    metric = _choose(file, name, _offered(samples), wanted)
    epochs: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for sample in samples:
        epochs[str(sample.id)].append((_score(file, name, sample, metric), _asked_item(sample)))
    expected = log.eval.config.epochs or 1
    items = []
    for item, scored in epochs.items():
        if len(scored) != expected or len({prompt for _, prompt in scored}) > 1:
            raise EvaluationError(
                f"{file}: task {name!r}: sample {item!r} has {len(scored)} of {expected} epochs, or other prompts in them; run it again"
            )
        mean = math.fsum(score for score, _ in scored) / len(scored)
        items.append(ItemScore(id=item, prompt_hash=scored[0][1], score=mean))
    try:
        task = TaskScores(
            metric=metric, version=str(log.eval.task_version), fewshot=0, asked=_asked(log), items=tuple(items)
        )
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise EvaluationError(f"{file}: task {name!r}: {message}; run it again") from error
    return task, _said_of_figure(log, name, task)


def _offered(samples: Sequence[Any]) -> list[str]:
    """Names of the scores: the scorer's, or `scorer/key` for each number of a value that has several."""
    names: dict[str, None] = {}
    for sample in samples:
        for scorer, score in sample.scores.items():
            keys = [f"{scorer}/{key}" for key in score.value] if isinstance(score.value, Mapping) else [scorer]
            names |= dict.fromkeys(keys)
    return list(names)


def _choose(file: Path, task: str, offered: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(offered) == 1:
        return offered[0]
    if wanted is not None and wanted.removeprefix(_ONE_MINUS) in offered:
        return wanted
    found = "has several scores" if wanted is None else f"has no score {wanted!r}"
    raise EvaluationError(
        f"{file}: task {task!r}: {found}; choose one with {option('metrics')} from: {', '.join(offered)} "
        f"({_ONE_MINUS}NAME where lower is better)"
    )


def _score(file: Path, task: str, sample: Any, metric: str) -> float:
    scorer, _, key = metric.removeprefix(_ONE_MINUS).partition("/")
    value = getattr(sample.scores.get(scorer), "value", None)
    if key:
        value = value.get(key) if isinstance(value, Mapping) else None
    score = _number(value)
    if score is None or not math.isfinite(score):
        raise EvaluationError(
            f"{file}: task {task!r}: sample {sample.id!r}: {metric} is {str(value)[:40]!r} and no number; "
            f"run `inspect score` on it, or choose another score with {option('metrics')}"
        )
    if not metric.startswith(_ONE_MINUS):
        return score
    if not 0 <= score <= 1:
        raise EvaluationError(
            f"{file}: task {task!r}: sample {sample.id!r}: {metric}: the score is {score:g}, not from 0 to 1; choose another"
        )
    return 1 - score


def _number(value: Any) -> float | None:
    """What inspect's `value_to_float` makes of a value; None where that would warn and count 0."""
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    known = _WORDS.get(value, _WORDS.get(value.lower()))
    try:
        return known if known is not None else float(value)
    except ValueError:
        return None


def _asked_item(sample: Any) -> str:
    """SHA-256 of what was asked and what is right: input, choices and target. Messages have random ids, left out."""
    asked = sample.input
    if not isinstance(asked, str):
        asked = [message.model_dump(include={"role", "content"}, mode="json") for message in asked]
    return json_sha256([asked, sample.choices, sample.target])


def _asked(log: Any) -> str:
    """Hash of how answers were got and judged: arguments, solvers, generation, scorers."""
    spec = log.eval
    generation = spec.model_generate_config.merge(log.plan.config).model_dump(include=set(_GENERATION), mode="json")
    steps = [[step.solver, step.params] for step in log.plan.steps]
    scorers = [[scorer.name, scorer.options] for scorer in spec.scorers or []]
    return json_sha256([spec.task_args, steps, generation, scorers, spec.config.epochs])


def _said_of_figure(log: Any, name: str, task: TaskScores) -> list[str]:
    """What to say where inspect's own figure is no plain mean of the items, such as with another reducer of epochs."""
    scorer, _, key = task.metric.partition("/")
    own = [
        figure.value
        for score in (log.results.scores if log.results else [])
        if (score.scorer, score.name) in ((scorer, scorer), (scorer, key))
        for label, figure in score.metrics.items()
        if label in ("accuracy", "mean")
    ]
    return [
        f"{name}: the mean of the items is {task.mean:.4f}, inspect's own figure {figure:.4f} is no plain mean"
        for figure in own[:1]
        if not math.isclose(task.mean, figure, abs_tol=1e-6)
    ]
