"""Items from JSONL files, in the form of the rows of the hub's data sets.

lm-eval's own tasks then ask them: only where the rows come from is replaced, so the prompts, the metrics and the
answer filters are lm-eval's, and a figure from local files is the figure from the hub on the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamend.errors import EvaluationError
from deltamend.machine.bounded_files import UnreadableError, read_text
from deltamend.machine.json_text import JsonError, parse_json

ITEM_ID = "deltamend_id"
"""Column that carries an item's id through lm-eval."""

_LARGEST = 1_000_000_000
"""Bytes a file of items may have."""

Item = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Where lm-eval keeps a task, and how a JSONL item becomes a row for it.

    Attributes:
        folder: lm-eval's folder of the task, below lm_eval/tasks; None for the safety tasks, which are ours.
        row: the row of an item; None for an item that the task leaves out.
        subtask: lm-eval's task for the item, where the task is a group.
    """

    folder: str | None
    row: Callable[[Item], Item | None]
    subtask: Callable[[Item], str] | None = None


def read_items(path: Path) -> Iterator[tuple[str, Item]]:
    """Each item of a JSONL file with its id: its own `id`, `key` or `BehaviorID`, else the line's number from 1.

    Raises:
        EvaluationError: the file cannot be read, a line is no JSON object, an id occurs twice, or there is no item.
    """
    seen: set[str] = set()
    for number, item in _objects(path):
        name = next((str(item[key]) for key in ("id", "key", "BehaviorID") if key in item), str(number))
        if name in seen:
            raise EvaluationError(f"{path}: line {number}: a second item with the id {name!r}; rename one")
        seen.add(name)
        yield name, item
    if not seen:
        raise EvaluationError(f"{path}: holds no items; give a file with one JSON object on each line")


def _objects(path: Path) -> Iterator[tuple[int, Item]]:
    try:
        lines = read_text(path, _LARGEST).split("\n")
    except UnreadableError as error:
        raise EvaluationError(f"{path}: cannot be read ({error}); give a JSONL file") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = parse_json(line)
        except JsonError as error:
            raise EvaluationError(f"{path}: line {number}: is not JSON ({error}); correct it") from error
        if not isinstance(item, dict):
            raise EvaluationError(f"{path}: line {number}: is not a JSON object; correct it")
        yield number, item


def task_rows(task: str, path: Path) -> dict[str, list[Item]]:
    """The rows of each lm-eval task that `task` stands for: itself, or the members of a group that have items.

    Raises:
        EvaluationError: no such task reads local files, or an item lacks what the task needs.
    """
    rows: dict[str, list[Item]] = {}
    known = ROWS.get(task)
    if known is None:
        raise EvaluationError(f"{path}: lm-eval's task {task!r} cannot read local files; one of {', '.join(ROWS)} can")
    for name, item in read_items(path):
        try:
            row = known.row(item)
            subtask = task if known.subtask is None else known.subtask(item)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            missing = f"no field {error}" if isinstance(error, KeyError) else f"{error}"
            raise EvaluationError(f"{path}: item {name}: {missing}; {task} needs it") from error
        if row is not None:
            rows.setdefault(subtask, []).append({ITEM_ID: name, **row})
    if not rows:
        raise EvaluationError(f"{path}: holds no item for {task}; check the file")
    return rows


def as_dataset(splits: Mapping[str, Sequence[Item]]) -> Callable[..., Any]:
    """lm-eval's `custom_dataset`: a function that returns the splits, held in memory."""

    def dataset(**_: object) -> Any:
        import datasets

        distinct = {id(rows): rows for rows in splits.values()}  # most splits are the same rows under another name
        made = {key: datasets.Dataset.from_list(list(rows)) for key, rows in distinct.items()}
        return datasets.DatasetDict({name: made[id(rows)] for name, rows in splits.items()})

    return dataset


def _arc(item: Item) -> Item:
    choices = list(item["choices"])
    labels = [chr(ord("A") + index) for index in range(len(choices))]
    return {
        "question": item["question"],
        "choices": {"text": choices, "label": labels},
        "answerKey": labels[item["gold"]],
    }


