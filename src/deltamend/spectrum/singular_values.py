"""The interface through which threshold rules and noise estimators read the singular values of a matrix, computed on demand."""

from __future__ import annotations

from typing import Protocol

from deltamend.spectrum.blocks import FloatArray


class Spectrum(Protocol):
    """The singular values of one m×n matrix; only those that are asked for are computed."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the matrix."""

    @property
    def energy(self) -> float:
        """Sum of the squared singular values, ‖Δ‖_F²."""

    def median(self) -> float:
        """Median of all min(m, n) singular values; the mean of the middle two when their number is even."""

    def largest(self) -> float:
        """The largest singular value."""

    def values(self) -> FloatArray:
        """All min(m, n) singular values, float64, descending. May cost more than the median."""
