"""Magnitude pruning of the delta."""

from __future__ import annotations

from typing import ClassVar

from deltamend.methods.trimming import Trimmed


class Magnitude(Trimmed):
    """Keep the entries of Δ of the largest magnitude and set the rest to zero; nothing is rescaled by default.

    The plain baseline of the pruning literature (Han et al. 2015), on the update instead of the weights. With one
    fine-tuned model TIES is the same.
    """

    name: ClassVar[str] = "magnitude"
    source: ClassVar[str] = "arXiv 1506.02626"
    summary: ClassVar[str] = "Keep the entries that changed most."
