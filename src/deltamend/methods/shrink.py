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

    Singular values above the edge of the noise are kept but made smaller, because noise makes the singular values of the
    signal look larger than they are; those below are dropped. `loss=soft` subtracts the edge from each. With a noise level
    of 0 the result is the fine-tuned model.
    """

    name: ClassVar[str] = "shrink"
    source: ClassVar[str] = "arXiv 1405.7511"
    summary: ClassVar[str] = (
        "Shrink each singular value by what noise adds to it, instead of keeping it or dropping it."
    )
    low_rank: ClassVar[bool] = True

    loss: Literal["frobenius", "operator", "nuclear", "soft"] = Field(
        "frobenius", description="The loss for which η is optimal; soft is soft thresholding at the edge of the noise."
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
