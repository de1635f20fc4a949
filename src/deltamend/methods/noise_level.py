"""Where the noise level of a spectral method comes from."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from deltamend.methods.elementwise import parts
from deltamend.methods.finetuned_blocks import FinetunedBlocks
from deltamend.methods.method import Method, TensorContext
from deltamend.spectrum.blocks import Blocks
from deltamend.spectrum.noise import (
    BulkFitNoise,
    FixedNoise,
    MedianNoise,
    NoiseEstimator,
    QuartileNoise,
    rounding_variance,
)

NoiseSource = Literal["median", "q25", "bulk-fit", "rounding-floor", "known"]
_SOURCES = "median: of the singular values; q25: their lower quartile; bulk-fit: quantiles of the bulk; rounding-floor: what rounding to the stored dtype adds; known: `noise_level`"


class NoiseMethod(Method):
    """A spectral method that needs the standard deviation of one entry of the noise."""

    noise: NoiseSource = Field("median", description=f"Where the noise level comes from ({_SOURCES}).")
    noise_level: float | None = Field(
        None, ge=0.0, description="Standard deviation of one entry of the noise, for noise=known."
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


def rounding_floor(delta: Blocks, context: TensorContext) -> float:
    """Standard deviation of what rounding to the stored dtype adds to an entry; see `noise.rounding_variance`."""
    m, n = delta.shape
    total = 0.0
    for block in FinetunedBlocks(delta, context.base):
        for part in parts(block, delta.shape):
            total += float(np.sum(rounding_variance(part.values, context.stored_dtype)))
    return math.sqrt(total / (m * n))
