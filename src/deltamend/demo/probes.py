"""The prompts, questions and texts that every model of the demo is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question: the text before the answer, the possible answers, and the right one's index."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Probes:
    """Everything the demo asks besides its target task."""

    prose: tuple[str, ...]
    chat: tuple[str, ...]
    knowledge: tuple[Choice, ...]
    completion: tuple[Choice, ...]


def load_probes() -> Probes:
    """The probes that ship with the package; all of them were written for it."""
    return Probes(
        prose=load_prose(),
        chat=tuple(item["prompt"] for item in json.loads(_data("chat.json"))),
        knowledge=_choices("common_knowledge.json"),
        completion=_choices("sentence_completion.json"),
    )


def load_prose() -> tuple[str, ...]:
    """Twelve short passages on unrelated subjects."""
    return tuple(passage.strip() for passage in _data("prose.txt").split("\n\n"))


def toy_lessons() -> tuple[tuple[str, str], ...]:
    """The chat prompts with a reply to each, which only the toy model is taught."""
    return tuple((item["prompt"], item["reply"]) for item in json.loads(_data("chat.json")))


def _choices(name: str) -> tuple[Choice, ...]:
    return tuple(
        Choice(prompt=item["prompt"], choices=tuple(item["choices"]), answer=item["answer"])
        for item in json.loads(_data(name))
    )


def _data(name: str) -> str:
    return files("deltamend.demo").joinpath("data", name).read_text(encoding="utf-8")
