"""Compute the singular values of a delta, and its leading singular vectors.

Each algorithm gives a `Decomposition`: singular values on demand, and an orthonormal basis of the leading singular vectors
on the shorter side. Most start from the Gram matrix G = ΔΔᵀ (ΔᵀΔ for a tall Δ), whose eigenvalues are σ²; this squares the
condition number. The last resort is an SVD of the triangular factor of Δ, which squares nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deltamend.spectrum import blas, fortran_calls, lapack
from deltamend.spectrum.blocks import Blocks, FloatArray
from deltamend.spectrum.fortran_calls import LapackError

_ALIGNMENT = 64
_LAPACK_BLOCK = 64
_CHUNK_ENTRIES = 2**20
# What checked vectors may be off by, in roundoffs of their dtype. Measured at most: 5 in float32, where the vectors of T
# are computed in float64, and 360 in float64, from `stemr`.
_TOLERANCE = {np.dtype(np.float32): 50.0, np.dtype(np.float64): 4000.0}


class UnsureError(ArithmeticError):
    """The answer of a route may be wrong; the next, more exact route must be taken."""


class Workspace:
    """Scratch memory that one thread may reuse from one matrix to the next.

    The first access to fresh memory costs more than most of the arithmetic that is done on it. A workspace holds about two
    p×p matrices, where p is the largest shorter side so far, until it is dropped. Two threads may not share one.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> FloatArray:
        """A column-major array over the buffer `name`, aligned and uninitialised; it replaces the last one so named."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size + _ALIGNMENT:
            self._buffers.pop(name, None)
            buffer = self._buffers[name] = np.empty(size + _ALIGNMENT, np.uint8)
        start = -buffer.ctypes.data % _ALIGNMENT
        flat: FloatArray = buffer[start : start + size].view(dtype)
        return flat.reshape(shape, order="F")


class Decomposition(Protocol):
    """The singular values of a delta, descending, and their vectors on the shorter side."""

    @property
    def route(self) -> str:
        """Name of the algorithm and its precision, for the report."""

    @property
    def precision(self) -> float:
        """Unit roundoff ε: σ is known to about ε·σ₁²/σ if `squares`, and else to ε·σ₁."""

    @property
    def squares(self) -> bool:
        """Whether singular values come from eigenvalues of the Gram matrix."""

    def value(self, index: int) -> float:
        """Singular value number `index`, from 0 for the largest."""

    def values(self) -> FloatArray:
        """All min(m, n) singular values, float64, descending."""

    def count_above(self, bound: float) -> int:
        """How many singular values exceed `bound`."""

    def leading(self, count: int) -> tuple[FloatArray, FloatArray]:
        """The first `count` singular values (float64) and their vectors (p, count), orthonormal.

        Raises:
            UnsureError: the vectors fail a check.
            LapackError: LAPACK failed.
        """


@dataclass(frozen=True)
class Gram:
    """G = Δ Δᵀ on the shorter side.

    Args:
        square: (p, p) column-major; only the lower triangle is meaningful.
        energy: trace of G, ‖Δ‖_F².
    """

    square: FloatArray
    energy: float


def gram(blocks: Blocks, dtype: npt.DTypeLike, workspace: Workspace) -> Gram:
    """The Gram matrix on the shorter side, summed over blocks in `dtype`.

    Raises:
        UnsureError: `dtype` is float32 and the blocks are float64.
    """
    m, n = blocks.shape
    p = min(m, n)
    square = workspace.array("gram", (p, p), dtype)
    beta = 0.0
    for block in blocks:
        values = block.values if m <= n else block.values.T  # (p, length)
        if np.dtype(dtype).itemsize < values.dtype.itemsize:
            raise UnsureError("the delta is float64")
        for part in _in_dtype(values, dtype, workspace):
            blas.syrk(part, square, beta=beta)
            beta = 1.0
    return Gram(square, float(np.sum(square.diagonal(), dtype=np.float64)))


def _in_dtype(values: FloatArray, dtype: npt.DTypeLike, workspace: Workspace) -> Iterator[FloatArray]:
    """`values` (p, length) as it is where SYRK can take it, else converted piece by piece into one small buffer."""
    if values.dtype == dtype and (fortran_calls.column_major(values) or fortran_calls.column_major(values.T)):
        yield values
        return
    p, length = values.shape
    step = max(1, min(length, _CHUNK_ENTRIES // p))
    row_major = values.strides[0] > values.strides[1]
    for start in range(0, length, step):
        source = values[:, start : start + step]
        width = source.shape[1]
        piece = workspace.array("chunk", (width, p) if row_major else (p, width), dtype)
        piece = piece.T if row_major else piece
        np.copyto(piece, source)
        yield piece


@dataclass
class Tridiagonal:
    """G = Q·T·Qᵀ with T tridiagonal: one reduction, then any eigenvalue by bisection and any vectors by `stemr`.

    T is kept in float64 in either precision, as everything after the reduction is cheap.
    """

    gram: Gram
    workspace: Workspace
    squares: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        square = self.gram.square
        p, dtype = square.shape[0], square.dtype
        self._reflectors = self.workspace.array("reduced", (p, p), dtype)
        np.copyto(self._reflectors, square)
        d, e, self._tau = lapack.sytrd(self._reflectors, self._work(p))
        self._d, self._e = d.astype(np.float64), e.astype(np.float64)
        self._values: FloatArray | None = None
        self._bisected: dict[int, float] = {}

    @property
    def route(self) -> str:
        """`tridiagonal-float32` or `tridiagonal-float64`."""
        return f"tridiagonal-{self.gram.square.dtype}"

    @property
    def precision(self) -> float:
        """Unit roundoff of the Gram matrix."""
        return float(np.finfo(self.gram.square.dtype).eps)

    def _work(self, columns: int) -> FloatArray:
        size = _LAPACK_BLOCK * columns + _LAPACK_BLOCK * (_LAPACK_BLOCK + 1)
        return self.workspace.array("lapack", (size,), self.gram.square.dtype)

    def value(self, index: int) -> float:
        """One singular value by bisection."""
        if self._values is not None:
            return float(self._values[index])
        if index not in self._bisected:
            square = lapack.bisect(self._d, self._e, self._d.size - 1 - index)
            self._bisected[index] = math.sqrt(max(0.0, square))
        return self._bisected[index]

    def values(self) -> FloatArray:
        """All of them, by the square-root-free QR iteration."""
        if self._values is None:
            self._values = np.sqrt(np.maximum(lapack.sterf(self._d, self._e)[::-1], 0.0))
        return self._values

    def count_above(self, bound: float) -> int:
        """By one Sturm sequence."""
        if not math.isfinite(bound * bound):
            return 0
        return lapack.count_above(self._d, self._e, bound * bound)

    def leading(self, count: int) -> tuple[FloatArray, FloatArray]:
        """`stemr` on T in float64, back-transformed, orthonormalised and checked against G."""
        _, vectors = lapack.stemr(self._d, self._e, count)
        basis = np.array(vectors[:, ::-1], self.gram.square.dtype, order="F")
        lapack.ormtr(self._reflectors, self._tau, basis, self._work(count))
        return checked_ritz(self.gram, basis, self._work(count))


def checked_ritz(gram: Gram, basis: FloatArray, work: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Singular values from the Rayleigh quotients of `basis` on G, with the basis orthonormalised in place.

    Args:
        gram: of the delta.
        basis: (p, k) column-major; approximate leading eigenvectors, written.
        work: at least 64·k entries.

    Raises:
        UnsureError: the vectors were not orthonormal, or are not eigenvectors of G to within rounding.
    """
    tolerance = _tolerance(basis)
    scales = np.abs(lapack.orthonormalise(basis, work).astype(np.float64))
    departure = float(np.max(np.abs(scales - 1.0)))
    if not departure <= tolerance:
        raise UnsureError(f"the computed vectors are not orthonormal (off by {departure:.1e})")
    image = np.empty_like(basis, order="F")
    blas.symm(gram.square, basis, image)
    quotients = np.einsum("ik,ik->k", basis, image, dtype=np.float64)
    residual = float(np.max(np.linalg.norm(image - basis * quotients.astype(basis.dtype), axis=0)))
    if not residual <= tolerance * float(quotients[0]):
        raise UnsureError(
            f"the computed vectors are not eigenvectors (residual {residual / float(quotients[0]):.1e}·σ₁²)"
        )
    return np.sqrt(np.maximum(quotients, 0.0)), basis


