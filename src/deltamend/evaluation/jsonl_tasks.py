"""A user's own JSONL as a task: multiple choice, exact match, form, or a likelihood, told by its fields."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from deltamend.errors import EvaluationError
from deltamend.evaluation.language_check import answered_in_words
from deltamend.evaluation.local_items import ITEM_ID, Item, as_dataset, read_items
from deltamend.machine.templates import TemplateLimitError, TemplateTextError, check_template, render_texts
from deltamend.records import first_problem

_ANSWER_TOKENS = 64
_QUESTION = "Question: {{question}}\nAnswer:"
_AS_IT_STANDS = "{{question}}"
LIKELIHOODS = ("log2_prob_per_byte", "prob_per_byte")
"""Metrics of a text, or of an answer after its question, that nothing is generated for."""


class _MultipleChoice(BaseModel):
    question: str
    choices: list[str] = Field(min_length=2)
    gold: int = Field(ge=0)

    @model_validator(mode="after")
    def _gold_is_a_choice(self) -> _MultipleChoice:
        if self.gold >= len(self.choices):
            raise ValueError(f"gold is {self.gold}, and there are only {len(self.choices)} choices, counted from 0")
        if not all(self.choices):
            raise ValueError("a choice is empty")
        return self


class _ExactMatch(BaseModel):
    question: str
    answers: list[str] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _one_answer_or_several(cls, item: Any) -> Any:
        return {**item, "answers": [str(item["answer"])]} if "answer" in item and "answers" not in item else item


class _Form(BaseModel):
    question: str
    out_of_place: str

    @field_validator("out_of_place")
    @classmethod
    def _is_a_pattern(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"{text!r} is not a regular expression ({error})") from error
        return text


class _Text(BaseModel):
    text: str = Field(min_length=1)


def task_over_jsonl(name: str, path: Path, *, prompt: str | None, metric: str | None = None) -> dict[str, Any]:
    """lm-eval's configuration of a task over a JSONL file; the fields of its items say how they are asked.

    - {question, choices, gold}: the likeliest choice, `acc` and `acc_norm`. The choices follow "Question: … Answer:" on two lines.
    - {question, answer} or {question, answers}: `exact_match`, whether the first line of the generated answer is one of the
      answers, blanks around it aside. Where `metric` is one of `LIKELIHOODS`, how likely the first answer is after the question.
    - {question, out_of_place}: `keeps_form`, whether the generated answer is in words and does not have the form that the regular
      expression describes.
    - {text}: `log2_prob_per_byte`, the log2 of the geometric mean of the probabilities of the text's bytes, below 0, and
      `prob_per_byte`, that mean itself.

    Args:
        name: what the task is called.
        path: the JSONL file.
        prompt: Jinja text around an item's fields, in place of the question as it stands.
        metric: the metric that is asked for, where there is one.

    Raises:
        EvaluationError: the file cannot be read, or an item is none of these or not of the first one's kind.
    """
    kind, rows = _checked(path)
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": as_dataset({"test": rows}),
        "test_split": "test",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    if kind is _Text:
        return config | _text_config()
    if kind is _MultipleChoice:
        return config | _multiple_choice_config(prompt or _QUESTION)
    if kind is _Form:
        return config | _form_config(prompt or _AS_IT_STANDS)
    if metric in LIKELIHOODS:
        return config | _answer_likelihood_config(prompt or _AS_IT_STANDS)
    return config | _exact_match_config(prompt or _AS_IT_STANDS)


def _text_config() -> dict[str, Any]:
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": _text_of,
        "process_results": _text_likelihood,
        "metric_list": _means(LIKELIHOODS),
    }


def _multiple_choice_config(prompt: str) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": _asked(prompt),
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": _means(("acc_norm", "acc")),
    }


def _answer_likelihood_config(prompt: str) -> dict[str, Any]:
    return {
        "output_type": "loglikelihood",
        "doc_to_text": _asked(prompt),
        "doc_to_target": _first_answer,
        "target_delimiter": "",
        "process_results": _answer_likelihood,
        "metric_list": _means(LIKELIHOODS),
    }


def _form_config(prompt: str) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_text": _asked(prompt),
        "doc_to_target": "",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": _ANSWER_TOKENS},
        "process_results": _form_kept,
        "metric_list": _means(("keeps_form",)),
    }


def _exact_match_config(prompt: str) -> dict[str, Any]:
    without_blanks = {"regexes_to_ignore": [r"^\s+", r"\s+$"]}
    return {
        "output_type": "generate_until",
        "doc_to_text": _asked(prompt),
        "doc_to_target": _answers_of,
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": _ANSWER_TOKENS},
        "metric_list": [{**metric, **without_blanks} for metric in _means(("exact_match",))],
    }


def _means(metrics: Sequence[str]) -> list[dict[str, Any]]:
    return [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]


def _checked(path: Path) -> tuple[type[BaseModel], list[Item]]:
    rows: list[Item] = []
    kind: type[BaseModel] | None = None
    for name, item in read_items(path):
        found = _kind(item)
        kind = kind or found
        if kind is None or found is not kind:
            expected = (
                "one of question+choices+gold, question+answer, question+out_of_place, text"
                if kind is None
                else "the first item's fields"
            )
            raise EvaluationError(f"{path}: item {name}: its fields are {', '.join(item)}; give {expected}")
        try:
            row = kind.model_validate(item)
        except ValidationError as error:
            field, problem = first_problem(error)
            where = f"{field}: " if field else ""
            raise EvaluationError(f"{path}: item {name}: {where}{problem}; correct it") from error
        rows.append({ITEM_ID: name, **row.model_dump()})
    return kind or _Text, rows


def _kind(item: Item) -> type[BaseModel] | None:
    if {"question", "choices", "gold"} <= item.keys():
        return _MultipleChoice
    if "question" in item and ("answer" in item or "answers" in item):
        return _ExactMatch
    if {"question", "out_of_place"} <= item.keys():
        return _Form
    return _Text if "text" in item else None


def _asked(prompt: str) -> Callable[[Item], str]:
    def ask(doc: Item) -> str:
        try:
            return render_texts(prompt, [doc])[0]
        except (TemplateTextError, TemplateLimitError) as error:
            raise EvaluationError(f"prompt: {error}; correct the Jinja text") from error

    try:
        check_template(prompt)
    except (TemplateTextError, TemplateLimitError) as error:
        raise EvaluationError(f"prompt: {error}; correct the Jinja text") from error
    return ask


def _text_of(doc: Item) -> str:
    return str(doc["text"])


def _answers_of(doc: Item) -> list[str]:
    return list(doc["answers"])


def _first_answer(doc: Item) -> str:
    return str(doc["answers"][0])


def _text_likelihood(doc: Item, results: list[float]) -> dict[str, float]:
    """The negative of lm-eval's bits_per_byte, for one text: here as everywhere, higher is better."""
    return _per_byte(float(results[0]), doc["text"])


def _answer_likelihood(doc: Item, results: list[Any]) -> dict[str, float]:
    log_likelihood, _is_greedy = results[0]
    return _per_byte(float(log_likelihood), _first_answer(doc))


def _per_byte(log_likelihood: float, text: str) -> dict[str, float]:
    bits = log_likelihood / len(text.encode()) / math.log(2)
    return {"log2_prob_per_byte": bits, "prob_per_byte": 2.0**bits}


def _form_kept(doc: Item, results: list[str]) -> dict[str, float]:
    reply = results[0].strip()
    in_place = re.fullmatch(doc["out_of_place"], reply, re.DOTALL) is None
    return {"keeps_form": float(in_place and answered_in_words(reply))}
