"""Intruder dimensions: singular directions of the fine-tuned weight that the base does not have."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from deltamend.methods.finetuned_blocks import BaseOnly, FinetunedBlocks
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray
from deltamend.spectrum.decompositions import gram
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import FixedRank


class Intruder(Method):
    """Shrink the leading left singular vectors of W_ft that no left singular vector of W_base resembles.

    Of the `top` leading directions of W_ft, those are intruders whose |cosine| with every direction of W_base is below ε;
    W* = W_ft − (1 − λ)·Σ σᵢuᵢvᵢᵀ, summed over the intruders (Shuttleworth et al. 2024). It is what peft's
    `reduce_intruder_dimension` does before it cuts the update to the rank of its adapter. Left singular vectors are taken
    of the matrix as it is stored; GPT-2 stores its matrices transposed. The method needs memory for `top` vectors of the
    longer side.
    """

    name: ClassVar[str] = "intruder"
    source: ClassVar[str] = "arXiv 2410.21228"
    summary: ClassVar[str] = (
        "Shrink the leading singular directions of the fine-tuned weight that the base does not have."
    )

    top: int = Field(10, ge=1, le=1000, description="Number of leading singular directions that are examined.")
    epsilon: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="A direction is an intruder if its |cosine| with every direction of the base is below this.",
    )
    keep: float = Field(0.75, ge=0.0, le=1.0, description="λ: the share of each intruder that is kept.")

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Shrink the intruders of one weight; see `Method.apply`."""
        if self.keep == 1.0:
            return KeptDelta.identity("intruders are kept")
        weights = FinetunedBlocks(delta, context.base)
        rank = min(self.top, min(delta.shape) - 1)
        found = filter_delta(weights, FixedRank(rank), device=context.device, workspace=context.workspace)
        if found.basis is None:
            return KeptDelta.identity("no leading directions stand out")
        left, values, right = found.factors(weights)
        left = left.copy()  # the workspace is used again below
        foreign = _similarity(left, BaseOnly(delta, context.base), context) < self.epsilon
        if not foreign.any():
            return KeptDelta.identity("no intruder dimension")
        strengths = ((1.0 - self.keep) * values[foreign]).astype(left.dtype)
        scaled, right = left[:, foreign] * strengths, right[foreign]

        def shrunken(block: Block) -> FloatArray:
            rows = block.values.shape[1] == delta.shape[1] and delta.shape[0] > delta.shape[1]
            span = slice(block.start, block.stop)
            intruders = scaled[span] @ right if rows else scaled @ right[:, span]
            block.values[:] -= intruders.astype(block.values.dtype, copy=False)
            return block.values

        return KeptDelta("filtered", f"{int(foreign.sum())} intruder dimension(s)", shrunken)


def _similarity(left: FloatArray, base: BaseOnly, context: TensorContext) -> FloatArray:
    """For each column of `left` (m, k) the largest |cosine| with a left singular vector of the base, shape (k,)."""
    from scipy.linalg import eigh  # late, as in spectrum.fortran_calls

    m, n = base.shape
    # The upper triangle is not initialised, so a check for NaN must not see it; the filter has looked for NaN already.
    squares, vectors = eigh(gram(base, np.float64, context.workspace).square, lower=True, check_finite=False)
    if m <= n:
        cosines = vectors.T @ left
    else:
        products = np.zeros((n, left.shape[1]))
        for block in base:
            products += block.values.T @ left[block.start : block.stop].astype(np.float64)
        # u_j = W v_j / σ_j; directions that rounding made up have no length to divide by.
        real = squares > squares[-1] * np.finfo(np.float64).eps * n
        cosines = (vectors.T @ products)[real] / np.sqrt(squares[real])[:, None]
    return np.asarray(np.abs(cosines).max(axis=0, initial=0.0))
