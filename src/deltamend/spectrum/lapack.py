"""Factorisations and eigenvalues by LAPACK, called as `fortran_calls` says. Of symmetric matrices the lower triangle is used.

Every function raises `LapackError` where the routine reports failure.
"""

from __future__ import annotations

import ctypes

import numpy as np

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.fortran_calls import (
    INT_LIMIT,
    LapackError,
    at,
    call,
    call_lapack,
    matrix_pointer,
    prefix_of,
    require,
    vector_pointer,
)


def sytrd(a: FloatArray, work: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Reduce a symmetric matrix to tridiagonal form, in place: a = Q·T·Qᵀ.

    Args:
        a: (p, p), column-major, float32 or float64. Its lower triangle is read and then holds the reflectors of Q; the
            strict upper triangle is left alone.
        work: at least p entries, 64·p for speed, same dtype.

    Returns:
        Diagonal (p,), subdiagonal (p − 1,) and reflector scales (p − 1,), same dtype.
    """
    prefix = prefix_of(a, work)
    p = a.shape[0]
    require(a.shape == (p, p), f"expected a square matrix; got {a.shape}")
    pa, lda = matrix_pointer(a, writes=True)
    pw = vector_pointer(work, p, writes=True)
    # LAPACK wants room for one entry where p = 1 has none.
    d, e, tau = (np.zeros(max(1, size), a.dtype) for size in (p, p - 1, p - 1))
    lwork = min(work.size, INT_LIMIT)
    call_lapack(prefix, "sytrd", b"L", p, at(pa), lda, *(at(v.ctypes.data) for v in (d, e, tau)), at(pw), lwork)
    return d, e[: p - 1], tau[: p - 1]


def ormtr(a: FloatArray, tau: FloatArray, c: FloatArray, work: FloatArray) -> None:
    """Compute c ← Q·c with the Q that `sytrd` left in the lower triangle of `a`.

    Args:
        a: (p, p), column-major, float32 or float64, as `sytrd` left it.
        tau: (p − 1,), same dtype.
        c: (p, k), column-major, same dtype, written.
        work: at least k entries, 64·k + 4160 for speed, same dtype.
    """
    prefix = prefix_of(a, tau, c, work)
    p, k = c.shape
    require(a.shape == (p, p), f"shapes do not fit: {a.shape} by {c.shape}")
    (pa, lda), (pc, ldc) = (
        matrix_pointer(a, writes=True),
        matrix_pointer(c, writes=True),
    )  # LAPACK touches and restores `a`
    pt, pw = vector_pointer(tau, p - 1), vector_pointer(work, k, writes=True)
    lwork = min(work.size, INT_LIMIT)
    call_lapack(prefix, "ormtr", b"L", b"L", b"N", p, k, at(pa), lda, at(pt), at(pc), ldc, at(pw), lwork)


def sterf(d: FloatArray, e: FloatArray) -> FloatArray:
    """All eigenvalues of a symmetric tridiagonal matrix, ascending.

    Args:
        d: diagonal (p,), float32 or float64.
        e: subdiagonal (p − 1,), same dtype.
    """
    prefix = prefix_of(d, e)
    p = d.size
    values, off = d.copy(), np.append(e, e.dtype.type(0))
    require(p >= 1 and e.size == p - 1, f"expected a diagonal and a subdiagonal; got {d.shape} and {e.shape}")
    call_lapack(
        prefix, "sterf", p, at(vector_pointer(values, p, writes=True)), at(vector_pointer(off, p - 1, writes=True))
    )
    return values


def bisect(d: FloatArray, e: FloatArray, index: int) -> float:
    """Eigenvalue number `index` (from 0, ascending) of a symmetric tridiagonal matrix, by bisection.

    Args:
        d: diagonal (p,), float64.
        e: subdiagonal (p − 1,), float64.
        index: 0 to p − 1.
    """
    require(0 <= index < d.size, f"expected an index from 0 to {d.size - 1}; got {index}")
    found, values = _stebz(b"I", d, e, (0.0, 0.0), index + 1, 0.0)
    if found != 1:
        raise LapackError(f"bisection found {found} eigenvalues in place of one")
    return float(values[0])


def count_above(d: FloatArray, e: FloatArray, bound: float) -> int:
    """How many eigenvalues of a symmetric tridiagonal matrix exceed `bound`, by a Sturm sequence.

    Args:
        d: diagonal (p,), float64.
        e: subdiagonal (p − 1,), float64.
        bound: any finite number.
    """
    top = float(np.max(np.abs(d)) + 2.0 * np.max(np.abs(e), initial=0.0)) + 1.0
    if bound >= top:
        return 0
    # A tolerance wider than the interval: the bisection ends at the counts it starts from.
    return _stebz(b"V", d, e, (float(bound), 2.0 * top), 0, 4.0 * (top + abs(float(bound))))[0]


def _stebz(
    which: bytes, d: FloatArray, e: FloatArray, interval: tuple[float, float], number: int, tolerance: float
) -> tuple[int, FloatArray]:
    p = d.size
    require(prefix_of(d, e) == "d" and p >= 1 and e.size == p - 1, "expected float64 diagonal and subdiagonal")
    values, work = np.zeros(p), np.zeros(4 * p)
    integers = np.zeros(5 * p, np.int32)  # iblock (p), isplit (p), iwork (3p)
    start, found, splits = integers.ctypes.data, ctypes.c_int(), ctypes.c_int()
    off = np.append(e, 0.0)
    call_lapack(
        *("d", "stebz", which, b"E", p, *interval, number, number, tolerance),
        *(at(vector_pointer(d, p)), at(vector_pointer(off, p))),
        *(ctypes.byref(found), ctypes.byref(splits), at(values.ctypes.data)),
        *(at(start), at(start + 4 * p), at(work.ctypes.data), at(start + 8 * p)),
    )
    return found.value, values


def stemr(d: FloatArray, e: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """The `count` largest eigenvalues of a symmetric tridiagonal matrix and their vectors.

    Args:
        d: diagonal (p,), float64.
        e: subdiagonal (p − 1,), float64.
        count: 1 to p.

    Returns:
        Eigenvalues (count,), ascending, and vectors (p, count), column-major, float64.
    """
    p = d.size
    require(prefix_of(d, e) == "d" and p >= 1 and e.size == p - 1, "expected float64 diagonal and subdiagonal")
    require(1 <= count <= p, f"expected 1 to {p} eigenvalues; got {count}")
    diagonal, off = d.copy(), np.append(e, 0.0)
    values, vectors = np.zeros(p), np.zeros((p, count), order="F")
    support, found, accurate = np.zeros(2 * count, np.int32), ctypes.c_int(), ctypes.c_int(1)
    work, iwork = np.zeros(18 * p), np.zeros(10 * p, np.int32)
    call_lapack(
        *("d", "stemr", b"V", b"I", p, at(diagonal.ctypes.data), at(off.ctypes.data), 0.0, 0.0, p - count + 1, p),
        *(ctypes.byref(found), at(values.ctypes.data), at(vectors.ctypes.data), p, count),
        *(at(support.ctypes.data), ctypes.byref(accurate)),
        *(at(work.ctypes.data), 18 * p, at(iwork.ctypes.data), 10 * p),
    )
    if found.value != count:
        raise LapackError(f"found {found.value} of {count} eigenvectors")
    return values[:count], vectors


def orthonormalise(a: FloatArray, work: FloatArray) -> FloatArray:
    """Replace the columns of `a` by the Q of its QR factorisation; returns the diagonal of R.

    Args:
        a: (p, k) with k ≤ p, column-major, float32 or float64, written.
        work: at least k entries, 64·k for speed, same dtype.

    Returns:
        Diagonal of R (k,); a near-zero entry says that the columns were dependent.
    """
    diagonal, tau = qr(a, work)
    generate_q(a, tau, work)
    return diagonal


def qr(a: FloatArray, work: FloatArray) -> tuple[FloatArray, FloatArray]:
    """QR factorisation in place: R in the upper triangle, reflectors below it.

    Args:
        a: (p, k), column-major, float32 or float64, written.
        work: at least k entries, 64·k for speed, same dtype.

    Returns:
        Diagonal of R and reflector scales, min(p, k) entries each.
    """
    prefix = prefix_of(a, work)
    p, k = a.shape
    pa, lda = matrix_pointer(a, writes=True)
    pw = vector_pointer(work, k, writes=True)
    tau = np.zeros(min(p, k), a.dtype)
    call_lapack(prefix, "geqrf", p, k, at(pa), lda, at(tau.ctypes.data), at(pw), min(work.size, INT_LIMIT))
    return a.diagonal().copy(), tau


def generate_q(a: FloatArray, tau: FloatArray, work: FloatArray) -> None:
    """Turn the reflectors that `qr` left in `a` into the columns of Q, in place.

    Args:
        a: (p, k) with k ≤ p, column-major, float32 or float64, written.
        tau: (k,), same dtype.
        work: at least k entries, 64·k for speed, same dtype.
    """
    prefix = prefix_of(a, tau, work)
    p, k = a.shape
    require(k <= p, f"expected at least as many rows as columns; got {a.shape}")
    pa, lda = matrix_pointer(a, writes=True)
    pt, pw = vector_pointer(tau, k), vector_pointer(work, k, writes=True)
    call_lapack(prefix, "orgqr", p, k, k, at(pa), lda, at(pt), at(pw), min(work.size, INT_LIMIT))


def larft(v: FloatArray, tau: FloatArray) -> FloatArray:
    """The T of a product of reflectors, I − V·T·Vᵀ.

    Args:
        v: (p, k), column-major, unit lower trapezoidal, float32 or float64.
        tau: reflector scales (k,), same dtype.

    Returns:
        Upper triangular (k, k), column-major, zero below the diagonal.
    """
    prefix = prefix_of(v, tau)
    p, k = v.shape
    t = np.zeros((k, k), v.dtype, order="F")
    (pv, ldv), pt = matrix_pointer(v), vector_pointer(tau, k)
    call(prefix, "larft", b"F", b"C", p, k, at(pv), ldv, at(pt), at(t.ctypes.data), k)
    return t


def sysv(a: FloatArray, b: FloatArray, work: FloatArray) -> int:
    """Solve a·x = b for a symmetric indefinite `a` (Bunch–Kaufman), and count its positive eigenvalues.

    Args:
        a: (k, k), column-major, float32 or float64; its lower triangle is replaced by the factors.
        b: (k, r), column-major, same dtype, replaced by x.
        work: at least k entries, 64·k for speed, same dtype.

    Returns:
        How many eigenvalues of `a` are positive, by Sylvester's law from the blocks of D.
    """
    prefix = prefix_of(a, b, work)
    k, columns = b.shape
    require(a.shape == (k, k), f"shapes do not fit: {a.shape} by {b.shape}")
    (pa, lda), (pb, ldb), pw = (
        matrix_pointer(a, writes=True),
        matrix_pointer(b, writes=True),
        vector_pointer(work, k, writes=True),
    )
    pivots = np.zeros(k, np.int32)
    call_lapack(
        *(prefix, "sysv", b"L", k, columns, at(pa), lda, at(pivots.ctypes.data), at(pb), ldb),
        *(at(pw), min(work.size, INT_LIMIT)),
    )
    # A 2×2 block of D, marked by negative pivots, is always indefinite.
    singles = a.diagonal()[pivots > 0]
    return int(np.count_nonzero(singles > 0.0)) + int(np.count_nonzero(pivots < 0)) // 2
