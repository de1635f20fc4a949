"""What a repair did, for programs; `deltamend.json` holds the same figures."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from deltamend.checkpoint.manifest import Manifest, TensorRecord
from deltamend.errors import option, spell, spelled_in_python
from deltamend.methods.registry import method_class
from deltamend.repairing.options import Recommendation

_LOSS_WORTH_A_WARNING = 0.1
"""Share of ‖Δ*‖, or of what was taken away, lost in the cast above which bf16 output was seen to undo a repair."""


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Attributes:
        out: the folder that was written.
        manifest: the content of its `deltamend.json`.
        written: False where `resume` found that OUT was whole already.
        recommendation: what "auto" was found to stand for; None where a method was named.
    """

    out: Path
    manifest: Manifest
    written: bool = True
    recommendation: Recommendation | None = None

    @property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """One record for each tensor, in the order of the output's files."""
        return self.manifest.tensors

    @property
    def kept_energy(self) -> float:
        """Σ‖Δ*‖² / Σ‖Δ‖² over all matrices; 1 where every delta is zero."""
        return self.manifest.kept_energy

    @property
    def realised_error(self) -> float:
        """‖cast(W*) − W_base − Δ*‖ / ‖Δ*‖ over all matrices; 0 where Δ* is zero."""
        return self.manifest.realised_error

    @property
    def undone_by_rounding(self) -> float | None:
        """‖cast(W*) − W_base − Δ*‖ / ‖Δ − Δ*‖ over all matrices; None where nothing was taken away or it was not measured."""
        return self.manifest.undone_by_rounding

    @property
    def warning(self) -> str | None:
        """What rounding to the stored dtype spoils of the repair, and what to do; None where it spoils little."""
        text = rounding_warning(self.manifest)
        return None if text is None else spell(text, spelled_in_python)


def rounding_warning(manifest: Manifest) -> str | None:
    """A warning where the written weights hold much less than the method kept, as text with `errors.option` in it."""
    instead = f"write them with {option('out_dtype', 'fp32')}"
    if _fits_an_adapter(manifest):
        instead += f" or {option('output', 'adapter')}"
    if manifest.realised_error > _LOSS_WORTH_A_WARNING:
        return f"the written weights hold much less than the filter kept; {instead}"
    undone = manifest.undone_by_rounding or 0.0
    if undone > _LOSS_WORTH_A_WARNING:
        return f"this rounding is {100 * undone:.2f} % of what the repair took away, so that part of the repair may be lost; {instead}"
    return None


def _fits_an_adapter(manifest: Manifest) -> bool:
    """Whether what a checkpoint holds could be written as an adapter in its place; see `adapter_layout.plan_adapter`."""
    used = {tensor.method.split()[0] for tensor in manifest.tensors if tensor.method and len(tensor.shape) == 2}
    in_parts = any(tensor.parts for tensor in manifest.tensors)
    return not manifest.is_adapter and not in_parts and all(method_class(name).low_rank for name in used)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the figures depend on."""
    packages = {name: version(name) for name in ("deltamend", "ml_dtypes", "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}
