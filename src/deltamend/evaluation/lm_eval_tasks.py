"""From an entry of a suite to lm-eval tasks, loaded and ready to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from deltamend.errors import EvaluationError
from deltamend.evaluation.local_items import ROWS, as_dataset, task_rows
from deltamend.evaluation.own_tasks import own_task
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
        return (self.entry.file is None and list(self.members) != [self.entry.task]) or len(self.members) > 1


def find_file(name: str, folder: Path | None) -> Path:
    """A suite's file in the folder it was given, or in one directly below.

    Raises:
        EvaluationError: it is not there, or there are several.
    """
    if folder is None:
        return Path(name)
    if (direct := folder / name).exists():
        return direct
    below = sorted(folder.glob(f"*/{name}")) if not Path(name).is_absolute() else []
    if len(below) != 1:
        found = "there is none" if not below else f"there are several, such as {below[0]} and {below[1]}"
        raise EvaluationError(f"{direct}: {found}; put the items there, or leave the task out")
    return below[0]


def files_of(entry: SuiteTask, folder: Path | None) -> list[Path]:
    """The files that the entry reads: none where it takes a data set of the hub.

    Raises:
        EvaluationError: one of them is missing.
    """
    reads = entry.file is not None and (entry.task is None or folder is not None)
    return [find_file(name, folder) for name in (entry.file, entry.fewshot_file) if name is not None and reads]


def load_task(entry: SuiteTask, folder: Path | None) -> LoadedTask:
    """Load the entry's items and prompts through lm-eval.

    Raises:
        EvaluationError: lm-eval knows no such task, its data set is not here, or a file is damaged.
    """
    from lm_eval.tasks import TaskManager

    files = files_of(entry, folder)
    if entry.task == "ifeval":
        _need_punkt()
    try:
        if not files:
            manager = TaskManager(include_path=str(_our_tasks()))
            if entry.task not in manager.all_tasks:
                raise EvaluationError(
                    f"{entry.name}: lm-eval has no task {entry.task!r}; `lm_eval ls tasks` lists them"
                )
            members = manager.load([entry.task])["tasks"]
        elif entry.task is None:
            config = own_task(entry.name, files[0], prompt=entry.prompt)
            members = TaskManager(include_defaults=False).load([config])["tasks"]
        else:
            members = _over_files(entry.task, files)
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


def _over_files(task: str, files: list[Path]) -> dict[str, Any]:
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
        raise EvaluationError(f"{files[0]}: lm-eval has no task {unknown[0]!r}; mend the item's subject")
    loaded: dict[str, Any] = manager.load([{"group": f"{task} over files", "task": members}])["tasks"]
    return loaded


def _our_tasks() -> Path:
    return Path(str(resources.files("deltamend.evaluation") / "tasks"))


def _need_punkt() -> None:
    """IFEval counts sentences with a model that nltk loads from a file of its own.

    Raises:
        EvaluationError: it is not installed.
    """
    try:
        import nltk

        nltk.data.find("tokenizers/punkt_tab")
    except (ImportError, LookupError) as error:
        raise EvaluationError(
            "ifeval needs nltk's punkt_tab: run `pip install 'deltamend[eval]'` and, with a network, `python -m nltk.downloader punkt_tab`"
        ) from error
