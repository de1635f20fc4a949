"""What is asked of every model, and the rules that turn its replies into numbers. No model in here, only text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

Z_95 = 1.959964  # the two-sided 95% point of the normal law


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


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion, both ends in [0, 1] (Wilson 1927; Brown, Cai & DasGupta 2001)."""
    share, z2 = successes / trials, Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float, float]:
    """Weighted mean of at least two values and its 95% interval (normal, ratio estimator): (mean, low, high)."""
    total = sum(weights)
    mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    squares = sum((weight * (value - mean)) ** 2 for weight, value in zip(weights, values, strict=True))
    half = Z_95 * math.sqrt(squares * len(values) / (len(values) - 1)) / total
    return mean, mean - half, mean + half


def _choices(name: str) -> tuple[Choice, ...]:
    return tuple(
        Choice(prompt=item["prompt"], choices=tuple(item["choices"]), answer=item["answer"])
        for item in json.loads(_data(name))
    )


def _data(name: str) -> str:
    return files("deltamend.demo").joinpath("data", name).read_text(encoding="utf-8")
