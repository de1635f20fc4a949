"""The report of a repair, for use in Python; `deltamend.json` holds the same figures."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from deltamend.checkpoint.manifest import CoverageRecord, Manifest, ParentRecord, TensorRecord
from deltamend.errors import option, spell, spelled_in_python
from deltamend.methods.registry import method_class
from deltamend.repairing.options import Recommendation

_LOSS_WORTH_A_WARNING = 0.1
"""Warn if rounding changes more than this share of ‖Δ*‖, or of the removed ‖Δ − Δ*‖; bf16 then was seen to undo repairs."""


@dataclass(frozen=True)
class RepairReport:
    """The report of a repair.

    Attributes:
        out: the folder that was written.
        manifest: the content of its `deltamend.json`.
        written: False if `resume` found that OUT was already complete.
        recommendation: the method that "auto" chose; None if a method was named.
        replaced: where the older OUT is, if `overwrite` replaced one that could not be removed.
    """

    out: Path
    manifest: Manifest
    written: bool = True
    recommendation: Recommendation | None = None
    replaced: Path | None = None

    @property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """One record for each tensor, in the order in which the output's files hold them."""
        return self.manifest.tensors

    @property
    def parent(self) -> ParentRecord | None:
        """Whether BASE is the parent of FINETUNED, by a sample of the weights."""
        return self.manifest.parent

    @property
    def coverage(self) -> CoverageRecord | None:
        """How much of FINETUNED was repaired: its matrices, and their entries."""
        return self.manifest.coverage

    @property
    def kept_energy(self) -> float:
        """The share of the update's energy that was kept: Σ‖Δ*‖² / Σ‖Δ‖² over all matrices; 1 if every delta is zero."""
        return self.manifest.kept_energy

    @property
    def realised_error(self) -> float:
        """How much rounding changed the kept update: ‖cast(W*) − W_base − Δ*‖ / ‖Δ*‖ over all matrices; 0 if Δ* is zero."""
        return self.manifest.realised_error

    @property
    def undone_by_rounding(self) -> float | None:
        """The size of the rounding against what was removed: ‖cast(W*) − W_base − Δ*‖ / ‖Δ − Δ*‖ over all matrices.

        It is None if nothing was removed, or if the removed part was not measured.
        """
        return self.manifest.undone_by_rounding

    @property
    def warning(self) -> str | None:
        """A warning if there was nothing to repair, or if rounding undoes a good part of the repair; else None."""
        text = nothing_changed_warning(self.manifest) or rounding_warning(self.manifest)
        return None if text is None else spell(text, spelled_in_python)


def nothing_changed_warning(manifest: Manifest) -> str | None:
    """A warning if the two models hold the same values wherever something was to be repaired."""
    repaired = [tensor for tensor in manifest.tensors if tensor.action == "filter"]
    if repaired and all(tensor.outcome == "zero" for tensor in repaired):
        return (
            "BASE and FINETUNED hold the same values in every matrix that was to be repaired, so there was nothing to "
            "repair; check that FINETUNED is the fine-tuned model"
        )
    return None


def coverage_clause(coverage: CoverageRecord | None) -> str:
    """Which part of FINETUNED a share of the update is about, for the end of a sentence; nothing where it is all of it."""
    if coverage is None or coverage.share == 1.0:
        return ""
    return (
        f" in {coverage.repaired} of the {coverage.matrices} matrices of FINETUNED, {_rounded_down(coverage.share)} of their "
        "entries; the others are as fine-tuned"
    )


def _rounded_down(share: float) -> str:
    """A share in percent, of which 100 % means all."""
    return f"{math.floor(10_000 * share) / 100:.2f} %"


def rounding_warning(manifest: Manifest) -> str | None:
    """A warning if rounding changed the repaired update by much; its text holds options marked by `errors.option`."""
    instead = f"write them with {option('out_dtype', 'fp32')}"
    if _fits_an_adapter(manifest):
        instead += f" or {option('output', 'adapter')}"
    if manifest.realised_error > _LOSS_WORTH_A_WARNING:
        return (
            f"rounding changed the kept update by {100 * manifest.realised_error:.2f} %, so that the written weights hold "
            f"much less of it than the method kept; {instead}"
        )
    undone = manifest.undone_by_rounding or 0.0
    if undone > _LOSS_WORTH_A_WARNING:
        return (
            f"rounding changed the weights by {100 * undone:.2f} % of what the repair removed, so that this part of the "
            f"repair may be lost; {instead}"
        )
    return None


def _fits_an_adapter(manifest: Manifest) -> bool:
    """Whether the same repair could have been written as an adapter; see `adapter_layout.plan_adapter`."""
    used = {tensor.method.split()[0] for tensor in manifest.tensors if tensor.method and len(tensor.shape) == 2}
    in_parts = any(tensor.parts for tensor in manifest.tensors)
    return not manifest.is_adapter and not in_parts and all(method_class(name).low_rank for name in used)


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that the figures depend on, by name."""
    packages = {name: version(name) for name in ("deltamend", "ml_dtypes", "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}
