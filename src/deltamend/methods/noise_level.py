"""The parameters by which a spectral method gets the noise level of a delta."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from deltamend.methods.elementwise import tiles
from deltamend.methods.finetuned_blocks import FinetunedBlocks
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Blocks
from deltamend.spectrum.noise import (
    BulkFitNoise,
    FixedNoise,
    MedianNoise,
    NoiseEstimator,
    QuartileNoise,
    rounding_variance,
)
from deltamend.spectrum.thresholds import OwnSpectrum, ThresholdRule

NoiseSource = Literal["median", "q25", "bulk-fit", "rounding-floor", "known"]
_FROM_THE_BULK = frozenset({"median", "q25", "bulk-fit"})
_SOURCES = "median, q25 and bulk-fit estimate it from the singular values: from their median, their lower quartile, or several quantiles of the bulk; rounding-floor is what rounding to the stored dtype adds; known takes `noise_level`"


class NoiseMethod(Method):
    """A spectral method that needs the standard deviation of one entry of the noise."""

    noise: NoiseSource = Field("median", description=f"Where the noise level comes from ({_SOURCES}).")
    noise_level: float | None = Field(
        None, ge=0.0, description="Standard deviation of the noise in one entry of the delta; only with noise=known."
    )

    spectrum: Literal["all", "nonzero"] = Field(
        "all",
        description="Which singular values the noise level is estimated from. For a LoRA adapter of rank r, nonzero takes only the r that are not zero; for any other update it is the same as all.",
    )

    @model_validator(mode="after")
    def _known_means_given(self) -> Self:
        if (self.noise == "known") != (self.noise_level is not None):
            raise ValueError("noise=known needs noise_level, and noise_level needs noise=known; give both or neither")
        return self

    def estimator(self, delta: Blocks, context: TensorContext) -> NoiseEstimator:
        """The estimator for one tensor."""
        match self.noise:
            case "q25":
                return QuartileNoise()
            case "bulk-fit":
                return BulkFitNoise()
            case "rounding-floor":
                return FixedNoise(rounding_floor(delta, context))
            case "known" if self.noise_level is not None:
                return FixedNoise(self.noise_level)
        return MedianNoise()

    def without_floor(self, delta: Blocks, context: TensorContext) -> KeptDelta | None:
        """Keep the update of a LoRA adapter whole where its noise level would be 0; None where the noise can be estimated.

        More than half of the singular values of such an update are 0 by construction, and so is their median.
        """
        rank = context.update_rank
        if (
            rank is None
            or self.spectrum == "nonzero"
            or self.noise not in _FROM_THE_BULK
            or 2 * rank >= min(delta.shape)
        ):
            return None
        reason = (
            f"a LoRA update of rank {rank}: most of its singular values are 0, so there is no noise to measure and Δ is kept; "
            "spectrum=nonzero measures it on the others"
        )
        return KeptDelta("no-noise-floor", reason, lambda block: block.values)

    def own(self, rule: ThresholdRule, context: TensorContext) -> ThresholdRule:
        """The rule, applied only to the nonzero singular values of an adapter where `spectrum` asks for that."""
        if self.spectrum == "all" or context.update_rank is None:
            return rule
        return OwnSpectrum(rule, context.update_rank)


def rounding_floor(delta: Blocks, context: TensorContext) -> float:
    """Standard deviation of what rounding to the stored dtype, and quantisation, add to an entry of Δ.

    See `noise.rounding_variance` and `quantisation_error.quantisation_variance`.
    """
    m, n = delta.shape
    total = 0.0
    for block in FinetunedBlocks(delta, context.base):
        for tile in tiles(block, delta.shape):
            total += float(np.sum(rounding_variance(tile.values, context.stored_dtype)))
    quantisation = 0.0 if context.quantisation is None else context.quantisation()
    return math.sqrt(total / (m * n) + quantisation)
