"""DG-Hard: the Gavish–Donoho hard threshold on the singular values of every weight delta."""

from __future__ import annotations

from typing import ClassVar

from deltamend.methods.method import KeptDelta, Method, TensorContext, spectral_result
from deltamend.spectrum.blocks import Blocks
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import GavishDonoho


class DGHard(Method):
    """Keep σᵢ > ω(β)·median(σ), for noise of unknown level (arXiv 2605.20296; ω from arXiv 1305.5870, eq. 4)."""

    name: ClassVar[str] = "dg-hard"
    source: ClassVar[str] = "arXiv 2605.20296"
    summary: ClassVar[str] = "Hard singular-value threshold at the Gavish–Donoho value; no data, no tuning."

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Filter one delta; see `Method.apply`."""
        return spectral_result(filter_delta(delta, GavishDonoho(), device=context.device))
