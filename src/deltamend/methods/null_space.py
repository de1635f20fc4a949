"""A soft projection of the update onto what the base model's own activations leave free."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, FilePath, field_serializer
from scipy.linalg import cho_factor, cho_solve

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.safetensors_header import Header, read_header
from deltamend.errors import CheckpointError, FilterError, MethodError
from deltamend.methods.entry_file import name_and_content
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray

SAME_INPUT = "same_input"
"""Key of the file's metadata: weights that are given the input of another one, as JSON."""


class NullSpace(Method):
    """Δ* = Δ·(I + C/λ)⁻¹, the minimum of E‖Δ*x‖² + λ‖Δ* − Δ‖² over the inputs x the layer has in the base model.

    C = E[xxᵀ] is the second moment of the layer's inputs and λ = `ridge`·tr(C)/n. What the update does to inputs that are
    common in the base model's own texts is taken away, what it does elsewhere is kept: a soft form of the projection onto
    the null space of C (Wang et al. 2021, arXiv 2103.07113; Fang et al. 2024, arXiv 2410.02355), applied after training
    and not during it, which is ours. `deltamend calibrate activations` makes the file from texts that the base model
    writes itself, so no data are needed. A matrix that the file has nothing of, such as an embedding that is not tied to
    the head, is kept as fine-tuned. An infinite ridge is the fine-tuned model, a ridge of 0 the base. Needs a square
    of the width of the input in float64.
    """

    name: ClassVar[str] = "null-space"
    source: ClassVar[str] = "ours, after arXiv 2103.07113"
    summary: ClassVar[str] = "Keep what the update does to inputs that the base model's own texts do not have."
    whole_rows: ClassVar[bool] = True

    activations: FilePath = Field(
        description="Safetensors file of second moments, of `deltamend calibrate activations`."
    )
    ridge: float = Field(
        0.3, ge=0.0, allow_inf_nan=False, description="λ in units of the mean eigenvalue of C; more keeps more."
    )

    @field_serializer("activations")
    def _name_and_content(self, path: Path) -> str:
        return name_and_content(path, self.name)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Project one delta; see `Method.apply`."""
        if self.ridge == 0.0:
            return KeptDelta.reverted("the ridge is 0")
        moments = _moments(self.activations, context, delta.shape[1])
        if moments is None:
            return KeptDelta.identity("the file of activations has nothing of its input")
        mean = float(np.trace(moments)) / len(moments)
        if mean == 0.0:
            return KeptDelta.identity("its input was always 0")
        penalty = moments / (self.ridge * mean)
        penalty[np.diag_indices_from(penalty)] += 1.0
        try:
            factor = cho_factor(penalty, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError as error:
            raise FilterError(f"{self.activations.name} holds no second moments of it; compute them again") from error

        def projected(block: Block) -> FloatArray:
            # The matrix is symmetric, so rows are solved for as columns.
            solved = cho_solve(factor, block.values.T.astype(np.float64), overwrite_b=True, check_finite=False)
            block.values[:] = solved.T
            return block.values

        return KeptDelta("filtered", "", projected)


def _moments(path: Path, context: TensorContext, width: int) -> npt.NDArray[np.float64] | None:
    """C of the columns of a delta, (width, width); None where the file has nothing of the tensor.

    Raises:
        FilterError: it has moments of another shape, or numbers that are none.
        MethodError: the file cannot be read.
    """
    tensor = context.name if context.place is None else context.place.tensor
    header, same = _read(path, path.stat().st_mtime_ns if path.exists() else 0)
    stored = same.get(tensor, tensor)
    entry = next((one for one in header.entries if one.name == stored), None)
    if entry is None:
        return None
    first, last = (0, width) if context.place is None or context.place.columns is None else context.place.columns
    if len(entry.shape) != 2 or entry.shape[0] != entry.shape[1] or entry.dtype != "F32" or last > entry.shape[0]:
        raise FilterError(f"{path.name} holds it as {entry.dtype} {list(entry.shape)}; compute it for this model")
    whole = np.memmap(path, NUMPY_DTYPES[entry.dtype], "r", entry.start, entry.shape)
    moments: npt.NDArray[np.float64] = whole[first:last, first:last].astype(np.float64)
    if not np.isfinite(moments).all() or (np.diagonal(moments) < 0.0).any():
        raise FilterError(f"{path.name} holds no second moments of it; compute them again")
    return moments


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int) -> tuple[Header, dict[str, str]]:  # noqa: ARG001 - read again when the file changes
    try:
        header = read_header(path)
        same = json.loads(header.metadata.get(SAME_INPUT, "{}"))
    except (CheckpointError, ValueError) as error:
        raise MethodError(f"{path}: is no file of `deltamend calibrate activations` ({error})") from error
    if not isinstance(same, dict) or not all(isinstance(other, str) for other in same.values()):
        raise MethodError(f"{path}: its metadata is not that of `deltamend calibrate activations`; make it again")
    return header, same
