"""Where the noise level of a spectral method comes from."""

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
_SOURCES = "median: of the singular values; q25: their lower quartile; bulk-fit: quantiles of the bulk; rounding-floor: what rounding to the stored dtype adds; known: `noise_level`"


class NoiseMethod(Method):
    """A spectral method that needs the standard deviation of one entry of the noise."""

    noise: NoiseSource = Field("median", description=f"Where the noise level comes from ({_SOURCES}).")
    noise_level: float | None = Field(
        None, ge=0.0, description="Standard deviation of one entry of the noise, for noise=known."
    )

    spectrum: Literal["all", "nonzero"] = Field(
        "all",
        description="Singular values the noise level comes from; nonzero takes a LoRA adapter's own, its rank many, and is the same as all elsewhere.",
    )

    @model_validator(mode="after")
    def _known_means_given(self) -> Self:
        if (self.noise == "known") != (self.noise_level is not None):
            raise ValueError("noise=known and noise_level belong together; give both or neither")
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
        """The answer for an adapter's update, whose noise level is 0 by construction, where it is asked of all singular values."""
        rank = context.update_rank
        if (
            rank is None
            or self.spectrum == "nonzero"
            or self.noise not in _FROM_THE_BULK
            or 2 * rank >= min(delta.shape)
        ):
            return None
        reason = (
            f"a LoRA update of rank {rank}: most of its singular values are 0, so there is no noise floor and Δ is kept; "
            "spectrum=nonzero works on its own"
        )
        return KeptDelta("no-noise-floor", reason, lambda block: block.values)

    def own(self, rule: ThresholdRule, context: TensorContext) -> ThresholdRule:
        """The rule, on an adapter's own spectrum where that is asked for."""
        if self.spectrum == "all" or context.update_rank is None:
            return rule
        return OwnSpectrum(rule, context.update_rank)


def rounding_floor(delta: Blocks, context: TensorContext) -> float:
    """Standard deviation of what rounding to the stored dtype adds to an entry; see `noise.rounding_variance`."""
    m, n = delta.shape
    total = 0.0
    for block in FinetunedBlocks(delta, context.base):
        for tile in tiles(block, delta.shape):
            total += float(np.sum(rounding_variance(tile.values, context.stored_dtype)))
    return math.sqrt(total / (m * n))
