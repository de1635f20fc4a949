"""TIES: trim, elect sign, merge; with one model, trim."""

from __future__ import annotations

from typing import ClassVar

from deltamend.methods.trimming import Trimmed


class Ties(Trimmed):
    """Keep the top share of Δ by magnitude, elect a sign for each entry, add λ times what agrees (Yadav et al. 2023).

    With one fine-tuned model the election has one voter and changes nothing, and the mean over models is the model: it
    is magnitude pruning with a factor. The paper trims the task vector of the whole model (`scope=model`), mergekit
    each tensor by itself (`scope=tensor`). mergekit divides by the weight of the one model (`normalize`), so its `weight`
    has no effect there; its `lambda` is ours.
    """

    name: ClassVar[str] = "ties"
    source: ClassVar[str] = "arXiv 2306.01708"
    summary: ClassVar[str] = "Trim by magnitude; its sign election changes nothing with one model."
