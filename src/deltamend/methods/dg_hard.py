"""DG-Hard: the Gavish–Donoho hard threshold on the singular values of every weight delta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from deltamend.methods.method import KeptDelta, TensorContext, spectral_result
from deltamend.methods.noise_level import NoiseMethod, NoiseSource
from deltamend.spectrum.blocks import Blocks
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.singular_values import Spectrum
from deltamend.spectrum.thresholds import (
    GavishDonoho,
    MarchenkoPasturEdge,
    ScreeNOT,
    Threshold,
    ThresholdRule,
    TracyWidomEdge,
)


class DGHard(NoiseMethod):
    """Δ* = Σ σᵢuᵢvᵢᵀ over σᵢ > τ, τ = ω(β)·median(σ) (Abro & Tahir, arXiv 2605.20296; ω from arXiv 1305.5870, eq. 4).

    The defaults are the paper's. Other thresholds: `rule=edge` takes the edge of the Marchenko–Pastur bulk as τ, and
    `rule=tracy-widom` the 99% quantile of the largest singular value of noise; both keep more. `noise=screenot` is the
    threshold for correlated noise of unknown distribution (arXiv 2009.12297), which needs no noise level.

    A delta of exactly low rank, such as that of a merged adapter, has no noise to measure, because its median singular
    value is nothing but rounding: the delta is kept whole, and the report says so. For a LoRA adapter that is given as an
    adapter, `spectrum=nonzero` measures the noise on the adapter's own singular values instead.
    """

    name: ClassVar[str] = "dg-hard"
    source: ClassVar[str] = "arXiv 2605.20296"
    summary: ClassVar[str] = "Hard singular-value threshold at the Gavish–Donoho value; no data, no tuning."
    low_rank: ClassVar[bool] = True

    noise: NoiseSource | Literal["screenot"] = Field(  # type: ignore[assignment]
        "median",
        description=f"{NoiseMethod.model_fields['noise'].description} screenot needs no level: it is a threshold for correlated noise.",
    )
    rule: Literal["gavish-donoho", "edge", "tracy-widom"] = Field(
        "gavish-donoho", description="How the threshold follows from the noise level."
    )
    scale: float = Field(
        1.0, gt=0.0, le=100.0, description="Factor on the threshold: a value above 1 keeps less of the delta."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.noise == "screenot" and self.rule != "gavish-donoho":
            raise ValueError(f"noise=screenot is a threshold of its own; leave out rule={self.rule}")
        return self

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Filter one delta; see `Method.apply`."""
        if kept := self.without_floor(delta, context):
            return kept
        rule = _Scaled(self.own(self._rule(delta, context), context), self.scale)
        return spectral_result(filter_delta(delta, rule, device=context.device, workspace=context.workspace))

    def _rule(self, delta: Blocks, context: TensorContext) -> ThresholdRule:
        if self.noise == "screenot":
            return ScreeNOT()
        estimator = self.estimator(delta, context)
        match self.rule:
            case "edge":
                return MarchenkoPasturEdge(estimator)
            case "tracy-widom":
                return TracyWidomEdge(noise=estimator)
        return GavishDonoho(estimator)


@dataclass(frozen=True)
class _Scaled:
    """A rule whose threshold is multiplied by a factor."""

    rule: ThresholdRule
    factor: float

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The scaled threshold; the noise is that of the rule."""
        found = self.rule.threshold(spectrum)
        return Threshold(found.value * self.factor, found.noise)