def _hellaswag(item: Item) -> Item:
    """The question is ctx_a and ctx_b put together; ctx_b, where there is one, is the lower-case start of a sentence.

    lm-eval capitalises ctx_b, so it has to be told apart.
    """
    question = item["question"]
    before, _, last = question.rpartition(". ")
    begun = bool(before) and last[:1].islower() and not last.endswith((".", "!", "?"))
    return {
        "activity_label": item["activity"],
        "ctx_a": f"{before}." if begun else question,
        "ctx_b": last if begun else "",
        "endings": list(item["choices"]),
        "label": str(item["gold"]),
    }


def _mmlu(item: Item) -> Item:
    return {key: item[key] for key in ("question", "choices", "subject")} | {"answer": item["gold"]}


def _mnli(item: Item) -> Item:
    order = {"entailment": 0, "neutral": 1, "contradiction": 2}
    return {key: item[key] for key in ("premise", "hypothesis")} | {"label": order[item["choices"][item["gold"]]]}


def _truthfulqa(item: Item) -> Item:
    single = [int(index == item["gold"]) for index in range(len(item["choices"]))]
    return {
        "question": item["question"],
        "mc1_targets": {"choices": list(item["choices"]), "labels": single},
        "mc2_targets": {"choices": list(item["mc2_choices"]), "labels": list(item["mc2_labels"])},
    }


def _truthfulqa_mc1(item: Item) -> Item:
    """lm-eval takes the first choice for the right one, as the data set has it."""
    if item["gold"] != 0:
        raise IndexError("gold is not 0")
    return _truthfulqa(item)


def _triviaqa(item: Item) -> Item:
    return {"question": item["question"], "answer": {"aliases": list(item["answers"])}}


def _piqa(item: Item) -> Item:
    first, second = item["choices"]
    return {"goal": item["question"], "sol1": first, "sol2": second, "label": item["gold"]}


def _winogrande(item: Item) -> Item:
    first, second = item["choices"]
    return {"sentence": item["question"], "option1": first, "option2": second, "answer": str(item["gold"] + 1)}


def _fields(*names: str) -> Callable[[Item], Item]:
    return lambda item: {name: item[name] for name in names}


def _harmbench(item: Item) -> Item | None:
    """HarmBench itself asks a contextual behaviour below its context, and tells copyright by hashes of the works."""
    if item["FunctionalCategory"] == "copyright":
        return None
    context = item.get("ContextString") or ""
    behavior = item["Behavior"]
    return {
        "prompt": f"{context}\n\n---\n\n{behavior}" if context else behavior,
        "behavior": behavior,
        "context": context,
    }


def _strongreject(item: Item) -> Item:
    return {"prompt": item["forbidden_prompt"]}


ROWS: dict[str, Rows] = {
    "mmlu": Rows("mmlu/default", _mmlu, subtask=lambda item: f"mmlu_{item['subject']}"),
    "triviaqa": Rows("triviaqa", _triviaqa),
    "truthfulqa_mc1": Rows("truthfulqa", _truthfulqa_mc1),
    "truthfulqa_mc2": Rows("truthfulqa", _truthfulqa),
    "arc_challenge": Rows("arc", _arc),
    "arc_easy": Rows("arc", _arc),
    "gsm8k": Rows("gsm8k", _fields("question", "answer")),
    "gsm8k_cot": Rows("gsm8k", _fields("question", "answer")),
    "ifeval": Rows("ifeval", _fields("key", "prompt", "instruction_id_list", "kwargs")),
    "minerva_math500": Rows("minerva_math", _fields("problem", "solution", "answer")),
    "mnli": Rows("glue/mnli", _mnli),
    "hellaswag": Rows("hellaswag", _hellaswag),
    "piqa": Rows("piqa", _piqa),
    "winogrande": Rows("winogrande", _winogrande),
    "harmbench": Rows(None, _harmbench),
    "strongreject": Rows(None, _strongreject),
    "xstest_safe": Rows(None, _fields("prompt", "label")),
    "xstest_unsafe": Rows(None, _fields("prompt", "label")),
}
"""By lm-eval's task: what local files can be read for it."""
