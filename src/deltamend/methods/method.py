"""What a method is: parameters that are checked when it is made, and one `apply`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from deltamend.spectrum.blocks import Blocks, FloatArray
from deltamend.spectrum.filter import SpectralFilter


@dataclass(frozen=True)
class TensorContext:
    """What a method may know besides the delta: the tensor's name and the device to compute on."""

    name: str
    device: str = "cpu"


@dataclass(frozen=True)
class KeptDelta:
    """What a method makes of one delta.

    `identity`: Δ* = Δ, so the fine-tuned bytes are written; `reverted`: Δ* = 0, so the base values are written;
    `filtered`: `block` maps each block of Δ to the same block of Δ*. `no-noise-floor` writes the fine-tuned bytes
    because the method could not be applied, and `reason` says why. `spectrum` is what a spectral method found.
    """

    outcome: Literal["identity", "reverted", "filtered", "no-noise-floor"]
    reason: str
    block: Callable[[FloatArray], FloatArray]
    spectrum: SpectralFilter | None = None


class Method(BaseModel, ABC):
    """A repair method; its fields are its parameters, with range, unit and help on each.

    Instances are frozen and hold parameters only, so they can be shared between threads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Decide what is kept of one delta.

        Args:
            delta: Δ = W_ft − W_base, shape (m, n), float32 or float64, read block by block; never zero everywhere.
            context: the tensor it belongs to.

        Raises:
            FilterError: Δ holds NaN or Inf, or no algorithm gave a checked answer.
        """


def spectral_result(found: SpectralFilter) -> KeptDelta:
    """What a spectral filter means for the output."""
    match found.outcome:
        case "zero" | "all-kept":
            return KeptDelta("identity", found.reason, lambda block: block, found)
        case "none-kept":
            return KeptDelta("reverted", found.reason, found.apply, found)
        case "no-noise-floor":
            return KeptDelta("no-noise-floor", found.reason, lambda block: block, found)
        case "filtered":
            return KeptDelta("filtered", found.reason, found.apply, found)
