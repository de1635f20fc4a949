"""The band route, which is faster than a tridiagonal reduction for large matrices of which few singular vectors are kept.

Half of a tridiagonal reduction is products of a matrix and a vector, whose speed is that of the memory. A reduction to a band
of width 64 is all products of matrices: G = Q·B·Qᵀ with B block tridiagonal. Then:

- The number of eigenvalues above x is the inertia of B − x, by block elimination (a block Sturm sequence) in float64.
- The median: a few such counts until no more than a handful of eigenvalues lie between x and the median, then inverse
  iteration at x for those, and counts to make sure that none was missed.
- The reduction is a block Lanczos process in disguise, so the leading eigenpairs of B are those of a leading submatrix
  (Golub & Underwood 1977). It is enlarged until the residuals vanish; the Sturm count says that all of them are there.

Where any of that does not converge, as for heavy-tailed or rank-deficient spectra, or where a rule wants the whole
spectrum, the tridiagonal reduction of the same Gram matrix takes over. The combination is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from deltamend.spectrum import blas, lapack
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.decompositions import Gram, Tridiagonal, UnsureError, Workspace, checked_ritz
from deltamend.spectrum.fortran_calls import LapackError

WIDTH = 64
_LEADING_SIZES = (640, 1024, 1536)  # of the leading submatrix
_LEADING_SHARE = 0.4  # of it, how many vectors may be asked for
_SEARCH_STEPS = 12
_NEAR = 2.0  # eigenvalues between the shift and the median that inverse iteration is trusted with
_SUBSPACE, _INVERSE_STEPS = 32, 10
_INVERSE_TOLERANCE = 1e-7
_BOUNDS = (1.0005, 1.005, 1.02)

_T = TypeVar("_T")


class _Reflectors(NamedTuple):
    """The Q of a reduction: V below the band of `square`, and one T for each panel."""

    square: FloatArray
    triangles: list[FloatArray]


def reduce_to_band(square: FloatArray, workspace: Workspace) -> _Reflectors:
    """Reduce a symmetric matrix to block tridiagonal form in place, panels of 64 columns at a time.

    Args:
        square: (p, p), column-major, float32 or float64; its lower triangle is read, and then holds B and below it V.
        workspace: scratch memory.
    """
    p, dtype = square.shape[0], square.dtype
    scratch = workspace.array("panels", (p, 2 * WIDTH), dtype)
    work = workspace.array("lapack", (WIDTH * WIDTH,), dtype)
    triangles: list[FloatArray] = []
    for start in range(0, p - 2 * WIDTH, WIDTH):
        below = start + WIDTH
        panel, rest = square[below:, start:below], square[below:, below:]
        v, y = scratch[: p - below, :WIDTH], scratch[: p - below, WIDTH:]
        _, tau = lapack.qr(panel, work)
        _unit_lower(panel, v)
        t = lapack.larft(v, tau)
        # QᵀAQ = A − V·Zᵀ − Z·Vᵀ with Y = A·V·T and Z = Y − ½·V·(Tᵀ·Vᵀ·Y).
        blas.symm(rest, v, y)
        blas.trmm(t, y)
        middle = np.empty((WIDTH, WIDTH), dtype, order="F")
        blas.gemm(v.T, y, middle)
        blas.gemm(v, np.asfortranarray(t.T @ middle), y, alpha=-0.5, beta=1.0)
        blas.syr2k(v, y, rest, alpha=-1.0)
        triangles.append(t)
    return _Reflectors(square, triangles)


def _unit_lower(panel: FloatArray, out: FloatArray) -> None:
    np.copyto(out, panel)
    out[:WIDTH] = np.tril(panel[:WIDTH], -1)
    np.fill_diagonal(out, 1)


def apply_q(reflectors: _Reflectors, vectors: FloatArray, rows: int) -> None:
    """vectors ← Q·vectors in place, for vectors (p, k) that are zero from row `rows` on."""  # noqa: D403
    square, triangles = reflectors
    v = np.empty((square.shape[0], WIDTH), square.dtype, order="F")
    for index in reversed(range(min(len(triangles), -(-rows // WIDTH) - 1))):
        below = (index + 1) * WIDTH
        part = v[below:]
        _unit_lower(square[below:, below - WIDTH : below], part)
        coefficients = np.empty((WIDTH, vectors.shape[1]), square.dtype, order="F")
        blas.gemm(part.T, vectors[below:], coefficients)
        coefficients = np.asfortranarray(triangles[index] @ coefficients)
        blas.gemm(part, coefficients, vectors[below:], alpha=-1.0, beta=1.0)


class BlockTridiagonal:
    """B in float64: blocks on the diagonal and below it, padded to a multiple of 64 by eigenvalues below all others."""

    def __init__(self, square: FloatArray) -> None:
        p = square.shape[0]
        count = -(-p // WIDTH)
        self.size = p
        self.diagonal = np.zeros((count, WIDTH, WIDTH))
        self.below = np.zeros((count - 1, WIDTH, WIDTH))
        padding = -float(np.mean(np.abs(square.diagonal()), dtype=np.float64))
        for index in range(count):
            start, stop = index * WIDTH, min((index + 1) * WIDTH, p)
            block = np.tril(square[start:stop, start:stop])
            self.diagonal[index] = np.eye(WIDTH) * padding
            self.diagonal[index, : stop - start, : stop - start] = block + np.tril(block, -1).T
            if index + 1 < count:
                under = square[stop : stop + WIDTH, start:stop]
                # Above the diagonal of a reduced panel is R; the last panel was left as it is.
                self.below[index, : under.shape[0]] = np.triu(under) if index + 2 < count else under

    def count_above(self, x: float) -> int:
        """How many eigenvalues exceed x."""
        return self.eliminate(x, inverses=False).above

    def eliminate(self, x: float, *, inverses: bool) -> _Elimination:
        """B − x = L·S·Lᵀ block by block: Sᵢ₊₁ = Dᵢ₊₁ − x − Rᵢ·Sᵢ⁻¹·Rᵢᵀ. The inertia of B − x is that of the Sᵢ.

        Raises:
            LapackError: x is an eigenvalue of a leading submatrix.
        """
        count = len(self.diagonal)
        shift, work = x * np.eye(WIDTH), np.empty(WIDTH * WIDTH)
        ratios = np.zeros((count, WIDTH, WIDTH))
        inverted = np.zeros((count if inverses else 0, WIDTH, WIDTH))
        correction: FloatArray = np.zeros((WIDTH, WIDTH))
        above = 0
        for index in range(count):
            columns = 2 * WIDTH if inverses else WIDTH
            solved = np.zeros((WIDTH, columns), order="F")
            if index + 1 < count:
                solved[:, :WIDTH] = self.below[index].T
            solved[:, WIDTH:] = np.eye(WIDTH, columns - WIDTH)
            above += lapack.sysv(np.asfortranarray(self.diagonal[index] - shift - correction), solved, work)
            ratios[index] = solved[:, :WIDTH]
            if inverses:
                inverted[index] = solved[:, WIDTH:]
            if index + 1 < count:
                correction = self.below[index] @ ratios[index]
        return _Elimination(above, ratios, inverted)

    def times(self, vectors: FloatArray) -> FloatArray:
        """B·vectors for vectors (blocks, 64, k)."""
        image = self.diagonal @ vectors
        image[1:] += self.below @ vectors[:-1]
        image[:-1] += self.below.transpose(0, 2, 1) @ vectors[1:]
        return np.asarray(image)

    def leading(self, blocks: int) -> FloatArray:
        """The leading submatrix of so many blocks, column-major."""
        size = blocks * WIDTH
        dense = np.zeros((size, size), order="F")
        for index in range(blocks):
            part = slice(index * WIDTH, (index + 1) * WIDTH)
            dense[part, part] = self.diagonal[index]
            if index + 1 < blocks:
                under = slice((index + 1) * WIDTH, (index + 2) * WIDTH)
                dense[under, part] = self.below[index]
                dense[part, under] = self.below[index].T
        return dense


class _Elimination(NamedTuple):
    """Blocks of an elimination: `above` eigenvalues are positive, ratios are Sᵢ⁻¹Rᵢᵀ, inverses Sᵢ⁻¹."""

    above: int
    ratios: FloatArray
    inverses: FloatArray

    def solve(self, vectors: FloatArray) -> FloatArray:
        """(B − x)⁻¹·vectors for vectors (blocks, 64, k)."""
        solved = vectors.copy()
        last = len(solved) - 1
        for index in range(last):
            solved[index + 1] -= self.ratios[index].T @ solved[index]
        solved = self.inverses @ solved
        for index in range(last - 1, -1, -1):
            solved[index] -= self.ratios[index] @ solved[index + 1]
        return np.asarray(solved)


def _until_bad(values: FloatArray, good: npt.NDArray[np.bool_]) -> list[float]:
    """The values before the first that is not good: beyond it, none can be numbered."""
    stop = int(np.argmin(good)) if not np.all(good) else values.size
    return [float(value) for value in values[:stop]]


class Band:
    """A `Decomposition` by band reduction that turns into a tridiagonal one where it fails."""

    squares = True

    def __init__(self, gram: Gram, workspace: Workspace) -> None:
        self.gram = gram
        self.workspace = workspace
        self.precision = float(np.finfo(gram.square.dtype).eps)
        self._tridiagonal: Tridiagonal | None = None
        self._found: dict[int, float] = {}
        self._counts: dict[float, int] = {}
        self._leading: tuple[FloatArray, FloatArray, FloatArray] | None = None
        reduced = workspace.array("reduced", gram.square.shape, gram.square.dtype)
        np.copyto(reduced, gram.square)
        self._reflectors = reduce_to_band(reduced, workspace)
        self._band = BlockTridiagonal(reduced)

    @property
    def route(self) -> str:
        """`band-float32`, or the tridiagonal route it turned into."""
        return f"band-{self.gram.square.dtype}" if self._tridiagonal is None else self._tridiagonal.route

    def value(self, index: int) -> float:
        """One singular value; just below the kept ones it may be an upper bound, at most 2% too high."""
        return self._either(lambda: math.sqrt(max(0.0, self._eigenvalue(index))), lambda t: t.value(index))

    def values(self) -> FloatArray:
        """All of them, by the tridiagonal route."""
        self._turn()
        return self._either(lambda: np.zeros(0), lambda t: t.values())

    def count_above(self, bound: float) -> int:
        """By one block Sturm sequence."""
        if not math.isfinite(bound * bound):
            return 0
        return self._either(lambda: self._count(bound * bound), lambda t: t.count_above(bound))

    def leading(self, count: int) -> tuple[FloatArray, FloatArray]:
        """From the leading submatrix of B, transformed back and checked against G."""
        return self._either(lambda: self._vectors(count), lambda t: t.leading(count))

    def _either(self, by_band: Callable[[], _T], by_tridiagonal: Callable[[Tridiagonal], _T]) -> _T:
        if self._tridiagonal is None:
            try:
                return by_band()
            except (UnsureError, LapackError):
                self._turn()
        assert self._tridiagonal is not None  # noqa: S101 - for the type checker
        return by_tridiagonal(self._tridiagonal)

    def _turn(self) -> None:
        if self._tridiagonal is None:
            self._tridiagonal = Tridiagonal(self.gram, self.workspace)

    def _count(self, x: float) -> int:
        if x not in self._counts:
            self._counts[x] = self._band.count_above(x)
        return self._counts[x]

    def _eigenvalue(self, index: int) -> float:
        if index not in self._found:
            if index + 1 <= _LEADING_SHARE * _LEADING_SIZES[-1] and index < self._band.size // 4:
                self._found[index] = self._leading_eigenvalue(index)
            else:
                self._found.update(self._interior(index))
        return self._found[index]

    def _interior(self, index: int) -> dict[int, float]:
        """Eigenvalue number `index` and its neighbours, by counts and inverse iteration."""
        shift = self._search(index + 0.5)
        near = self._near(shift)
        wanted = [i for i in (index, index + 1 if 2 * (index + 1) == self._band.size else index) if i in near]
        if index not in near:
            raise UnsureError("inverse iteration did not reach the median")
        above = self._count(shift)
        # What lies between the shift and the wanted ones must have been found: count on their far sides.
        if wanted[-1] >= above and self._count(near[wanted[-1]] * (1.0 - 1e-6)) != wanted[-1] + 1:
            raise UnsureError("inverse iteration missed an eigenvalue")
        if wanted[0] < above and self._count(near[wanted[0]] * (1.0 + 1e-6)) != wanted[0]:
            raise UnsureError("inverse iteration missed an eigenvalue")
        return {i: near[i] for i in wanted}

    def _search(self, target: float) -> float:
        """A shift with about `target` eigenvalues above it, by regula falsi in log σ."""
        p = self._band.size
        low, high = (-math.inf, float(p)), (math.inf, 0.0)
        # The typical diagonal entry is the mean eigenvalue of the bulk, and its median is not far below.
        x = 0.8 * float(np.median(np.einsum("ijj->ij", self._band.diagonal)))
        for _ in range(_SEARCH_STEPS):
            if not x > 0.0:
                break
            above = self._count(x)
            if abs(above - target) <= _NEAR:
                return x
            if above > target:
                low = (math.log(x), float(above))
            else:
                high = (math.log(x), float(above))
            if math.isfinite(low[0]) and math.isfinite(high[0]):
                share = (low[1] - target) / (low[1] - high[1])
                x = math.exp(low[0] + (high[0] - low[0]) * min(max(share, 0.05), 0.95))
            else:
                x *= math.exp(min(max(2.5 * (above - target) / p, -1.5), 1.5) * 1.2)
        raise UnsureError("no shift near the median was found")

    def _near(self, shift: float) -> dict[int, float]:
        """The eigenvalues nearest to `shift`, by their number from the top, by inverse subspace iteration."""
        elimination = self._band.eliminate(shift, inverses=True)
        blocks = len(self._band.diagonal)
        start = np.random.default_rng(0).standard_normal((blocks * WIDTH, _SUBSPACE))
        vectors = start.reshape(blocks, WIDTH, _SUBSPACE)
        for _ in range(_INVERSE_STEPS):
            flat = np.linalg.qr(elimination.solve(vectors).reshape(-1, _SUBSPACE))[0]
            vectors = flat.reshape(blocks, WIDTH, _SUBSPACE)
        # Rayleigh–Ritz on the inverse: inside a spectrum, that on B itself gives values that belong to nothing.
        flat, solved = vectors.reshape(-1, _SUBSPACE), elimination.solve(vectors).reshape(-1, _SUBSPACE)
        inverse, rotation = np.linalg.eigh(flat.T @ solved)
        flat = flat @ rotation
        image = self._band.times(flat.reshape(vectors.shape)).reshape(flat.shape)
        values = np.einsum("ik,ik->k", flat, image)
        residuals = np.linalg.norm(image - flat * values, axis=0)
        # A residual r moves an eigenvalue by r²/gap; gaps here are some shift/p.
        good = residuals**2 * self._band.size <= _INVERSE_TOLERANCE * shift**2
        split = int(np.count_nonzero(inverse < 0.0))
        below, above = _until_bad(values[:split], good[:split]), _until_bad(values[split:][::-1], good[split:][::-1])
        numbered = {elimination.above - 1 - i: value for i, value in enumerate(above)}
        numbered.update({elimination.above + i: value for i, value in enumerate(below)})
        return numbered

    def _leading_pairs(self, count: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Leading Ritz values, vectors and residuals, from a submatrix large enough for all but the last to converge."""
        if self._leading is not None and self._leading[0].size >= count:
            return self._leading
        for size in _LEADING_SIZES:
            blocks = size // WIDTH
            if count > _LEADING_SHARE * size or size > self._band.size - 2 * WIDTH:
                continue
            dense = self._band.leading(blocks)
            part = Tridiagonal(Gram(dense, float(np.trace(dense))), Workspace())
            values, vectors = part.leading(count)
            residuals = np.linalg.norm(self._band.below[blocks - 1] @ vectors[-WIDTH:], axis=0)
            self._leading = (values**2, vectors, residuals)
            if np.all(residuals[: max(1, count - 1)] <= self._leading_tolerance(values)):
                return self._leading
        raise UnsureError("the leading eigenvectors did not converge")

    def _leading_tolerance(self, values: FloatArray) -> float:
        """In float32, what rounding leaves of an eigenvector anyway: see the error estimates of the filter."""
        share = 8.0 / self._band.size if self.gram.square.dtype == np.float32 else 1000.0
        return share * self.precision * float(values[0]) ** 2

    def _leading_eigenvalue(self, index: int) -> float:
        # A level that was counted before, the threshold, with eigenvalue `index` at or below it.
        threshold = min((x for x, above in self._counts.items() if above <= index), default=math.inf)
        dropped = math.isfinite(threshold)
        squares, _, residuals = self._leading_pairs(index + (1 if dropped else 2))
        square = float(squares[index])
        if residuals[index] <= 1e-6 * square:
            return square
        # The first dropped one, at the edge of the bulk, converges last: a level with no more above it will do, if it is
        # well below the threshold.
        for factor in _BOUNDS if dropped else ():
            level = square * factor**2
            if level < threshold * (1.0 - 1e-4) and self._count(level) <= index:
                return level
        raise UnsureError("a leading singular value could not be bounded")

    def _vectors(self, count: int) -> tuple[FloatArray, FloatArray]:
        _, vectors, _ = self._leading_pairs(count + 1)
        basis = np.zeros((self._band.size, count), self.gram.square.dtype, order="F")
        basis[: len(vectors)] = vectors[:, :count]
        apply_q(self._reflectors, basis, len(vectors))
        work = self.workspace.array("lapack", (WIDTH * count + WIDTH * (WIDTH + 1),), basis.dtype)
        return checked_ritz(self.gram, basis, work)
