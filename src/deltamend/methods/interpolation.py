"""Interpolation between base and fine-tuned weights: WiSE-FT, the same formula as task arithmetic with one task."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Blocks, FloatArray


class WiseFT(Method):
    """W* = (1 − α)·W_base + α·W_ft (Wortsman et al. 2022, arXiv 2109.01903), that is Δ* = α·Δ."""

    name: ClassVar[str] = "wise-ft"
    source: ClassVar[str] = "arXiv 2109.01903"
    summary: ClassVar[str] = "Interpolate: keep the share α of every delta."

    alpha: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the delta that is kept: 0 is the base, 1 the fine-tuned model."
    )

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:  # noqa: ARG002 - the same for every tensor
        """Scale one delta; see `Method.apply`."""
        if self.alpha in (0.0, 1.0):
            return KeptDelta(
                "identity" if self.alpha else "reverted", f"alpha = {self.alpha:g}", lambda block: block * self.alpha
            )

        def scale(block: FloatArray) -> FloatArray:
            block *= self.alpha
            return block

        return KeptDelta("filtered", "", scale)