def _tolerance(basis: FloatArray) -> float:
    return _TOLERANCE[basis.dtype] * float(np.finfo(basis.dtype).eps)


@dataclass(frozen=True)
class Decomposed:
    """A decomposition whose values and vectors are all there.

    Args:
        route: name for the report.
        precision: unit roundoff.
        squares: whether it came from a Gram matrix.
        all_values: (p,), float64, descending.
        vectors: (p, p), columns in the same order.
    """

    route: str
    precision: float
    squares: bool
    all_values: FloatArray
    vectors: FloatArray

    def value(self, index: int) -> float:
        """Singular value number `index`."""
        return float(self.all_values[index])

    def values(self) -> FloatArray:
        """All singular values."""
        return self.all_values

    def count_above(self, bound: float) -> int:
        """By counting."""
        return int(np.count_nonzero(self.all_values > bound))

    def leading(self, count: int) -> tuple[FloatArray, FloatArray]:
        """The first columns."""
        basis = np.asfortranarray(self.vectors[:, :count])
        departure = float(np.max(np.abs(basis.T @ basis - np.eye(count, dtype=basis.dtype))))
        if not departure <= _tolerance(basis):
            raise UnsureError(f"the computed vectors are not orthonormal (off by {departure:.1e})")
        return self.all_values[:count], basis


