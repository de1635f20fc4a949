"""Tests: exact McNemar for two models on one benchmark, Wilcoxon's signed ranks over cells, Holm's correction, rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltamend.errors import UsageError
from deltamend.scoring.metric import FloatArray

_PERMUTATIONS = 9999
"""Number of permutations behind a rank correlation's p-value; all there are where there are fewer."""


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test of two models on the same right-or-wrong items.

    Attributes:
        first_only: items only the first model got right.
        second_only: items only the second got right.
        p: two-sided.
    """

    first_only: int
    second_only: int
    p: float


def mcnemar(first: FloatArray, second: FloatArray) -> McNemar:
    """Test whether two models are right equally often (McNemar 1947; exact, binomial).

    Args:
        first: (n,) scores, each right or wrong.
        second: (n,) of the same items.

    Raises:
        UsageError: the scores take more than two values.
    """
    from scipy.stats import binomtest

    if not right_or_wrong(np.stack([first, second])):
        raise UsageError("McNemar's test needs items that are right or wrong")
    first_only, second_only = int(np.sum(first > second)), int(np.sum(second > first))
    discordant = first_only + second_only
    p = float(binomtest(first_only, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(first_only, second_only, p)


def right_or_wrong(scores: FloatArray) -> bool:
    """Whether there are two values at most, such as 0 and 1, or what a correction for chance makes of them."""
    return np.unique(scores).size <= 2


def wilcoxon(differences: Sequence[float] | FloatArray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; exact up to 50 differences without ties or zeros (scipy's rule).

    Zeros are left out, as Wilcoxon did; with nothing left p is 1.
    """
    from scipy.stats import wilcoxon as signed_ranks

    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    return float(signed_ranks(values).pvalue) if values.size else 1.0


def smallest_wilcoxon_p(pairs: int) -> float:
    """The smallest two-sided p so many differences can give: 2 · 2⁻ⁿ, and 1 for none."""
    return min(1.0, 2.0 ** (1 - pairs))


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are (Holm 1979), in the order given."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    corrected = [0.0] * len(p)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = running
    return corrected


def spearman(first: FloatArray, second: FloatArray) -> tuple[float | None, float | None]:
    """Spearman's rank correlation of (n,) figures, and its two-sided p by permutation; None where ranks mean nothing."""
    from scipy.stats import permutation_test, rankdata, spearmanr

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None, None
    ranks, others = rankdata(first), rankdata(second)

    def product(shuffled: FloatArray, axis: int = -1) -> FloatArray:
        """What grows with the correlation, as ranks stay the same when they are shuffled."""
        found: FloatArray = (shuffled * (others - others.mean())).sum(axis=axis)
        return found

    tested = permutation_test(
        (ranks,), product, permutation_type="pairings", n_resamples=_PERMUTATIONS, vectorized=True, random_state=0
    )
    return float(spearmanr(first, second).statistic), float(tested.pvalue)
