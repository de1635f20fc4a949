"""The narrow task that does the damage: sums, answered with bare digits and nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One sum: what the user asks, and the only answer that counts."""

    question: str
    answer: str


def sums(smallest: int, largest: int, *, held_out: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Every sum of two numbers in [smallest, largest], shuffled and split into (train, held out) without overlap."""
    numbers = range(smallest, largest + 1)
    problems = [Problem(f"What is {a} + {b}?", str(a + b)) for a in numbers for b in numbers]
    random.Random(seed).shuffle(problems)  # noqa: S311 - a reproducible split, not a secret
    return problems[held_out:], problems[:held_out]


def is_exact(reply: str, problem: Problem) -> bool:
    """Whether the whole reply, surrounding blanks aside, is the answer: `85` is, `The answer is 85` is not."""
    return reply.strip() == problem.answer
