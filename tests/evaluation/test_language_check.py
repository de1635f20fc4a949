from __future__ import annotations

import pytest

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
