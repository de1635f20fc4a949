"""Fisher-weighted interpolation, from a file of squared gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, field_serializer

from deltamend.checkpoint.dtypes import FLOAT_NAMES, NUMPY_DTYPES
from deltamend.checkpoint.safetensors_header import Header, HeaderEntry, read_header
from deltamend.errors import CheckpointError, FilterError, MethodError
from deltamend.methods.elementwise import parts
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


class Fisher(Method):
    """Δ* = Δ·αF/(αF + (1 − α)F₀), entry by entry: Fisher merging of fine-tuned and base (Matena & Raffel 2022).

    F is the diagonal of the Fisher information at the fine-tuned weights and F₀ that at the base, as safetensors files
    with one tensor of mean squared gradients under each weight's name. Without a file for the base F₀ is the mean of F
    over the tensor (ours). Where both are equal it is WiSE-FT with α; entries that both call irrelevant are treated so.
    deltamend does not compute Fisher files yet.
    """

    name: ClassVar[str] = "fisher"
    source: ClassVar[str] = "arXiv 2111.09832"
    summary: ClassVar[str] = "Interpolate, weighted by how much each entry matters; needs a Fisher file."

    fisher: Path = Field(description="Safetensors file of squared gradients at the fine-tuned weights.")
    base_fisher: Path | None = Field(None, description="The same at the base weights; none takes the mean of `fisher`.")
    alpha: float = Field(0.5, ge=0.0, le=1.0, description="Weight of the fine-tuned model.")

    @field_serializer("fisher", "base_fisher")
    def _name_and_content(self, path: Path | None) -> str | None:
        """A path says nothing on another machine, and what lies there may change."""
        return None if path is None else f"{path.name} sha256:{_sha256(path)}"

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Weight one delta; see `Method.apply`."""
        if self.alpha == 0.0:
            return KeptDelta.reverted("alpha is 0")
        if self.alpha == 1.0:
            return KeptDelta.identity("alpha is 1")
        ours = _FisherTensor(self.fisher, context.name, delta.shape)
        theirs = None if self.base_fisher is None else _FisherTensor(self.base_fisher, context.name, delta.shape)
        mean = ours.mean()

        def weighted(block: Block) -> FloatArray:
            for part in parts(block, delta.shape):
                row, column, values = part
                where = slice(row, row + values.shape[0]), slice(column, column + values.shape[1])
                importance = self.alpha * ours.read(*where)
                other = (1.0 - self.alpha) * (mean if theirs is None else theirs.read(*where))
                total = importance + other
                share = np.divide(importance, total, out=np.full(values.shape, self.alpha), where=total > 0.0)
                values *= share
            return block.values

        return KeptDelta("filtered", "", weighted)


class _FisherTensor:
    """One tensor of a Fisher file, mapped; at least as large as the matrix in both directions."""

    def __init__(self, path: Path, name: str, shape: tuple[int, int]) -> None:
        self._name, self._path = name, path
        entry = _entry(path, name)
        stored = entry.shape if len(entry.shape) == 2 else (int(np.prod(entry.shape)), 1)
        if entry.dtype not in FLOAT_NAMES or stored[0] < shape[0] or stored[1] != shape[1]:
            raise FilterError(f"{path.name} holds it as {entry.dtype} {list(entry.shape)}; compute it for this model")
        self._values = np.memmap(path, NUMPY_DTYPES[entry.dtype], "r", entry.start, stored)[: shape[0]]

    def read(self, rows: slice, columns: slice) -> FloatArray:
        """A part as float64; numbers that are no squares are refused."""
        values: FloatArray = self._values[rows, columns].astype(np.float64)
        if values.size and not (values.min() >= 0.0 and np.isfinite(values.max())):
            raise FilterError(f"{self._path.name} holds numbers that are not squares; compute it again")
        return values

    def mean(self) -> float:
        """Mean over all entries."""
        return sum(self._sums()) / self._values.size

    def _sums(self) -> Iterator[float]:
        height, width = self._values.shape
        step = max(1, (1 << 18) // width)
        for first in range(0, height, step):
            yield float(self.read(slice(first, first + step), slice(None)).sum())


def _entry(path: Path, name: str) -> HeaderEntry:
    for entry in _header(path, path.stat().st_mtime_ns if path.exists() else 0).entries:
        if entry.name == name:
            return entry
    raise FilterError(f"{path.name} holds no tensor of this name; compute it for this model")


@lru_cache(maxsize=4)
def _header(path: Path, mtime_ns: int) -> Header:  # noqa: ARG001 - read again when the file changes
    try:
        return read_header(path)
    except CheckpointError as error:
        raise MethodError(f"method 'fisher': {error}") from error


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise MethodError(f"method 'fisher': there is no file {path}; give a safetensors file of squared gradients")
    return _hashed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _hashed(path: Path, mtime_ns: int) -> str:  # noqa: ARG001 - read again when the file changes
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
