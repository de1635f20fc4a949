"""WiSE-FT and task arithmetic: with one fine-tuned model the same formula."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from deltamend.methods.elementwise import Weighted, scale, weight_field
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


class WiseFT(Method):
    """W* = (1 − α)·W_base + α·W_ft, that is Δ* = α·Δ (Wortsman et al. 2022).

    With one fine-tuned model this is the same as task arithmetic with weight α.
    """

    name: ClassVar[str] = "wise-ft"
    source: ClassVar[str] = "arXiv 2109.01903"
    summary: ClassVar[str] = "Interpolate: keep the share α of every delta."
    takes_vectors: ClassVar[bool] = True
    keeps_rank: ClassVar[bool] = True

    alpha: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the delta that is kept: 0 is the base, 1 the fine-tuned model."
    )

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:  # noqa: ARG002 - the same for every tensor
        """Scale one delta; see `Method.apply`."""
        return scaled(self.alpha)


class TaskArithmetic(Weighted):
    """W* = W_base + λ·Δ (Ilharco et al. 2023).

    With one fine-tuned model this is the same as WiSE-FT with α = λ. λ may also be above 1, which goes beyond the fine-tuned
    model, or below 0, which goes away from it (negation). λ has no default: 1, the usual one where several models are merged,
    gives the fine-tuned model back.
    """

    name: ClassVar[str] = "task-arithmetic"
    source: ClassVar[str] = "arXiv 2212.04089"
    summary: ClassVar[str] = "Scale the delta by λ; with one model the same as wise-ft."
    takes_vectors: ClassVar[bool] = True
    keeps_rank: ClassVar[bool] = True

    weight: float = weight_field(None)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:  # noqa: ARG002 - the same for every tensor
        """Scale one delta; see `Method.apply`."""
        return scaled(self.weight)


def scaled(factor: float) -> KeptDelta:
    """Δ* = factor·Δ, exact at 0 and 1."""
    if factor == 0.0:
        return KeptDelta.reverted("the factor is 0")
    if factor == 1.0:
        return KeptDelta.identity("the factor is 1")

    def scaled_block(block: Block) -> FloatArray:
        scale(block.values, factor)
        return block.values

    return KeptDelta("filtered", "", scaled_block)
