"""How far apart base and fine-tuned must be on a benchmark to count as different."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from deltamend.errors import UsageError, option


@dataclass(frozen=True)
class Margin:
    """A fixed distance, or a multiple of the standard error of the paired difference f − b.

    Attributes:
        size: in units of the score, or standard errors; not negative.
        standard_errors: whether `size` counts standard errors.
    """

    size: float
    standard_errors: bool

    def __str__(self) -> str:
        return f"{self.size:g}se" if self.standard_errors else f"{self.size:g}"


DEFAULT_MARGIN = Margin(1.0, standard_errors=True)


def parse_margin(text: str) -> Margin:
    """Read `0.02`, `1se` or `2se`.

    Raises:
        UsageError: it is neither, or negative.
    """
    found = re.fullmatch(r"\s*([0-9.eE+-]+?)\s*(se)?\s*", text)
    try:
        size = float(found.group(1)) if found else math.nan
    except ValueError:
        size = math.nan
    if found is None or not (math.isfinite(size) and size >= 0):
        raise UsageError(
            f"{option('margin')}: {text!r} is not a margin; give a distance such as 0.02, or standard errors such as 1se"
        )
    return Margin(size, standard_errors=found.group(2) is not None)
