"""Runs people already have: what `lm_eval run --output_path DIR --log_samples` left, as an `Evaluation`.

Layout of lm-eval 0.4: `DIR/<model>/results_<date>.json` and, of the same date, one `samples_<task>_<date>.jsonl` for each
task, with a line for each item and filter. Everything in it is untrusted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deltamend.errors import EvaluationError, option
from deltamend.evaluation.record import FARTHEST_SCORE, Evaluation, ItemScore, TaskScores
from deltamend.machine.bounded_files import UnreadableError, entries_below, read_text
from deltamend.machine.json_text import JsonError, check_size, parse_json
from deltamend.records import first_problem

METRICS = (
    "acc_norm,none",
    "acc,none",
    "exact_match,strict-match",
    "prompt_level_strict_acc,none",
    "exact_match",
    "acc_norm",
    "acc",
    "math_verify",
    "f1",
)
"""What a task is scored by, in the order of preference; a name without a filter takes the task's first one."""

_LARGEST = 1 << 30
"""Bytes a file may have; more is refused rather than read into memory."""


def _nothing_for_null(value: Any) -> Any:
    return {} if value is None else value


_T = TypeVar("_T")
_Table = Annotated[dict[str, _T], BeforeValidator(_nothing_for_null)]


class _Run(BaseModel):
    """What is read of a results file; lm-eval writes much more, and null for a table that is empty."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    results: dict[str, dict[str, Any]] = Field(min_length=1)
    groups: _Table[Any] = {}
    group_subtasks: _Table[list[str]] = {}
    versions: _Table[str | float | None] = {}
    few_shot: _Table[int | None] = Field({}, alias="n-shot")
    samples: _Table[dict[str, int]] = Field({}, alias="n-samples")
    higher_is_better: _Table[_Table[bool | None]] = {}
    config: _Table[Any] = {}
    model_name: str | None = None
    chat_template_sha: str | None = None
    lm_eval_version: str = "unknown"
    transformers_version: str | None = None


def is_lm_eval_run(path: Path) -> bool:
    """Whether a path is a folder, or a results file of lm-eval rather than a record of `deltamend evaluate`."""
    return path.is_dir() or (path.name.startswith("results_") and path.suffix == ".json")


def read_lm_eval_folder(
    path: Path, metrics: Mapping[str, str] | None = None, wanted: Collection[str] | None = None
) -> tuple[Evaluation, list[str]]:
    """Read the runs in a folder, of each task the newest, or the run of one `results_*.json`.

    A group that lm-eval gave a figure for becomes one task, its items pooled; other groups are left apart.

    Args:
        path: the folder, the model's folder in it, or one results file.
        metrics: task to metric, `exact_match` or with its filter `exact_match,strict-match`; the rest are chosen by `METRICS`.
        wanted: the tasks to judge; None for all, except those without one number an item, which are left out.

    Returns:
        The record, and sentences on what was chosen or left out.

    Raises:
        EvaluationError: there is no run, or of several models; a wanted task is in none; samples are missing, damaged or fewer
            than the run says; a wanted task has no metric with one number an item.
    """
    files = _newest_first(path)
    chosen = _newest_of_each(path, files, wanted)
    said = _said_of_runs(path, files, chosen)
    tasks: dict[str, TaskScores] = {}
    for name, source in chosen.items():
        try:
            tasks[name], notes = _task(*source, name, (metrics or {}).get(name))
        except _NoNumberEachError as error:
            if wanted is not None or name in (metrics or {}):
                raise
            notes = [f"{name}: left out, as none of its metrics is one number for each item ({error.file.name})"]
        said += notes
    if not tasks:
        raise EvaluationError(f"{path}: has no task with a number for each item; run lm_eval on others")
    runs = [run for _, run, _ in chosen.values()]
    newest = runs[0]
    versions = {"lm_eval": newest.lm_eval_version, "transformers": newest.transformers_version}
    seed = newest.config.get("random_seed")
    return Evaluation(
        model=newest.model_name or files[0].parent.name,
        suite="lm-eval run",
        suite_version=newest.lm_eval_version,
        template_hash=newest.chat_template_sha,
        seed=seed if isinstance(seed, int) else 0,
        versions={name: version for name, version in versions.items() if version is not None},
        tasks=tasks,
    ), said


class _Found(NamedTuple):
    """Where a task or group is: its results file, the run in it, and the tasks it consists of."""

    file: Path
    run: _Run
    members: list[str]


class _NoNumberEachError(EvaluationError):
    """A task has no metric that is one number for each item."""

    def __init__(self, file: Path, message: str) -> None:
        super().__init__(message)
        self.file = file


def _newest_first(path: Path) -> list[Path]:
    """The results files to read."""
    if path.is_file():
        return [path]
    try:
        listed = [file for file in entries_below(path) if fnmatch(file.name, "results_*.json")]
    except UnreadableError as error:
        raise EvaluationError(f"{path}: cannot be read ({error}); give a folder that lm_eval wrote") from error
    found = sorted(listed, key=lambda file: (file.name, str(file)), reverse=True)
    if not found:
        raise EvaluationError(
            f"{path}: has no results_*.json; give a folder that lm_eval wrote with --output_path and --log_samples, "
            "or a file `deltamend evaluate` wrote"
        )
    folders = sorted({str(file.parent) for file in found})
    if len(folders) > 1:
        raise EvaluationError(f"{path}: has runs of several models ({', '.join(folders)}); name one of these folders")
    return found


def _newest_of_each(path: Path, files: Sequence[Path], wanted: Collection[str] | None) -> dict[str, _Found]:
    """Every wanted task and group, from the newest run that has it; files are read until all are found.

    Raises:
        EvaluationError: a run cannot be read, is of another model, or a wanted task is in none.
    """
    chosen: dict[str, _Found] = {}
    models: dict[str | None, Path] = {}
    there: dict[str, None] = {}
    for file in files:
        if wanted is not None and chosen.keys() >= {*wanted}:
            break
        run = _read_results(file)
        models.setdefault(run.model_name, file)
        groups = _groups(run)
        inside = {name for members in groups.values() for name in members}
        alone = [name for name in run.results if name not in run.group_subtasks or not run.group_subtasks[name]]
        for name in [*alone, *groups]:
            if name not in inside or (wanted is not None and name in wanted):
                there[name] = None
                if wanted is None or name in wanted:
                    chosen.setdefault(name, _Found(file, run, groups.get(name, [name])))
    if len(models) > 1:
        listed = ", ".join(f"{name} in {file.name}" for name, file in models.items())
        raise EvaluationError(f"{path}: has runs of several models ({listed}); give one of the files")
    for name in wanted or ():
        if name not in chosen:
            raise EvaluationError(f"{path}: has no task {name!r} (there are: {', '.join(sorted(there))}); evaluate it")
    if not chosen:
        raise EvaluationError(f"{files[0]}: has no task; run lm_eval again")
    pooled = {member for name, found in chosen.items() for member in found.members if found.members != [name]}
    return {name: found for name, found in chosen.items() if wanted is not None or name not in pooled}


def _said_of_runs(path: Path, files: Sequence[Path], chosen: Mapping[str, _Found]) -> list[str]:
    """Which run each task is from, where there are several."""
    if len(files) == 1:
        return []
    of_file: dict[str, list[str]] = {}
    for name, found in chosen.items():
        of_file.setdefault(found.file.name, []).append(name)
    listed = "; ".join(f"{', '.join(sorted(names))} from {file}" for file, names in of_file.items())
    return [f"{path}: {len(files)} runs; of each task the newest counts: {listed}"]


def _read_results(file: Path) -> _Run:
    try:
        return _Run.model_validate_json(_content(file))
    except ValidationError as error:
        raise EvaluationError(f"{file}: {_first_line(error)}; give a results file that `lm_eval run` wrote") from error


def _content(file: Path) -> str:
    try:
        text = read_text(file, _LARGEST)
        check_size(text)
    except (UnreadableError, JsonError) as error:
        raise EvaluationError(f"{file}: cannot be read ({error}); run lm_eval with --log_samples") from error
    return text


def _groups(run: _Run) -> dict[str, list[str]]:
    """Outermost groups that lm-eval gave a figure for, and the tasks in each, however deeply nested."""
    subtasks = run.group_subtasks
    merged = [name for name in run.groups if subtasks.get(name) and _figures(run, name)]
    inner = {task for name in merged for task in _leaves(subtasks, name, groups_too=True)}
    return {name: list(dict.fromkeys(_leaves(subtasks, name))) for name in merged if name not in inner}


def _leaves(subtasks: Mapping[str, list[str]], name: str, *, groups_too: bool = False) -> Iterator[str]:
    seen, waiting = {name}, list(subtasks[name])
    while waiting:
        child = waiting.pop(0)
        if child in seen:
            continue
        seen.add(child)
        if subtasks.get(child):
            waiting += subtasks[child]
            if not groups_too:
                continue
        yield child


def _figures(run: _Run, name: str) -> dict[str, float]:
    """What lm-eval printed of a task or group: `metric,filter` to figure."""
    return {
        key: float(value)
        for key, value in run.results.get(name, {}).items()
        if "," in key and "_stderr" not in key.partition(",")[0] and isinstance(value, int | float)
    }


def _task(file: Path, run: _Run, members: list[str], name: str, wanted: str | None) -> tuple[TaskScores, list[str]]:
    """One task or pooled group."""
    samples = {member: _samples(file, run, member) for member in members}
    offered = [key for key in _figures(run, name) if _has_one_number(samples[members[0]], key)]
    key = _choose(file, name, offered, wanted)
    metric, _, chosen_filter = key.partition(",")
    if run.higher_is_better.get(name, {}).get(metric) is False:
        raise EvaluationError(
            f"{file}: task {name!r}: {metric} is better when lower; choose another with {option('metrics')}"
        )
    items: list[ItemScore] = []
    for member, lines in samples.items():
        prefix = "" if members == [name] else f"{member}/"
        taken = [_item(file, member, prefix, line, metric) for line in lines if line.get("filter") == chosen_filter]
        expected = run.samples.get(member, {}).get("effective", len(taken))
        if not taken or len(taken) != expected:
            raise EvaluationError(
                f"{file}: task {member!r}: {len(taken)} of {expected} items have samples; run it again"
            )
        items += taken
    try:
        task = TaskScores(
            metric=key,
            version=str(run.versions.get(name, "unknown")),
            fewshot=run.few_shot.get(members[0]) or 0,
            chance=_chance(samples, metric, items),
            items=tuple(items),
        )
    except ValidationError as error:
        raise EvaluationError(f"{file}: task {name!r}: {_first_line(error)}; run it again") from error
    figure = _figures(run, name)[key]
    if math.isclose(task.mean, figure, abs_tol=1e-6):
        return task, []
    return task, [
        f"{name}: the mean of the items is {task.mean:.4f}, lm-eval's own figure {figure:.4f} is no plain mean"
    ]


def _samples(file: Path, run: _Run, task: str) -> list[dict[str, Any]]:
    """The lines of one task's samples."""
    if task not in run.results or set(task) & set("/\\\0"):
        raise EvaluationError(f"{file}: {task!r} is not the name of a task; run lm_eval again")
    path = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
    lines = []
    # Not splitlines: an answer may hold U+2028 or a form feed, which JSON leaves as they are.
    for number, text in enumerate(_content(path).removesuffix("\n").split("\n"), start=1):
        try:
            line = parse_json(text)
        except JsonError as error:
            raise EvaluationError(f"{path}: line {number} is not JSON; the run broke off, run it again") from error
        if not isinstance(line, dict):
            raise EvaluationError(f"{path}: line {number} is not a sample; run lm_eval again")
        lines.append(line)
    return lines


