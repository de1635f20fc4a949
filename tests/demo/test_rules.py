"""The rules that turn replies and scores into numbers."""

from __future__ import annotations

import pytest

from deltamend.demo.probes import (
    load_probes,
    load_prose,
    mean_interval,
    toy_lessons,
    wilson_interval,
)
from deltamend.demo.sums_task import Problem, is_exact, sums
from deltamend.evaluation.language_check import answered_in_words


@pytest.mark.parametrize(
    "reply",
    ["Paris.", "The answer is 42.", "Brot, Salz und Öl", "Один", "Go to bed at 10, 11 or 12."],
)
def test_language_counts_as_an_answer_in_words(reply: str) -> None:
    assert answered_in_words(reply)


@pytest.mark.parametrize(
    "reply", ["", "  \n", "42", "x", "7 km 12 345", "1, 2, 3 and 4", "...", "a b c d", "12 + 30 = 42"]
)
def test_digits_scraps_and_silence_do_not(reply: str) -> None:
    assert not answered_in_words(reply)


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


def test_wilson_interval_of_eight_in_ten() -> None:
    low, high = wilson_interval(8, 10)
    assert (low, high) == pytest.approx(
        (0.4902, 0.9433), abs=1e-4
    )  # statsmodels: proportion_confint(8, 10, method="wilson")


@pytest.mark.parametrize("successes", [0, 20])
def test_wilson_interval_stays_in_range_and_is_never_a_point(successes: int) -> None:
    low, high = wilson_interval(successes, 20)
    assert 0 <= low < high <= 1


def test_mean_interval_of_equal_weights_is_the_usual_one() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0], [5, 5, 5])
    assert mean == pytest.approx(2.0)
    assert high - mean == pytest.approx(1.959964 / 3**0.5)
    assert mean - low == pytest.approx(high - mean)


def test_every_question_has_four_different_answers_and_the_right_one_takes_every_place() -> None:
    probes = load_probes()
    for questions in (probes.knowledge, probes.completion):
        assert all(len(set(q.choices)) == 4 for q in questions)
        places = [q.answer for q in questions]
        assert {places.count(place) for place in range(4)} == {len(questions) // 4}


def test_the_chat_prompts_and_the_toys_replies_are_words() -> None:
    lessons = toy_lessons()
    assert tuple(prompt for prompt, _ in lessons) == load_probes().chat
    assert all(answered_in_words(reply) for _, reply in lessons)


def test_the_prose_is_long_enough_to_measure_on() -> None:
    passages = load_prose()
    assert len(passages) == 12
    assert 600 <= sum(len(passage.split()) for passage in passages) <= 1000
