"""Grafting: skill localization with a sparse mask."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from deltamend.methods.trimming import Trimmed


class Graft(Trimmed):
    """W* = W_base + γ ⊙ Δ with a sparse mask γ (Panigrahi et al. 2023).

    The paper learns γ on the task's data, starting from the entries of the largest |Δ| in the whole model. Here is that
    starting point, which needs no data; it is magnitude pruning over the whole model. The learned mask needs the task's
    data and gradients and is not there yet: `mask=learned` is refused.
    """

    name: ClassVar[str] = "graft"
    source: ClassVar[str] = "arXiv 2302.06600"
    summary: ClassVar[str] = "Graft the most changed entries of the whole model onto the base."

    density: float = Field(
        0.01, ge=0.0, le=1.0, description="Share of the entries that is grafted; the paper learns masks of 0.0001."
    )
    scope: Literal["tensor", "model"] = Field(
        "model",
        description="Whether the share is kept of each tensor or of the whole model, which is read two times more.",
    )
    mask: Literal["magnitude", "learned"] = Field(
        "magnitude", description="How the mask is found; `learned` is not there yet."
    )

    @field_validator("mask")
    @classmethod
    def _without_data(cls, mask: str) -> str:
        if mask == "learned":
            raise ValueError(
                "learning a mask needs the task's data and gradients, which no installed extra of deltamend provides yet; "
                "use mask=magnitude"
            )
        return mask
