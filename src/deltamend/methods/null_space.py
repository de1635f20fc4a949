"""Null-space: remove from the update what acts on inputs that are common in the base model's own texts."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, FilePath, field_serializer
from scipy.optimize import brentq

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.safetensors_header import Header, read_header
from deltamend.errors import CheckpointError, FilterError, MethodError
from deltamend.methods.file_parameters import name_and_content
from deltamend.methods.method import Counts, Deltas, KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray

SAME_INPUT = "same_input"
"""Key in the metadata of an activations file: JSON that maps a weight to the weight whose input it shares."""
VERSION = "4"
"""Version of the format of an activations file; stored under the key `activations` of its metadata."""
EIGENVALUES = ".eigenvalues"
"""Suffix of the tensor that holds the eigenvalues of a weight; the eigenvectors have the name of the weight itself."""

_DECADES = 12.0
"""λ is searched within this many powers of ten above and below the mean eigenvalue."""

Array = npt.NDArray[np.float64]


class NullSpace(Method):
    """Δ* = Δ·(I + C/λ)⁻¹, which minimises E‖Δ*x‖² + λ‖Δ* − Δ‖², where x is an input of the layer in the base model.

    C = E[xxᵀ] is the second moment of the layer's inputs, each scaled to length 1, over texts that the base model writes
    itself; so no data are needed. `deltamend calibrate activations` computes it and writes the file. What the update does
    to inputs that are common in these texts is removed, and what it does to other inputs is kept. This is a soft form of
    the projection onto the null space of C (Wang et al. 2021, arXiv 2103.07113; Fang et al. 2024, arXiv 2410.02355). That
    it is made after training and not during it is ours.

    λ is chosen for each matrix: the largest for which the relative change of the layer's outputs, √(E‖Δ*x‖²/E‖W_base x‖²),
    is at most `effect`, and at most `share` times what it is for Δ. Where `share` is 1, an update whose relative change is
    no larger than `effect` is therefore kept whole. With `ridge`, λ = ridge·tr(C)/n instead.

    A matrix whose inputs the file does not hold is kept as fine-tuned, such as an embedding that is not tied to the head, or
    the experts of a mixture.
    """

    name: ClassVar[str] = "null-space"
    source: ClassVar[str] = "ours, after arXiv 2103.07113"
    summary: ClassVar[str] = (
        "Remove what the update does to inputs that are common in the base model's own texts; keep the rest."
    )
    whole_rows: ClassVar[bool] = True

    activations: FilePath = Field(
        description="Safetensors file that `deltamend calibrate activations` made from the base model."
    )
    effect: float = Field(
        0.001,
        ge=0.0,
        le=10.0,
        description="Largest change of a layer's outputs on the base model's own texts, relative to these outputs (root mean square).",
    )
    share: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Largest change of a layer's outputs on the base model's own texts, relative to the change that the whole update makes.",
    )
    ridge: float | None = Field(
        None,
        ge=0.0,
        description="λ in units of the mean eigenvalue of C, the same for every matrix; replaces `effect` and `share`.",
    )

    @field_serializer("activations")
    def _name_and_content(self, path: Path) -> str:
        return name_and_content(path, self.name)

    def survey(self, deltas: Deltas) -> None:
        """Refuse a file that was computed from another model, and so holds the inputs of none of the matrices.

        Raises:
            MethodError: the file holds the inputs of no matrix, or cannot be read.
        """
        refuse_other_model(self.activations, deltas)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Remove from one delta what acts on common inputs; see `Method.apply`."""
        if self.ridge == 0.0 or (self.ridge is None and 0.0 in (self.effect, self.share)):
            return KeptDelta.reverted("nothing is kept by the parameters")
        inputs = inputs_of(self.activations, context, delta.shape[1])
        if inputs is None:
            return KeptDelta.identity("the file of activations has nothing of its input")
        mean = float(inputs.values.sum()) / delta.shape[1]
        if mean == 0.0:
            return KeptDelta.identity("its input was always 0")
        if self.ridge is not None:
            strength, reason = self.ridge * mean, ""
        else:
            before, after, strength = self._strength(delta, context, inputs, mean)
            if strength == np.inf:
                return KeptDelta.identity(f"its effect on the base's own texts is {before:.2g}")
            reason = f"effect on the base's own texts {before:.2g} before, {after:.2g} after"
        taken = inputs.values / (inputs.values + strength)

        def bent(block: Block) -> FloatArray:
            vectors = inputs.vectors.astype(block.values.dtype, copy=False)
            coordinates = block.values @ vectors.T
            coordinates *= taken.astype(coordinates.dtype)
            block.values[:] -= coordinates @ vectors
            return block.values

        return KeptDelta("filtered", reason, bent)

    def _strength(
        self, delta: Blocks, context: TensorContext, inputs: Inputs, mean: float
    ) -> tuple[float, float, float]:
        """The effect of Δ, the effect of Δ*, and the λ that gives it; λ is infinite where Δ is kept whole."""
        effects = effect_by_direction(delta, context, inputs)
        if effects is None:  # what the base leaves at 0 may not become another value
            acts = any(float(squares(block.values, inputs.vectors) @ inputs.values) for block in delta)
            return (np.inf if acts else 0.0), 0.0, mean * 10.0**-_DECADES

        def effect(decade: float) -> float:
            strength = mean * 10.0**decade
            return float(np.sqrt(effects @ (strength / (inputs.values + strength)) ** 2))

        before = float(np.sqrt(effects.sum()))
        allowed = min(self.effect, self.share * before)
        if before <= allowed:
            return before, before, np.inf
        low, high = -_DECADES, _DECADES
        if effect(low) >= allowed:
            decade = low
        elif effect(high) <= allowed:
            decade = high
        else:
            decade = float(brentq(lambda at: effect(at) - allowed, low, high, xtol=1e-10))
        return before, effect(decade), mean * 10.0**decade


