"""A soft projection of the update onto what the base model's own activations leave free."""

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
"""Key of the file's metadata: weights that are given the input of another one, as JSON."""
VERSION = "4"
"""Of what such a file holds; under the key `activations` of its metadata."""
EIGENVALUES = ".eigenvalues"
"""What the name of a weight's eigenvalues ends with; its eigenvectors go by its own name."""

_DECADES = 12.0
"""λ is looked for so many powers of ten around the mean eigenvalue."""

Array = npt.NDArray[np.float64]


class NullSpace(Method):
    """Δ* = Δ·(I + C/λ)⁻¹, the minimum of E‖Δ*x‖² + λ‖Δ* − Δ‖² over the directions x of the layer's inputs in the base.

    C = E[xxᵀ], each x scaled to length 1, is over texts that the base model writes itself, so no data are needed;
    `deltamend calibrate activations` makes the file. What the update does to inputs that are common there is taken away,
    what it does elsewhere is kept: a soft form of the projection onto the null space of C (Wang et al. 2021, arXiv
    2103.07113; Fang et al. 2024, arXiv 2410.02355), made after training and not during it, which is ours.

    λ of each matrix is the largest with √(E‖Δ*x‖²/E‖W_base x‖²) ≤ `effect`, and ≤ `share` of what it is for Δ. Where
    `share` is 1, an update that does no more than `effect` is kept whole. With `ridge`, λ = ridge·tr(C)/n instead. A matrix
    that the file has nothing of, such as an embedding that is not tied to the head or a router's experts, is kept as
    fine-tuned.
    """

    name: ClassVar[str] = "null-space"
    source: ClassVar[str] = "ours, after arXiv 2103.07113"
    summary: ClassVar[str] = "Keep what the update does to inputs that the base model's own texts do not have."
    whole_rows: ClassVar[bool] = True

    activations: FilePath = Field(
        description="Safetensors file that `deltamend calibrate activations` made of the base."
    )
    effect: float = Field(
        0.001,
        ge=0.0,
        le=10.0,
        description="Largest change of a layer's outputs on the base's own texts, in units of these outputs (root mean square).",
    )
    share: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Largest change of a layer's outputs on the base's own texts, as a share of what the whole update does.",
    )
    ridge: float | None = Field(
        None,
        ge=0.0,
        description="λ in units of the mean eigenvalue of C, the same for every matrix, in place of `effect` and `share`.",
    )

    @field_serializer("activations")
    def _name_and_content(self, path: Path) -> str:
        return name_and_content(path, self.name)

    def survey(self, deltas: Deltas) -> None:
        """Refuse a file of another model, of which no matrix would be bent.

        Raises:
            MethodError: the file has nothing of any matrix, or cannot be read.
        """

        def known(_delta: Blocks, context: TensorContext) -> Counts:
            header, same = _read(self.activations, self.activations.stat().st_mtime_ns)
            tensor = _weight_of(context)
            return np.array([1, same.get(tensor, tensor) in {entry.name for entry in header.entries}], np.int64)

        matrices, found = deltas.total(known)
        if matrices and not found:
            raise MethodError(
                f"{self.activations.name} has nothing of any matrix; compute it for the base of this pair"
            )

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Bend one delta; see `Method.apply`."""
        if self.ridge == 0.0 or (self.ridge is None and 0.0 in (self.effect, self.share)):
            return KeptDelta.reverted("nothing is kept by the parameters")
        inputs = _inputs(self.activations, context, delta.shape[1])
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
        self, delta: Blocks, context: TensorContext, inputs: _Inputs, mean: float
    ) -> tuple[float, float, float]:
        """The effect of Δ, that of Δ*, and the λ that gives it, infinite where Δ is kept whole."""
        updates, weights = np.zeros(len(inputs.values)), 0.0
        for block in delta:
            updates += _squares(block.values, inputs.vectors)
            base = context.base.read(block.start, block.stop)
            weights += float(_squares(base, inputs.vectors) @ inputs.values)
        if not np.isfinite(updates).all():
            raise FilterError("the delta holds NaN or infinity")
        if weights == 0.0:  # what the base leaves at 0 may not become another value
            return (np.inf if updates @ inputs.values else 0.0), 0.0, mean * 10.0**-_DECADES
        effects = updates * inputs.values / weights

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


class _Inputs(NamedTuple):
    """What is known of the inputs of a delta's n columns: C = Σ valuesᵢ vectorsᵢᵀ vectorsᵢ.

    Attributes:
        vectors: (k, n), orthonormal rows.
        values: (k,), above 0.
    """

    vectors: FloatArray
    values: Array


def _weight_of(context: TensorContext) -> str:
    """The name under which the file has what the columns of a delta are given: that of BASE."""
    if context.inputs_of is not None:
        return context.inputs_of
    return context.name if context.place is None else context.place.tensor


def _squares(values: FloatArray, vectors: FloatArray) -> Array:
    """Σ over the rows of (row·vectorᵢ)², (k,) float64."""
    coordinates = values @ vectors.astype(values.dtype, copy=False).T
    found: Array = np.einsum("ij,ij->j", coordinates, coordinates, dtype=np.float64)
    return found


def _inputs(path: Path, context: TensorContext, width: int) -> _Inputs | None:
    """The inputs of a delta's columns; None where the file has nothing of the tensor.

    Raises:
        FilterError: it holds them in another shape, or numbers that are no second moments.
        MethodError: the file cannot be read.
    """
    tensor = _weight_of(context)
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
        return _Inputs(vectors, known)
    some = vectors[:, first:last].astype(np.float64)
    values_of_some, vectors_of_some = np.linalg.eigh(some.T * known @ some)
    return _Inputs(vectors_of_some.T.astype(np.float32), np.maximum(values_of_some, 0.0))


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
