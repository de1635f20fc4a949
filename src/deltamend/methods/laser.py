"""LASER: reduce the rank of the fine-tuned weight itself."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from deltamend.methods.finetuned_blocks import FinetunedBlocks
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import FixedRank


class Laser(Method):
    """W* = the best approximation of W_ft of rank ρ·min(m, n) (Sharma et al. 2024).

    This is the only method here that filters the weight and not the update, so it may drop what the base model knew. The
    paper reduces one chosen matrix, such as one of the MLP in a late layer; choose it with `--include` or with a rule. With
    ρ = 1 the result is the fine-tuned model; no ρ gives the base.
    """

    name: ClassVar[str] = "laser"
    source: ClassVar[str] = "arXiv 2312.13558"
    summary: ClassVar[str] = "Reduce the rank of the fine-tuned weight itself, not of the delta."

    share: float = Field(
        0.9,
        gt=0.0,
        le=1.0,
        description="ρ: the share of the min(m, n) singular values of the weight that is kept; at least one is.",
    )

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Reduce one weight; see `Method.apply`."""
        rank = max(1, round(self.share * min(delta.shape)))
        if rank == min(delta.shape):
            return KeptDelta.identity("the full rank is kept")
        weights = FinetunedBlocks(delta, context.base)
        found = filter_delta(weights, FixedRank(rank), device=context.device, workspace=context.workspace)
        if found.outcome in ("zero", "all-kept"):
            return KeptDelta("identity", found.reason, lambda block: block.values, found)

        def reduced(block: Block) -> FloatArray:
            kept = found.apply(weights.block(block))
            kept -= context.base.read(block.start, block.stop)
            return kept

        return KeptDelta("filtered", found.reason, reduced, found)
