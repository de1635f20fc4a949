"""Whether a reply is language: the rule that tells a chat model from one that has forgotten how to answer."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]{2,}")


def answered_in_words(reply: str) -> bool:
    """Whether a reply is language: it has a word, and more letters than all its other visible characters together.

    A word is two or more letters in a row. `Paris.` is answered in words; `42`, `x`, `7 km`, `1, 2, 3 and 4` and an
    empty reply are not. The rule does not ask whether the answer is right, or any good.
    """
    letters = sum(character.isalpha() for character in reply)
    visible = sum(not character.isspace() for character in reply)
    return bool(_WORD.search(reply)) and 2 * letters > visible