def refuse_other_model(activations: Path, deltas: Deltas) -> None:
    """Refuse a file that was computed from another model, and so holds the inputs of none of the matrices.

    Raises:
        MethodError: the file holds the inputs of no matrix, or cannot be read.
    """

    def known(_delta: Blocks, context: TensorContext) -> Counts:
        header, same = _read(activations, activations.stat().st_mtime_ns)
        tensor = weight_of(context)
        return np.array([1, same.get(tensor, tensor) in {entry.name for entry in header.entries}], np.int64)

    matrices, found = deltas.total(known)
    if matrices and not found:
        raise MethodError(
            f"{activations.name} holds the inputs of none of the matrices; compute it from the base of this pair"
        )


class Inputs(NamedTuple):
    """The second moment of the inputs of a delta's n columns: C = Σ valuesᵢ vectorsᵢᵀ vectorsᵢ.

    Attributes:
        vectors: (k, n), orthonormal rows.
        values: (k,), above 0.
    """

    vectors: FloatArray
    values: Array


def weight_of(context: TensorContext) -> str:
    """The name under which the file holds the inputs of a delta's columns, which is that of the weight in BASE."""
    if context.inputs_of is not None:
        return context.inputs_of
    return context.name if context.place is None else context.place.tensor


def effect_by_direction(delta: Blocks, context: TensorContext, inputs: Inputs) -> Array | None:
    """What Δ does to each principal direction of a layer's inputs, relative to the layer's outputs; None where these are 0.

    Returns:
        (k,) float64: valuesᵢ·‖Δvᵢ‖²/E‖W_base x‖². The root of their sum is the effect of Δ.

    Raises:
        FilterError: Δ holds NaN or infinity.
    """
    updates, weights = np.zeros(len(inputs.values)), 0.0
    for block in delta:
        updates += squares(block.values, inputs.vectors)
        base = context.base.read(block.start, block.stop)
        weights += float(squares(base, inputs.vectors) @ inputs.values)
    if not np.isfinite(updates).all():
        raise FilterError("the delta holds NaN or infinity")
    return updates * inputs.values / weights if weights else None


def squares(values: FloatArray, vectors: FloatArray) -> Array:
    """Σ over the rows of (row·vectorᵢ)², (k,) float64."""
    coordinates = values @ vectors.astype(values.dtype, copy=False).T
    found: Array = np.einsum("ij,ij->j", coordinates, coordinates, dtype=np.float64)
    return found


def inputs_of(path: Path, context: TensorContext, width: int) -> Inputs | None:
    """The inputs of a delta's columns; None where the file does not hold them.

    Raises:
        FilterError: it holds them in another shape, or holds numbers that are no second moments.
        MethodError: the file cannot be read.
    """
    tensor = weight_of(context)
    header, same = _read(path, path.stat().st_mtime_ns if path.exists() else 0)
    stored = same.get(tensor, tensor)
    vectors, values = (_stored(path, header, name) for name in (stored, f"{stored}{EIGENVALUES}"))
    if vectors is None or values is None:
        return None
    first, last = (0, width) if context.place is None or context.place.columns is None else context.place.columns
    whole = context.place is None or context.place.columns is None
    fits = vectors.ndim == 2 and values.shape == vectors.shape[:1] and last - first == width
    if not fits or (last != vectors.shape[1] if whole else last > vectors.shape[1]):
        raise FilterError(f"{path.name} holds its inputs as {list(vectors.shape)}; compute it for this model")
    known = np.asarray(values, np.float64)
    if not (np.isfinite(vectors).all() and np.isfinite(known).all() and (known >= 0.0).all()):
        raise FilterError(f"{path.name} holds no second moments of its inputs; compute it again")
    if width == vectors.shape[1]:
        return Inputs(vectors, known)
    some = vectors[:, first:last].astype(np.float64)
    values_of_some, vectors_of_some = np.linalg.eigh(some.T * known @ some)
    return Inputs(vectors_of_some.T.astype(np.float32), np.maximum(values_of_some, 0.0))


def _stored(path: Path, header: Header, name: str) -> npt.NDArray[Any] | None:
    for entry in header.entries:
        if entry.name == name:
            if entry.dtype != "F32":
                raise FilterError(f"{path.name} holds its inputs as {entry.dtype}; compute it for this model")
            return np.memmap(path, NUMPY_DTYPES[entry.dtype], "r", entry.start, entry.shape)
    return None


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int) -> tuple[Header, dict[str, str]]:  # noqa: ARG001 - read again when the file changes
    try:
        header = read_header(path)
        same = json.loads(header.metadata.get(SAME_INPUT, "{}"))
    except (CheckpointError, ValueError) as error:
        raise MethodError(f"{path}: is no file of `deltamend calibrate activations` ({error})") from error
    known = header.metadata.get("activations") == VERSION
    if not known or not isinstance(same, dict) or not all(isinstance(other, str) for other in same.values()):
        raise MethodError(f"{path}: its metadata is not that of `deltamend calibrate activations`; make it again")
    return header, same