def _has_one_number(lines: list[dict[str, Any]], key: str) -> bool:
    """Whether a metric is one number an item, as accuracies are, and not a list that is pooled later."""
    metric, _, chosen_filter = key.partition(",")
    return any(
        isinstance(line.get(metric), bool | int | float) and line.get("filter") == chosen_filter for line in lines
    )


def _choose(file: Path, task: str, offered: list[str], wanted: str | None) -> str:
    for candidate in METRICS if wanted is None else (wanted,):
        for key in offered:
            if candidate in (key, key.partition(",")[0]):
                return key
    if wanted is None and len(offered) == 1:
        return offered[0]
    if not offered:
        raise _NoNumberEachError(
            file,
            f"{file}: task {task!r}: none of its metrics is one number for each item, so that it cannot be scored; leave it out "
            f"with {option('benchmarks')}",
        )
    have = ", ".join(offered)
    found = "no metric is known to be the main one" if wanted is None else f"has no metric {wanted!r}"
    raise EvaluationError(f"{file}: task {task!r}: {found}; choose one with {option('metrics')} from: {have}")


def _item(file: Path, task: str, prefix: str, line: Mapping[str, Any], metric: str) -> ItemScore:
    score, number, prompt = line.get(metric), line.get("doc_id"), line.get("prompt_hash")
    if not isinstance(score, bool | int | float) or not abs(score) <= FARTHEST_SCORE:
        raise EvaluationError(f"{file}: task {task!r}: item {number}: {metric} is not a number; run it again")
    if not isinstance(number, int) or not isinstance(prompt, str):
        raise EvaluationError(
            f"{file}: task {task!r}: a sample lacks doc_id or prompt_hash; run lm_eval 0.4.9 or later"
        )
    # The same prompt may stand before other choices or another answer; the document tells them apart.
    whole = hashlib.sha256(f"{prompt}{line.get('doc_hash', '')}{line.get('target_hash', '')}".encode()).hexdigest()
    return ItemScore(id=f"{prefix}{number}", prompt_hash=whole, score=float(score))


def _chance(samples: Mapping[str, list[dict[str, Any]]], metric: str, items: list[ItemScore]) -> float | None:
    """What guessing would score, where every item is one choice of several that is right or wrong."""
    if metric not in ("acc", "acc_norm") or any(item.score not in (0, 1) for item in items):
        return None
    # A choice is a request; of likelihood tasks each response is [log-likelihood, is greedy].
    responses = [line.get("resps") for lines in samples.values() for line in lines]
    choices = [len(of_item) if isinstance(of_item, list) else 0 for of_item in responses]
    return sum(1 / count for count in choices) / len(choices) if min(choices) > 1 else None


def _first_line(error: ValidationError) -> str:
    field, problem = first_problem(error)
    return f"{field or 'the file'}: {problem}"
