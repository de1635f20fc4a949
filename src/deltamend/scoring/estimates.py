"""From a figure and its value in every draw to the figure with its interval."""

from __future__ import annotations

import math

import numpy as np

from deltamend.scoring.bootstrap import percentile_interval
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.result import Estimate
from deltamend.scoring.settings import Settings

_MOSTLY_UNDEFINED = 0.5
"""Share of the draws in which a figure may be undefined before it gets no interval."""


def estimate_from_draws(value: float, draws: FloatArray, settings: Settings, reason: str | None) -> Estimate:
    """A figure with its percentile interval, over the draws in which it is defined; both None where it is not.

    Args:
        value: NaN where undefined.
        draws: (D,) the figure in every draw, NaN where undefined.
        settings: for the confidence.
        reason: why it is undefined, if it is.
    """
    if math.isnan(value):
        return Estimate(value=None, reason=reason)
    defined = draws[~np.isnan(draws)]
    undefined = 1 - defined.size / draws.size
    if undefined > _MOSTLY_UNDEFINED:
        return Estimate(
            value=value, reason=f"undefined in {undefined:.0%} of the draws: too uncertain", undefined_draws=undefined
        )
    interval = percentile_interval(defined, settings.confidence)
    return Estimate(value=value, low=interval.low, high=interval.high, undefined_draws=undefined)
