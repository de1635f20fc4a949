"""One threshold on the singular values of all matrices, where together they hold a share of the update's energy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deltamend.methods.method import Counts, Deltas, KeptDelta, Method, TensorContext, spectral_result
from deltamend.spectrum.blocks import Blocks, FloatArray
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.singular_values import Spectrum
from deltamend.spectrum.thresholds import Threshold

_SHIFT = 12
"""Bits of a float32 that are left out when singular values are counted: cells are 1/2048 of an octave's start wide."""


class EnergyCut(Method):
    """Δ* = Σ σᵢuᵢvᵢᵀ over σᵢ > τ, with one τ for the whole model: the largest for which Δ* holds `energy` of ‖Δ‖².

    Task-vector shrinkage by a single global energy cut, after arXiv 2604.27796; written from its one-line description, as
    the paper's text was not at hand. `rank` with `energy` cuts every matrix by itself. Here matrices with a strong update
    keep many directions, and those with a weak one few or none.

    The singular values of all matrices are counted first, in cells 0.05 % wide, so the whole model is read once more and
    the energy that is kept is right to about 0.1 %; more is kept rather than less.
    """

    name: ClassVar[str] = "energy-cut"
    source: ClassVar[str] = "after arXiv 2604.27796"
    summary: ClassVar[str] = "Keep the largest singular values of all matrices together, up to a share of the energy."
    needs_survey: ClassVar[bool] = True
    low_rank: ClassVar[bool] = True

    energy: float = Field(0.9, ge=0.0, le=1.0, description="Share of ‖Δ‖², summed over all matrices, that is kept.")

    def survey(self, deltas: Deltas) -> float:
        """τ; singular values at or below it are dropped."""
        if self.energy in (0.0, 1.0):
            return 0.0

        def counted(delta: Blocks, context: TensorContext) -> Counts:
            heard = _AllValues()
            filter_delta(delta, heard, device=context.device, workspace=context.workspace)
            return np.bincount(_cells(heard.values), minlength=1 << (31 - _SHIFT))

        return _cut(deltas.total(counted), self.energy)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Filter one delta; see `Method.apply`."""
        if self.energy == 0.0:
            return KeptDelta.reverted("nothing is kept by the parameters")
        if self.energy == 1.0:
            return KeptDelta.identity("everything is kept by the parameters")
        found = filter_delta(delta, _Fixed(context.surveyed), device=context.device, workspace=context.workspace)
        return spectral_result(found)


@dataclass(frozen=True)
class _Fixed:
    """A rule whose threshold is known."""

    value: float

    def threshold(self, spectrum: Spectrum) -> Threshold:  # noqa: ARG002 - the same for every spectrum
        return Threshold(self.value, None)


@dataclass
class _AllValues:
    """A rule that keeps the singular values it was shown, and above which there is nothing."""

    values: FloatArray = field(default_factory=lambda: np.empty(0))

    def threshold(self, spectrum: Spectrum) -> Threshold:
        self.values = np.array(spectrum.values())
        return Threshold(2.0 * spectrum.largest(), None)


def _cells(values: FloatArray) -> npt.NDArray[np.uint32]:
    """The cell of each singular value; bits of positive floats are in the order of the floats."""
    return np.asarray(np.maximum(values, 0.0), np.float32).view(np.uint32) >> np.uint32(_SHIFT)


def _cut(counts: Counts, energy: float) -> float:
    """Just below the cell with which the largest values first hold the share `energy`; 0 where all values are 0."""
    cells = np.flatnonzero(counts)[::-1]
    starts = (cells.astype(np.uint32) << np.uint32(_SHIFT)).view(np.float32)
    held = np.cumsum(np.square(starts, dtype=np.float64) * counts[cells])
    if not held.size or held[-1] == 0.0:
        return 0.0
    last = int(np.searchsorted(held, energy * held[-1]))
    return float(np.nextafter(starts[min(last, starts.size - 1)], np.float32(0.0)))
