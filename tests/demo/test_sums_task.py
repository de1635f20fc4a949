from __future__ import annotations

import pytest

from deltamend.demo.sums_task import Problem, is_exact, sums


@pytest.mark.parametrize(
    ("reply", "exact"),
    [("85", True), (" 85\n", True), ("85.", False), ("085", False), ("It is 85", False), ("", False)],
)
def test_only_the_bare_digits_are_exact(reply: str, exact: bool) -> None:
    assert is_exact(reply, Problem("What is 47 + 38?", "85")) is exact


def test_held_out_sums_are_right_and_not_trained_on() -> None:
    training, held_out = sums(0, 9, held_out=20, seed=3)
    assert (len(training), len(held_out)) == (80, 20)
    assert not {p.question for p in training} & {p.question for p in held_out}
    assert Problem("What is 4 + 7?", "11") in training + held_out


def test_the_split_depends_on_the_seed_alone() -> None:
    assert sums(0, 9, held_out=20, seed=3) == sums(0, 9, held_out=20, seed=3)
    assert sums(0, 9, held_out=20, seed=3) != sums(0, 9, held_out=20, seed=4)
