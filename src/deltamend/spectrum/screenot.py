"""ScreeNOT: the optimal hard threshold for correlated noise of unknown distribution.

Donoho, Gavish & Romanov, "ScreeNOT: Exact MSE-optimal singular value thresholding in correlated noise", Annals of
Statistics 51 (2023), arXiv 2009.12297. Written from the paper; the authors' package `screenot` is the test's oracle.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deltamend.spectrum.marchenko_pastur import check_beta

Array = npt.NDArray[np.float64]


def screenot_threshold(singular_values: npt.ArrayLike, beta: float, max_rank: int) -> float:
    """The hard threshold τ at which Ψ_β(τ) = −4 for the law of the pseudo-noise.

    Args:
        singular_values: all of them, shape (p,), non-negative, descending.
        beta: shorter side divided by longer side, in (0, 1].
        max_rank: upper bound on the rank of the signal, 0 ≤ max_rank ≤ (p − 1)/2; the largest `max_rank` values are
            taken as unknown and imputed.

    Returns:
        τ > 0, or 0 where all values of the pseudo-noise are 0.

    Raises:
        ValueError: an argument is out of range.
    """
    from scipy.optimize import brentq  # late: a third of all start-up time, and DG-Hard does without it

    check_beta(beta)
    noise = pseudo_noise(singular_values, max_rank)
    scale = float(noise.max())
    if scale == 0.0:
        return 0.0
    noise = noise / scale

    def excess(y: float) -> float:
        return logarithmic_slope(y, noise, beta) + 4.0

    # Ψ rises from −∞ at the largest value of the noise to −2 at infinity.
    high = 2.0
    while excess(high) < 0.0:
        high *= 2.0
    return scale * float(brentq(excess, 1.0 + 1e-12, high, xtol=1e-14, rtol=1e-14))


def pseudo_noise(singular_values: npt.ArrayLike, max_rank: int) -> Array:
    """The singular values with the k = `max_rank` largest imputed from the next k + 1, the method that the paper prefers.

    ŷ_i = y_{k+1} + (1 − ((i − 1)/k)^{2/3}) / (2^{2/3} − 1) · (y_{k+1} − y_{2k+1}) for i ≤ k: the values that a bulk
    with a square-root edge would have there.

    Args:
        singular_values: shape (p,), non-negative, descending.
        max_rank: 0 ≤ max_rank ≤ (p − 1)/2.

    Raises:
        ValueError: `max_rank` is out of range, or there is no singular value.
    """
    values = np.array(singular_values, dtype=np.float64)
    if not 0 <= 2 * max_rank <= values.size - 1:
        raise ValueError(
            f"max_rank is {max_rank} for {values.size} singular values; pass 0 to {(values.size - 1) // 2}"
        )
    if max_rank > 0:
        steps = (1.0 - (np.arange(max_rank) / max_rank) ** (2.0 / 3.0)) / (2.0 ** (2.0 / 3.0) - 1.0)
        values[:max_rank] = values[max_rank] + steps * (values[max_rank] - values[2 * max_rank])
    return values


def logarithmic_slope(y: float, noise: Array, beta: float) -> float:
    """Ψ_β(y) = y·D′(y)/D(y), with D(y) = φ(y)·(β·φ(y) + (1 − β)/y) and φ(y) = mean of y/(y² − z²) over the noise z.

    D is the D-transform of Benaych-Georges & Nadakuditi (2012); Ψ = −4 is the paper's condition for the optimal
    threshold.

    Args:
        y: above every value of `noise`.
        noise: shape (p,), non-negative.
        beta: shorter side divided by longer side, in (0, 1].
    """
    gap = (y - noise) * (y + noise)
    phi = float(np.mean(y / gap))
    phi_slope = -float(np.mean((y * y + noise * noise) / gap**2))
    other = beta * phi + (1.0 - beta) / y
    other_slope = beta * phi_slope - (1.0 - beta) / (y * y)
    return y * (phi_slope / phi + other_slope / other)
