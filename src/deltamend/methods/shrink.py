"""Optimal shrinkage of the singular values."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from deltamend.methods.method import KeptDelta, TensorContext, spectral_result
from deltamend.methods.noise_level import NoiseMethod
from deltamend.spectrum.blocks import Blocks
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.shrinkers import OptimalFrobenius, OptimalNuclear, OptimalOperator, Shrinker, Soft
from deltamend.spectrum.thresholds import MarchenkoPasturEdge

_SHRINKERS: dict[str, Shrinker] = {
    "frobenius": OptimalFrobenius(),
    "operator": OptimalOperator(),
    "nuclear": OptimalNuclear(),
    "soft": Soft(),
}


class Shrink(NoiseMethod):
    """Δ* = Σ η(σᵢ)·uᵢvᵢᵀ, η the optimal shrinker for a loss (Gavish & Donoho 2017; for the operator norm Leeb 2020).

    Everything above the edge of the noise is kept, smaller than it was: noise makes singular values look larger than
    the signal's. `soft` subtracts the edge. For a noise level of 0 it is the fine-tuned model.
    """

    name: ClassVar[str] = "shrink"
    source: ClassVar[str] = "arXiv 1405.7511"
    summary: ClassVar[str] = "Shrink singular values by what noise adds to them, instead of cutting."
    low_rank: ClassVar[bool] = True

    loss: Literal["frobenius", "operator", "nuclear", "soft"] = Field(
        "frobenius", description="The loss η is optimal for, or soft thresholding at the edge of the noise."
    )

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Filter one delta; see `Method.apply`."""
        if self.noise_level == 0.0:
            return KeptDelta.identity("the noise level is 0")
        if kept := self.without_floor(delta, context):
            return kept
        rule = self.own(MarchenkoPasturEdge(self.estimator(delta, context)), context)
        found = filter_delta(
            delta, rule, shrinker=_SHRINKERS[self.loss], device=context.device, workspace=context.workspace
        )
        return spectral_result(found)
