"""The words on the page follow from the numbers, the unwelcome ones too."""

from __future__ import annotations

import pytest

from deltamend.demo.measurement import CHAT, LIKELIHOOD, TARGET, Measurement, share
from deltamend.demo.verdict_sentences import (
    Measurements,
    damaged_measures,
    headline,
    percent,
    sentences,
    summarise_repair,
)

N = 40


def hits(count: int) -> Measurement:
    return share([index < count for index in range(N)])


def nats(value: float) -> Measurement:
    items = tuple(value + 0.3 * (index % 3) for index in range(12))
    return Measurement(value, value - 0.1, value + 0.1, 1000, items, higher_is_better=False)


def model(target: int, chat: int, prose: float) -> Measurements:
    return {TARGET: hits(target), CHAT: hits(chat), LIKELIHOOD: nats(prose)}


BASE, FINETUNED = model(0, 40, 3.0), model(40, 0, 5.0)


def test_what_got_worse_is_damaged_and_what_got_better_is_not() -> None:
    assert damaged_measures(BASE, FINETUNED) == [CHAT, LIKELIHOOD]
    assert damaged_measures(BASE, model(40, 40, 2.0)) == []


def test_one_question_more_or_less_is_chance() -> None:
    assert damaged_measures(BASE, model(40, 39, 3.0)) == []


def test_healed_is_the_share_of_the_loss_won_back() -> None:
    halfway = summarise_repair("Half", BASE, FINETUNED, model(30, 20, 4.0), kept_energy=0.25)
    assert halfway.healed == pytest.approx(0.5)
    assert halfway.kept == pytest.approx(0.75)


def test_a_repair_that_changes_nothing_is_said_to_heal_little_and_why() -> None:
    said = " ".join(sentences(summarise_repair("DG-Hard", BASE, FINETUNED, FINETUNED, kept_energy=0.9996)))
    assert "DG-Hard healed little: 0% of the damage is undone." in said
    assert "kept the task (100%" in said
    assert "kept 99.9% of the update's energy" in said
    assert "took most of the update for signal" in said


def test_little_healing_at_a_lower_energy_is_not_blamed_on_the_energy() -> None:
    said = " ".join(sentences(summarise_repair("DG-Hard", BASE, FINETUNED, FINETUNED, kept_energy=0.6)))
    assert "healed little" in said
    assert "took most of the update for signal" not in said
    assert "what it kept carries the damage along with the task" in said


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (0.0003, "0.1%"), (0.424, "42%"), (0.9796, "98%"), (0.9996, "99.9%"), (1.0, "100%")],
)
def test_only_nothing_is_0_percent_and_only_all_is_100(share: float, text: str) -> None:
    assert percent(share) == text


def test_the_headline_names_the_repair_that_worked_and_the_one_that_did_not() -> None:
    untouched = summarise_repair("DG-Hard", BASE, FINETUNED, FINETUNED, kept_energy=1.0)
    halfway = summarise_repair("WiSE-FT", BASE, FINETUNED, model(38, 38, 3.1), kept_energy=0.25)
    assert (
        headline([untouched, halfway])
        == "WiSE-FT undid nearly all of the damage and kept the task. DG-Hard healed little."
    )


def test_the_headline_admits_that_the_task_is_gone() -> None:
    untouched = summarise_repair("DG-Hard", BASE, FINETUNED, FINETUNED, kept_energy=1.0)
    reverted = summarise_repair("WiSE-FT", BASE, FINETUNED, model(4, 40, 3.0), kept_energy=0.25)
    assert "lost most of the task" in headline([untouched, reverted])


def test_the_headline_admits_that_nothing_worked() -> None:
    both = [summarise_repair(name, BASE, FINETUNED, FINETUNED, kept_energy=1.0) for name in ("DG-Hard", "WiSE-FT")]
    assert headline(both) == "No repair brought much of the damaged model back."


def test_without_damage_no_repair_is_judged() -> None:
    harmless = summarise_repair("DG-Hard", BASE, model(40, 40, 3.0), BASE, kept_energy=0.5)
    assert harmless.healed is None
    assert headline([harmless]).startswith("This run cannot judge a repair")
    assert "nothing to heal" in sentences(harmless)[0]


def test_without_a_gain_on_the_target_nothing_is_kept() -> None:
    assert summarise_repair("DG-Hard", BASE, model(0, 0, 5.0), BASE, kept_energy=0.5).kept is None


def test_a_repair_that_makes_the_update_larger_says_so() -> None:
    turned = summarise_repair("two-sided", BASE, FINETUNED, model(38, 38, 3.1), kept_energy=1.5)
    assert "The repaired update has 150% of the update's energy: it was turned, not only shrunk." in sentences(turned)
