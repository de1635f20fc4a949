"""From an entry of a suite to lm-eval tasks, loaded and ready to be asked."""

from __future__ import annotations

import glob
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from deltamend.errors import EvaluationError, option
from deltamend.evaluation.jsonl_tasks import task_over_jsonl
from deltamend.evaluation.local_items import ROWS, as_dataset, task_rows
from deltamend.evaluation.suite import SuiteTask

_SPLITS = ("train", "validation", "test", "dev", "validation_matched")
"""Names under which lm-eval's tasks look for their rows."""


@dataclass(frozen=True)
class LoadedTask:
    """The lm-eval task of a suite's entry, or the members of its group, by lm-eval's names."""

    entry: SuiteTask
    members: dict[str, Any]

    @property
    def is_group(self) -> bool:
        """Whether lm-eval knows it as several tasks."""
        return list(self.members) != [self.entry.task or self.entry.name]


def find_file(name: str, folders: Sequence[Path]) -> Path:
    """A suite's file in one of the folders, or in one directly below them.

    Raises:
        EvaluationError: there is none of this name, or there are several.
    """
    if Path(name).is_absolute() or not folders:
        return Path(name)
    for folder in folders:
        if (direct := folder / name).exists():
            return direct
        below = sorted(folder.glob(f"*/{glob.escape(name)}"))
        if len(below) > 1:
            raise EvaluationError(
                f"{folder}: holds {name} twice, as {below[0]} and {below[1]}; give one of these two folders"
            )
        if below:
            return below[0]
    raise EvaluationError(
        f"{folders[0] / name}: no such file; put the items there, or leave the benchmark out with {option('skip')}"
    )


def files_of(entry: SuiteTask, folders: Sequence[Path]) -> list[Path]:
    """The files that the entry reads: none where it takes a data set of the hub.

    Raises:
        EvaluationError: one of them is missing.
    """
    reads = entry.file is not None and (entry.task is None or bool(folders))
    return [find_file(name, folders) for name in (entry.file, entry.fewshot_file) if name is not None and reads]


class TaskLoader:
    """Loads the items and prompts of a suite's entries through lm-eval, whose index of tasks takes 10 s to make."""

    def load(self, entry: SuiteTask, folders: Sequence[Path]) -> LoadedTask:
        """Load one entry.

        Raises:
            EvaluationError: lm-eval knows no such task, its data set is not here, or a file is damaged.
        """
        try:
            members = self._members(entry, files_of(entry, folders))
        except EvaluationError:
            raise
        except Exception as error:  # the data set, its network and the task's own modules can fail in any way
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise EvaluationError(
                f"{entry.name}: lm-eval cannot load it ({reason}); without a network, give local items with SUITE:DIR"
            ) from error
        for task in members.values():
            if entry.fewshot is not None:
                task.set_config(key="num_fewshot", value=entry.fewshot)
            if entry.max_tokens is not None and task.OUTPUT_TYPE == "generate_until":
                task.set_config(key="generation_kwargs", value={"max_gen_toks": entry.max_tokens}, update=True)
        return LoadedTask(entry, members)

    def _members(self, entry: SuiteTask, files: list[Path]) -> dict[str, Any]:
        from lm_eval.tasks import TaskManager

        if entry.task is None:
            config = task_over_jsonl(entry.name, files[0], prompt=entry.prompt, metric=entry.metric)
            members: dict[str, Any] = TaskManager(include_defaults=False).load([config])["tasks"]
        elif files:
            members = _over_files(entry, entry.task, files)
        else:
            if entry.task not in self._index.all_tasks:
                raise EvaluationError(
                    f"{entry.name}: lm-eval has no task {entry.task!r}; `lm_eval ls tasks` lists them"
                )
            members = self._index.load([entry.task])["tasks"]
        return members

    @cached_property
    def _index(self) -> Any:
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=str(_our_tasks()))


def _over_files(entry: SuiteTask, task: str, files: list[Path]) -> dict[str, Any]:
    """lm-eval's own task with its rows taken from files; only the task's own folder of lm-eval is indexed."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    rows = task_rows(task, files[0])
    shots = task_rows(task, files[1]) if len(files) > 1 else {}
    members = [
        {
            "task": name,
            # Every split but the worked examples' holds the items; a task names the one that it asks.
            "custom_dataset": as_dataset(
                dict.fromkeys(_SPLITS, items) | ({"dev": shots[name], "train": shots[name]} if name in shots else {})
            ),
        }
        for name, items in rows.items()
    ]
    folder = ROWS[task].folder
    where = _our_tasks() if folder is None else Path(lm_eval.tasks.__file__).parent / folder
    manager = TaskManager(include_defaults=False, include_path=str(where))
    unknown = [member["task"] for member in members if member["task"] not in manager.all_tasks]
    if unknown:
        raise EvaluationError(f"{files[0]}: lm-eval has no task {unknown[0]!r}; correct the item's subject")
    loaded: dict[str, Any] = manager.load([{"group": f"{task} over files", "task": members}])["tasks"]
    for name, member in loaded.items():
        wanted = entry.fewshot if entry.fewshot is not None else member.config.num_fewshot
        of_the_task = member.fewshot_cfg.split is None and member.fewshot_cfg.samples is not None
        if wanted and name not in shots and not of_the_task:
            # lm-eval would draw them from the items themselves, with their answers.
            raise EvaluationError(
                f"{files[-1]}: no worked examples for {name}, and {entry.name} asks with {wanted}; give them as fewshot_file, or fewshot: 0"
            )
    return loaded


def _our_tasks() -> Path:
    return Path(str(resources.files("deltamend.evaluation") / "tasks"))


def check_requirements(entry: SuiteTask) -> None:
    """Check that the packages and files that lm-eval's task needs beside its items are installed.

    Raises:
        EvaluationError: something is not installed.
    """
    if entry.task == "ifeval":
        try:
            importlib.import_module("nltk").data.find("tokenizers/punkt_tab")
        except (ImportError, LookupError) as error:
            raise EvaluationError(
                f"{entry.name}: needs nltk's punkt_tab to count sentences: with a network run `pip install 'deltamend[eval]'` "
                f"and `python -m nltk.downloader punkt_tab`, or leave it out with {option('skip', entry.name)}"
            ) from error
    if entry.task == "minerva_math500" and importlib.util.find_spec("math_verify") is None:
        raise EvaluationError(
            f"{entry.name}: needs math-verify to compare answers: pip install 'deltamend[eval]', or leave it out with {option('skip', entry.name)}"
        )
