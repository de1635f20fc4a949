"""Magnitude pruning of the delta."""

from __future__ import annotations

from typing import ClassVar

from deltamend.methods.trimming import Trimmed


class Magnitude(Trimmed):
    """Keep the entries of Δ with the largest magnitude and set the rest to zero; by default nothing is rescaled.

    It is the plain baseline of the pruning literature (Han et al. 2015), applied to the update and not to the weights. With
    one fine-tuned model, TIES does the same.
    """

    name: ClassVar[str] = "magnitude"
    source: ClassVar[str] = "arXiv 1506.02626"
    summary: ClassVar[str] = "Keep the entries that changed most."
