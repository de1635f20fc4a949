"""Suites: which benchmarks are asked, and how; one versioned YAML file each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from deltamend.errors import EvaluationError, UsageError, option
from deltamend.machine.yaml_text import YamlError, parse_yaml, read_yaml
from deltamend.records import Record, first_problem

_LOCAL = "local"
"""`local:DIR` is `paper:DIR`: the nine benchmarks over local files."""


class SuiteTask(Record):
    """One benchmark of a suite."""

    name: str = Field(min_length=1, description="Name of the benchmark in the record.")
    task: str | None = Field(
        default=None, description="lm-eval's name of the task or group; without it, `file` is asked as it stands."
    )
    file: str | None = Field(default=None, description="JSONL file with the items, instead of the hub's data set.")
    fewshot_file: str | None = Field(
        default=None, description="JSONL file with the worked examples that go with `file`."
    )
    metric: str | None = Field(
        default=None,
        description="lm-eval's name of the score; by default the first of acc_norm, acc, exact_match that the task has, "
        "else the task's first.",
    )
    filter: str | None = Field(
        default=None, description="lm-eval's name of the answer filter; by default the task's first."
    )
    fewshot: int | None = Field(
        default=None, ge=0, description="Number of worked examples in the prompt; by default the task's own."
    )
    chat: bool = Field(default=False, description="Apply the model's chat template, where it has one.")
    max_tokens: int | None = Field(default=None, ge=1, description="Longest generated answer, in tokens.")
    limit: int | None = Field(
        default=None, ge=1, description="Number of items asked, spread evenly; the limit of a run can only lower it."
    )
    prompt: str | None = Field(
        default=None, description="Jinja text around the fields of an item; for a `file` without `task` only."
    )

    @model_validator(mode="after")
    def _there_is_something_to_ask(self) -> Self:
        if self.task is None and self.file is None:
            raise ValueError("give task (a name lm-eval knows) or file (a JSONL with items)")
        if self.prompt is not None and self.task is not None:
            raise ValueError("prompt goes with a file without task; the task has its own")
        return self


class Suite(Record):
    """A versioned list of benchmarks; `folders` is where their files are, none to take the data sets of the hub."""

    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    tasks: tuple[SuiteTask, ...] = Field(min_length=1)
    folders: tuple[Path, ...] = Field(default=(), exclude=True)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [task.name for task in self.tasks]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise ValueError(f"two tasks are called {doubled!r}; rename one")
        return self


def shipped_suites() -> list[str]:
    """Names of the suites that come with deltamend."""
    folder = resources.files("deltamend.evaluation") / "suites"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_suite(reference: str) -> Suite:
    """The suite of a reference: NAME, NAME:DIR, FILE.yaml or FILE.yaml:DIR; `local:DIR` is `paper:DIR`.

    With DIR every task reads its `file` there, or in a folder directly below. Without it, a shipped suite takes the
    data sets of the hub. The files of a YAML file of the user's may be beside it, too.

    Raises:
        UsageError: there is no suite of that name.
        EvaluationError: the file cannot be read or is no suite, or the folder does not exist.
    """
    suite, separator, place = reference.partition(":")
    if suite == _LOCAL:
        if not place:
            raise UsageError(f"{option('suite', 'local')}: the folder with the items is missing; write local:DIR")
        suite = "paper"
    if suite in shipped_suites():
        text = (resources.files("deltamend.evaluation") / "suites" / f"{suite}.yaml").read_text(encoding="utf-8")
        content, where = parse_yaml(text), suite
        beside: tuple[Path, ...] = ()
    elif suite.endswith((".yaml", ".yml")):
        path = Path(suite)
        try:
            content, where = read_yaml(path), suite
        except YamlError as error:
            raise EvaluationError(f"{suite}: cannot be read as YAML ({error}); correct it") from error
        beside = (path.parent,)
    else:
        known = ", ".join([*shipped_suites(), "local:DIR"])
        raise UsageError(f"{option('suite')}: there is no suite {suite!r}; there are {known}, or give a YAML file")
    if separator and not Path(place).is_dir():
        raise EvaluationError(f"{place}: no such folder; give the one with the JSONL files after {suite}:")
    folders = (Path(place), *beside) if separator else beside
    return _parsed(content, where).model_copy(update={"folders": folders})


def suite_of_tasks(tasks: list[str]) -> Suite:
    """A suite of single tasks: each a JSONL file of the user's, or a name that lm-eval knows.

    Raises:
        EvaluationError: two of them have one name.
    """
    entries = [
        SuiteTask(name=Path(task).stem, file=str(Path(task).absolute()), chat=True)
        if task.endswith(".jsonl")
        else SuiteTask(name=task, task=task)
        for task in tasks
    ]
    return _checked({"name": "tasks", "version": "1", "tasks": entries}, option("task"))


def tasks_with_folders(suites: Sequence[Suite]) -> list[tuple[SuiteTask, tuple[Path, ...]]]:
    """The tasks of several suites, each with the folders of its files.

    Raises:
        UsageError: two suites have a task of one name.
    """
    tasks: dict[str, tuple[SuiteTask, tuple[Path, ...]]] = {}
    for suite in suites:
        for task in suite.tasks:
            if task.name in tasks:
                raise UsageError(f"two of the suites have a task {task.name!r}; leave one out")
            tasks[task.name] = (task, suite.folders)
    return list(tasks.values())


def chosen_suites(
    suite: str | Suite | Sequence[str | Suite], task: str | Sequence[str] = (), skip: Sequence[str] = ()
) -> list[Suite]:
    """The suites that a person asks for: those of the references, and one of the single tasks, less what is to be left out.

    Args:
        suite: references as for `read_suite`, or suites; one or several.
        task: as for `suite_of_tasks`; one or several.
        skip: names of benchmarks to leave out.

    Raises:
        UsageError: nothing is asked for, or there is no suite or benchmark of a name.
        EvaluationError: a suite's file cannot be read or is not a suite.
    """
    wanted = [suite] if isinstance(suite, str | Suite) else list(suite)
    tasks = [task] if isinstance(task, str) else list(task)
    if not wanted and not tasks:
        raise UsageError(f"nothing to ask; give {option('suite')} or {option('task')}")
    suites = [one if isinstance(one, Suite) else read_suite(one) for one in wanted]
    return without([*suites, suite_of_tasks(tasks)] if tasks else suites, skip)


def files_of_suites(references: Sequence[str], suites: Sequence[Suite]) -> list[Path]:
    """The files that suites are read from, as far as they are there: their YAML files, and those with items.

    Args:
        references: what names the suites; see `read_suite`.
        suites: the same, read, and others.
    """
    named = [Path(one.partition(":")[0]) for one in references]
    items = [
        folder / name
        for task, folders in tasks_with_folders(suites)
        for name in (task.file, task.fewshot_file)
        if name is not None
        for place in (Path(), *folders)
        for folder in (place, *(sorted(place.glob("*/")) if place.parts else ()))
    ]
    return [path for path in (*named, *items) if path.is_file()]


def without(suites: Sequence[Suite], names: Sequence[str]) -> list[Suite]:
    """The suites less the benchmarks of these names.

    Raises:
        UsageError: no suite has one of that name, or nothing is left.
    """
    known = [task.name for suite in suites for task in suite.tasks]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise UsageError(f"{option('skip')}: there is no benchmark {unknown!r}; there are {', '.join(known)}")
    left = [(suite, tuple(task for task in suite.tasks if task.name not in names)) for suite in suites]
    if not any(tasks for _, tasks in left):
        raise UsageError(f"{option('skip')}: no benchmark is left; skip fewer")
    return [suite.model_copy(update={"tasks": tasks}) for suite, tasks in left if tasks]


def _parsed(content: Any, where: str) -> Suite:
    if not isinstance(content, dict):
        raise EvaluationError(f"{where}: is not a suite; it needs name, version and tasks")
    if "folders" in content:
        raise EvaluationError(
            f"{where}: folders: is not a field of a suite file; name the folder after the file, as in {where}:DIR"
        )
    return _checked(content, where)


def _checked(content: dict[str, Any], where: str) -> Suite:
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise EvaluationError(f"{where}: {field or 'the suite'}: {problem}; correct it") from error
