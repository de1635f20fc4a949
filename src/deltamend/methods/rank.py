"""Truncated singular value decomposition of the delta."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from deltamend.methods.method import KeptDelta, Method, TensorContext, spectral_result
from deltamend.spectrum.blocks import Blocks
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import EnergyFraction, FixedRank, ThresholdRule

_DEFAULT_ENERGY = 0.9


class Rank(Method):
    """Δ* = the best approximation of Δ of a given rank (Eckart & Young 1936): the baseline without a noise model.

    Give one of `rank`, `energy` and `share`; the default is energy = 0.9. With a fixed rank, the result is what a LoRA adapter
    that is extracted from the update would hold.
    """

    name: ClassVar[str] = "rank"
    source: ClassVar[str] = "Psychometrika 1 (1936)"
    summary: ClassVar[str] = "Keep a fixed rank, share of the rank, or share of the energy of every delta."
    low_rank: ClassVar[bool] = True

    rank: int | None = Field(None, ge=0, description="Number of singular values that are kept.")
    energy: float | None = Field(
        None, ge=0.0, le=1.0, description="Keep the fewest singular values that together hold this share of ‖Δ‖²."
    )
    share: float | None = Field(None, ge=0.0, le=1.0, description="Keep this share of the min(m, n) singular values.")

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum(value is not None for value in (self.rank, self.energy, self.share)) > 1:
            raise ValueError("rank, energy and share exclude each other; give one of them")
        return self

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Filter one delta; see `Method.apply`."""
        found = filter_delta(delta, self._rule(delta), device=context.device, workspace=context.workspace)
        return spectral_result(found)

    def _rule(self, delta: Blocks) -> ThresholdRule:
        if self.rank is not None:
            return FixedRank(self.rank)
        if self.share is not None:
            return FixedRank(round(self.share * min(delta.shape)))
        return EnergyFraction(_DEFAULT_ENERGY if self.energy is None else self.energy)
