"""TIES: trim, elect signs and merge, of which only trimming has an effect with one fine-tuned model."""

from __future__ import annotations

from typing import ClassVar

from deltamend.methods.trimming import Trimmed


class Ties(Trimmed):
    """Keep the top share of Δ by magnitude, elect a sign for each entry, add λ times what agrees (Yadav et al. 2023).

    With one fine-tuned model, the election of signs has one voter and changes nothing, and the mean over models is that
    model; so this is magnitude pruning with a factor. The paper trims the task vector of the whole model (`scope=model`),
    mergekit trims each tensor by itself (`scope=tensor`). Our `weight` is mergekit's `lambda`; mergekit's own `weight` has
    no effect with one model, because it divides by it (`normalize`).
    """

    name: ClassVar[str] = "ties"
    source: ClassVar[str] = "arXiv 2306.01708"
    summary: ClassVar[str] = (
        "Keep the entries that changed most; its sign election changes nothing with one fine-tuned model."
    )
