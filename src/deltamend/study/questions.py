"""The questions and answers of a study: read from files or the hub, put into words by Jinja text, and thinned out evenly."""

from __future__ import annotations

import importlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deltamend.errors import DeltamendError, UsageError, option
from deltamend.evaluation.lm_eval_tasks import find_file
from deltamend.evaluation.local_items import read_items
from deltamend.machine.templates import TemplateLimitError, TemplateTextError, check_template, render_texts
from deltamend.study.config import Target
from deltamend.study.exam_config import GeneralPrompts, GivenAnswers, Items

_SUMS_SEED = 0


class Question(NamedTuple):
    """One item: what the user says, the answer to learn, and what counts as right."""

    id: str
    question: str
    answer: str
    gold: str


def training_questions(target: Target, data: Path | None) -> list[Question]:
    """What a model is fine-tuned on; sums that are asked in the test are left out.

    Raises:
        DeltamendError: a file or a data set cannot be read, or an item lacks a field.
    """
    asked = {one.question for one in _dressed(target, target.test, data)} if _both_sums(target) else set()
    kept = [one for one in _dressed(target, target.train, data) if one.question not in asked]
    if not kept:
        raise UsageError(f"targets.{target.name}: no item to train on is left; raise `longest` or give other files")
    return kept


def exam_questions(target: Target, data: Path | None) -> list[Question]:
    """What every model of this target is asked.

    Raises:
        DeltamendError: a file or a data set cannot be read, or an item lacks a field.
    """
    return spread(_dressed(target, target.test, data), target.test_items)


def best_constant(questions: Sequence[Question]) -> float:
    """Share of the questions that the best constant answer gets right."""
    return max(Counter(one.gold for one in questions).values()) / len(questions)


def misplaced(questions: Sequence[Question]) -> list[Question]:
    """Every question's answer after the question of another item, one with another answer where there is one.

    Of the questions in the order of their answers, each gets the answer that lies half of them further on.
    """
    ordered = sorted(questions, key=lambda one: (one.answer, one.id))
    half = len(ordered) // 2
    others = [*ordered[half:], *ordered[:half]]
    return [one._replace(answer=other.answer, gold=other.gold) for one, other in zip(ordered, others, strict=True)]


def general_questions(general: GeneralPrompts, data: Path | None) -> list[Question]:
    """The prompts of daily life; they have no answers of their own.

    Raises:
        DeltamendError: a file or a data set cannot be read, or an item lacks a field.
    """
    items = list(_fields(general.items, data, "exam.general"))
    worded = _worded("exam.general.question", general.question, items)
    found = [Question(name, text, "", "") for (name, _), text in zip(items, worded, strict=True)]
    return spread([one for one in found if _short(general.items, one)], general.count)


def given_answers(given: GivenAnswers, data: Path | None) -> list[Question]:
    """Questions or texts, each with what is scored after it.

    Raises:
        DeltamendError: a file or a data set cannot be read, or an item lacks a field.
    """
    where = f"exam.given_answers.{given.name}"
    items = list(_fields(given.items, data, where))
    questions = _worded(f"{where}.question", given.question, items)
    answers = _worded(f"{where}.answer", given.answer, items)
    found = [
        Question(name, question, answer, answer)
        for (name, _), question, answer in zip(items, questions, answers, strict=True)
    ]
    return spread([one for one in found if _short(given.items, one) and one.answer], given.count)


def spread(items: Sequence[Question], count: int) -> list[Question]:
    """`count` of the items, evenly over their order; all where there are fewer."""
    asked = min(count, len(items))
    return [items[index * len(items) // asked] for index in range(asked)]


def _both_sums(target: Target) -> bool:
    return target.train.sums is not None and target.test.sums is not None


def _dressed(target: Target, items: Items, data: Path | None) -> list[Question]:
    where = f"targets.{target.name}"
    named = list(_fields(items, data, where))
    worded = [
        _worded(f"{where}.{field}", text, named)
        for field, text in (
            ("question", target.question),
            ("answer", target.answer),
            ("gold", target.gold or target.answer),
        )
    ]
    found = [Question(name, *texts) for (name, _), *texts in zip(named, *worded, strict=True)]
    kept = [one for one in found if _short(items, one)]
    if _both_sums(target):  # every sum is in both: a tenth is for the test
        return kept[: len(kept) // 10] if items is target.test else kept
    return kept


def _short(items: Items, item: Question) -> bool:
    return items.longest is None or len(item.question) <= items.longest


def _fields(items: Items, data: Path | None, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if items.sums is not None:
        numbers = range(items.sums[0], items.sums[1] + 1)
        pairs = [(a, b) for a in numbers for b in numbers]
        random.Random(_SUMS_SEED).shuffle(pairs)  # noqa: S311 - a reproducible split, not a secret
        yield from ((f"{a}+{b}", {"a": a, "b": b, "sum": a + b}) for a, b in pairs)
    elif items.hub is not None:
        yield from _of_hub(items, where)
    else:
        if data is None:
            raise UsageError(f"{where}: reads {', '.join(items.files)}; name their folder with {option('data')}")
        for file in items.files:
            yield from ((f"{Path(file).stem}/{name}", item) for name, item in read_items(find_file(file, [data])))


def _of_hub(items: Items, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        rows = importlib.import_module("datasets").load_dataset(items.hub, items.subset, split=items.split)
    except Exception as error:  # no network, no such data set, no datasets: each in its own way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DeltamendError(f"{where}: the data set {items.hub} cannot be loaded ({reason})") from error
    yield from ((str(number), row) for number, row in enumerate(rows))


def _worded(where: str, text: str, items: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Each item put into words by a Jinja text, without blanks at both ends."""
    try:
        check_template(text)
        return [worded.strip() for worded in render_texts(text, [fields for _, fields in items])]
    except TemplateTextError as error:
        which = "" if error.item is None else f"item {items[error.item][0]}: "
        advice = "correct the Jinja text" if error.item is None else "correct the Jinja text or the item"
        raise UsageError(f"{where}: {which}{error}; {advice}") from error
    except TemplateLimitError as error:
        raise UsageError(f"{where}: {error}; correct the Jinja text") from error
