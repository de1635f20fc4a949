"""The two methods that every other is compared with: keep the fine-tuned weights, or go back to the base weights."""

from __future__ import annotations

from typing import ClassVar

from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Blocks


class NoRepair(Method):
    """W* = W_ft, bit for bit: the fine-tuned model, unchanged."""

    name: ClassVar[str] = "none"
    aliases: ClassVar[tuple[str, ...]] = ("passthrough",)
    source: ClassVar[str] = "trivial"
    summary: ClassVar[str] = "Keep the fine-tuned weights."
    takes_vectors: ClassVar[bool] = True
    keeps_rank: ClassVar[bool] = True
    low_rank: ClassVar[bool] = True

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:  # noqa: ARG002 - the same for every tensor
        """Keep everything; see `Method.apply`."""
        return KeptDelta.identity("the method keeps everything")


class Revert(Method):
    """W* = W_base, bit for bit: fine-tuning is undone."""

    name: ClassVar[str] = "revert"
    source: ClassVar[str] = "trivial"
    summary: ClassVar[str] = "Go back to the base weights."
    takes_vectors: ClassVar[bool] = True
    low_rank: ClassVar[bool] = True

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:  # noqa: ARG002 - the same for every tensor
        """Keep nothing; see `Method.apply`."""
        return KeptDelta.reverted("the method keeps nothing")
