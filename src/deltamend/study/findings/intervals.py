"""What an interval says: whether it lies above or below zero, and how it is written in a sentence."""

from __future__ import annotations

from deltamend.scoring.result import Estimate

LEVEL = 0.05
"""P-values below this count as evidence."""

INTERVAL_END_ERROR = 0.015
"""Standard error of an end of a 95% interval from 2,000 draws, in widths of the interval: √(0.025·0.975/2000)/φ(1.96)/3.92.

Over eight seeds it was 0.016 for the differences of studies/smollm2.yaml.
"""


def is_above_zero(of: Estimate) -> bool:
    """Whether the whole interval is above 0, beyond what its end owes to the draws.

    Resampling shifts what is clipped at 0 or 1: an interval beyond its own figure is no evidence.
    """
    if of.value is None or of.low is None or of.high is None:
        return False
    return 2 * INTERVAL_END_ERROR * (of.high - of.low) < of.low <= of.value


def is_below_zero(of: Estimate) -> bool:
    """Whether the whole interval is below 0, by the same rule."""
    if of.value is None or of.low is None or of.high is None:
        return False
    return -2 * INTERVAL_END_ERROR * (of.high - of.low) > of.high >= of.value


def excludes_zero(of: Estimate) -> bool:
    """Whether the whole interval is above 0, or all of it below."""
    return is_above_zero(of) or is_below_zero(of)


def signed_text(value: float, decimals: int) -> str:
    """A number with its sign, always written."""
    return f"{value + 0.0:+.{decimals}f}".replace("-", "−")


def _interval(of: Estimate, decimals: int, *, sign: bool) -> str:
    def text(value: float) -> str:
        return signed_text(value, decimals) if sign else f"{value:.{decimals}f}".replace("-", "−")

    if of.value is None:
        return "undefined"
    if of.low is None or of.high is None:
        return f"{text(of.value)} [no interval]"
    return f"{text(of.value)} [{text(of.low)}, {text(of.high)}]"


def points_text(of: Estimate) -> str:
    """A difference of combined scores with its interval, in points."""
    return _interval(of, 1, sign=True)


def score_text(of: Estimate) -> str:
    """A combined score, 0 to 100, with its interval."""
    return _interval(of, 1, sign=False)


def share_text(of: Estimate) -> str:
    """A share, 0 to 1, with its interval."""
    return _interval(of, 2, sign=False)


def gap_text(of: Estimate) -> str:
    """A difference of two shares with its interval."""
    return _interval(of, 2, sign=True)


def percent_text(of: Estimate) -> str:
    """A share in percent, without its interval."""
    return "undefined" if of.value is None else f"{of.value:.0%}"