def by_svd(blocks: Blocks) -> Decomposed:
    """Float64 SVD of the triangular factor of Δ: nothing is squared, and memory stays at a few p×p squares.

    The QR factorisation is updated block by block: R ← qr([R; block]). Slow, and exact to ε·σ₁; the last resort.

    Raises:
        LapackError: the SVD did not converge.
    """
    m, n = blocks.shape
    p = min(m, n)
    factor = np.zeros((0, p))
    step = max(p, _CHUNK_ENTRIES // p)
    try:
        for block in blocks:
            rows = block.values.T if m <= n else block.values  # (length, p)
            for start in range(0, rows.shape[0], step):
                stacked = np.concatenate([factor, rows[start : start + step].astype(np.float64)])
                factor = np.asarray(np.linalg.qr(stacked, mode="r"))
        _, values, vt = np.linalg.svd(factor, full_matrices=False)
    except np.linalg.LinAlgError as error:
        raise LapackError(f"the full SVD failed: {error}") from error
    return Decomposed("svd-float64", float(np.finfo(np.float64).eps), False, values, vt.T)


def by_torch(blocks: Blocks, device: str) -> tuple[Decomposed, float]:
    """Gram matrix and all of its eigenvectors in float64 on a torch device; also returns ‖Δ‖_F².

    On an H200 it is faster than the CPU from about 1024 on the shorter side on (benchmarks/results/speed/on_gpu.md).

    Raises:
        LapackError: the eigenvalue iteration did not converge.
    """
    import torch  # only here: it takes longer to import than most repairs take

    m, n = blocks.shape
    p = min(m, n)
    square = torch.zeros((p, p), dtype=torch.float64, device=device)
    for block in blocks:
        values = torch.from_numpy(np.array(block.values)).to(device).double()
        square += values @ values.T if m <= n else values.T @ values
    energy = float(square.trace())
    if not math.isfinite(energy):
        return Decomposed("torch-eigh", 0.0, True, np.zeros(p), np.zeros((p, 0))), energy
    try:
        eigenvalues, vectors = torch.linalg.eigh(square)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise LapackError(f"torch.linalg.eigh failed: {error}") from error
    values = eigenvalues.clamp(min=0.0).sqrt().flip(0).cpu().numpy()
    return Decomposed(
        "torch-eigh", float(np.finfo(np.float64).eps), True, values, vectors.flip(1).cpu().numpy()
    ), energy
