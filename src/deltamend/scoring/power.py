"""The smallest change that a number of items can reveal (statistical power)."""

from __future__ import annotations

import math

_FIVE_PERCENT = 1.959964
"""Two-sided 5% point of the normal law."""

_EIGHTY_PERCENT = 0.841621
"""Its 80% point."""


def smallest_visible_change(standard_error: float) -> float:
    """The true change that a two-sided 5% test finds four times in five: (1.96 + 0.84) standard errors (normal law)."""
    return (_FIVE_PERCENT + _EIGHTY_PERCENT) * standard_error


def items_needed(change: float, *, visible: float, items: int) -> int:
    """How many items would make `change` the smallest visible change, where with `items` of them it is `visible`.

    Raises:
        ValueError: `change` is not positive.
    """
    if not change > 0:
        raise ValueError("change must be positive")
    return math.ceil(items * (visible / change) ** 2)
