"""BLAS and LAPACK as scipy ships them, called without holding Python's global lock.

scipy's own wrappers hold the lock while they compute, so two threads over two tensors take as long as one. The same
routines reached through the function pointers of `scipy.linalg.cython_blas` and `cython_lapack` run side by side. A
wrong size handed to one of them ends the process, so every wrapper here checks dtype, order, writability and sizes of
every array first and raises `ValueError`.

All matrices are two-dimensional; "column-major" means stride one along the first axis (a slice of a larger array will
do). Routines work on the lower triangle. `LapackError` carries a nonzero `info`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

from deltamend.spectrum.blocks import FloatArray

_PREFIX = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}
_REAL = {"s": ctypes.c_float, "d": ctypes.c_double}
_INT_LIMIT = 2**31 - 1


class LapackError(ArithmeticError):
    """A routine reported failure (`info` ≠ 0): no convergence, or a number it cannot work with."""


def _load(module: Any, name: str, arguments: int) -> Callable[..., Any]:
    """The routine `name` as a ctypes function of `arguments` pointers; ctypes lets go of the global lock in the call."""
    capsule = module.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = get_name(capsule)
    if signature.count(b"*") != arguments:  # the signature is the capsule's name: refuse one we were not written for
        raise ImportError(f"scipy's {name} has an unexpected signature: {signature.decode()}")
    result = ctypes.c_int if signature.startswith(b"int ") else None
    return ctypes.CFUNCTYPE(result, *[ctypes.c_void_p] * arguments)(get_pointer(capsule, signature))


_ARGUMENTS = {
    "gemm": 13,
    "syrk": 10,
    "symm": 12,
    "syr2k": 12,
    "trmm": 11,
    "sytrd": 10,
    "sterf": 4,
    "stemr": 21,
    "stebz": 18,
    "ormtr": 13,
    "geqrf": 8,
    "orgqr": 9,
    "larft": 9,
    "sysv": 11,
}
_BLAS = ("gemm", "syrk", "symm", "syr2k", "trmm")
_ROUTINES = {
    (prefix, name): _load(cython_blas if name in _BLAS else cython_lapack, prefix + name, arguments)
    for prefix in "sd"
    for name, arguments in _ARGUMENTS.items()
}


def _prefix(*arrays: FloatArray) -> str:
    """`s` or `d`, the same for all arrays."""
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) != 1 or (dtype := dtypes.pop()) not in _PREFIX:
        raise ValueError(f"expected arrays of one dtype, float32 or float64, in native byte order; got {dtypes}")
    return _PREFIX[dtype]


def _matrix(array: FloatArray, *, writes: bool = False) -> tuple[int, int]:
    """Address and leading dimension of a column-major matrix."""
    if array.ndim != 2 or min(array.shape) < 1:
        raise ValueError(f"expected a non-empty matrix; got shape {array.shape}")
    if writes and not array.flags.writeable:
        raise ValueError("expected a writable matrix")
    rows, columns = array.shape
    if rows > 1 and array.strides[0] != array.itemsize:
        raise ValueError(f"expected a column-major matrix; got strides {array.strides} for shape {array.shape}")
    leading, rest = divmod(array.strides[1], array.itemsize) if columns > 1 else (rows, 0)
    if rest or leading < rows or leading > _INT_LIMIT or max(array.shape) > _INT_LIMIT or not array.flags.aligned:
        raise ValueError(f"expected columns that follow one another; got strides {array.strides}")
    return array.ctypes.data, leading


def _vector(array: FloatArray, length: int, *, writes: bool = False) -> int:
    """Address of a contiguous vector of at least `length` entries."""
    if array.ndim != 1 or array.size < length or not array.flags.c_contiguous or not array.flags.aligned:
        raise ValueError(f"expected a contiguous vector of {length} entries; got shape {array.shape}")
    if writes and not array.flags.writeable:
        raise ValueError("expected a writable vector")
    return array.ctypes.data


def _call(prefix: str, name: str, *arguments: Any) -> None:
    """Call with integers, floats and flags by reference and addresses (`ctypes.c_void_p`) as they are."""
    real = _REAL[prefix]
    converted: list[Any] = []
    for argument in arguments:
        if isinstance(argument, float):
            converted.append(ctypes.byref(real(argument)))
        elif isinstance(argument, int):
            converted.append(ctypes.byref(ctypes.c_int(argument)))
        else:
            converted.append(argument)
    _ROUTINES[prefix, name](*converted)


def _call_lapack(prefix: str, name: str, *arguments: Any) -> None:
    """`_call` for a routine that ends with `info`."""
    info = ctypes.c_int(0)
    _call(prefix, name, *arguments, ctypes.byref(info))
    if info.value != 0:
        raise LapackError(f"LAPACK's {prefix}{name} failed with info = {info.value}")


def _at(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def column_major(array: FloatArray) -> bool:
    """Whether a matrix can be handed over as it is."""
    try:
        _matrix(array)
    except ValueError:
        return False
    return True


def gemm(a: FloatArray, b: FloatArray, c: FloatArray, *, alpha: float = 1.0, beta: float = 0.0) -> None:
    """Compute c ← alpha·a·b + beta·c for matrices that are each row- or column-major.

    Args:
        a: (m, k), float32 or float64.
        b: (k, n), same dtype.
        c: (m, n), same dtype, written.
        alpha: factor of the product.
        beta: factor of what `c` holds; with 0 it is not read.
    """
    prefix = _prefix(a, b, c)
    if not column_major(c):
        a, b, c = b.T, a.T, c.T
    (m, k), n = a.shape, b.shape[1]
    _require(b.shape == (k, n) and c.shape == (m, n), f"shapes do not fit: {a.shape} by {b.shape} into {c.shape}")
    flags: list[bytes] = []
    pointers: list[tuple[int, int]] = []
    for operand in (a, b):
        plain = column_major(operand)
        flags.append(b"N" if plain else b"T")
        pointers.append(_matrix(operand if plain else operand.T))
    (pa, lda), (pb, ldb), (pc, ldc) = *pointers, _matrix(c, writes=True)
    _call(prefix, "gemm", *flags, m, n, k, float(alpha), _at(pa), lda, _at(pb), ldb, float(beta), _at(pc), ldc)


def syrk(a: FloatArray, c: FloatArray, *, beta: float = 0.0) -> None:
    """Lower triangle of c ← a·aᵀ + beta·c.

    Args:
        a: (p, k), row- or column-major, float32 or float64.
        c: (p, p), column-major, same dtype; the strict upper triangle is left alone.
        beta: factor of what `c` holds; with 0 it is not read.
    """
    prefix = _prefix(a, c)
    p, k = a.shape
    _require(c.shape == (p, p), f"shapes do not fit: {a.shape} into {c.shape}")
    plain = column_major(a)
    pa, lda = _matrix(a if plain else a.T)
    pc, ldc = _matrix(c, writes=True)
    _call(prefix, "syrk", b"L", b"N" if plain else b"T", p, k, 1.0, _at(pa), lda, float(beta), _at(pc), ldc)


def symm(a: FloatArray, b: FloatArray, c: FloatArray) -> None:
    """Compute c ← a·b for a symmetric `a` of which only the lower triangle is read.

    Args:
        a: (p, p), column-major, float32 or float64.
        b: (p, k), column-major, same dtype.
        c: (p, k), column-major, same dtype, written.
    """
    prefix = _prefix(a, b, c)
    p, k = b.shape
    _require(a.shape == (p, p) and c.shape == (p, k), f"shapes do not fit: {a.shape} by {b.shape} into {c.shape}")
    (pa, lda), (pb, ldb), (pc, ldc) = _matrix(a), _matrix(b), _matrix(c, writes=True)
    _call(prefix, "symm", b"L", b"L", p, k, 1.0, _at(pa), lda, _at(pb), ldb, 0.0, _at(pc), ldc)


def syr2k(a: FloatArray, b: FloatArray, c: FloatArray, *, alpha: float) -> None:
    """Lower triangle of c ← c + alpha·(a·bᵀ + b·aᵀ).

    Args:
        a: (p, k), column-major, float32 or float64.
        b: (p, k), column-major, same dtype.
        c: (p, p), column-major, same dtype, written.
        alpha: factor of the update.
    """
    prefix = _prefix(a, b, c)
    p, k = a.shape
    _require(b.shape == (p, k) and c.shape == (p, p), f"shapes do not fit: {a.shape}, {b.shape} into {c.shape}")
    (pa, lda), (pb, ldb), (pc, ldc) = _matrix(a), _matrix(b), _matrix(c, writes=True)
    _call(prefix, "syr2k", b"L", b"N", p, k, float(alpha), _at(pa), lda, _at(pb), ldb, 1.0, _at(pc), ldc)


def trmm(t: FloatArray, b: FloatArray) -> None:
    """Compute b ← b·t for an upper triangular t.

    Args:
        t: (k, k), column-major, float32 or float64.
        b: (p, k), column-major, same dtype, written.
    """
    prefix = _prefix(t, b)
    p, k = b.shape
    _require(t.shape == (k, k), f"shapes do not fit: {b.shape} by {t.shape}")
    (pt, ldt), (pb, ldb) = _matrix(t), _matrix(b, writes=True)
    _call(prefix, "trmm", b"R", b"U", b"N", b"N", p, k, 1.0, _at(pt), ldt, _at(pb), ldb)


def sytrd(a: FloatArray, work: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Reduce a symmetric matrix to tridiagonal form, in place: a = Q·T·Qᵀ.

    Args:
        a: (p, p), column-major, float32 or float64. Its lower triangle is read and then holds the reflectors of Q; the
            strict upper triangle is left alone.
        work: at least p entries, 64·p for speed, same dtype.

    Returns:
        Diagonal (p,), subdiagonal (p − 1,) and reflector scales (p − 1,), same dtype.
    """
    prefix = _prefix(a, work)
    p = a.shape[0]
    _require(a.shape == (p, p), f"expected a square matrix; got {a.shape}")
    pa, lda = _matrix(a, writes=True)
    pw = _vector(work, p, writes=True)
    # LAPACK wants room for one entry where p = 1 has none.
    d, e, tau = (np.zeros(max(1, size), a.dtype) for size in (p, p - 1, p - 1))
    lwork = min(work.size, _INT_LIMIT)
    _call_lapack(prefix, "sytrd", b"L", p, _at(pa), lda, *(_at(v.ctypes.data) for v in (d, e, tau)), _at(pw), lwork)
    return d, e[: p - 1], tau[: p - 1]


def ormtr(a: FloatArray, tau: FloatArray, c: FloatArray, work: FloatArray) -> None:
    """Compute c ← Q·c with the Q that `sytrd` left in the lower triangle of `a`.

    Args:
        a: (p, p), column-major, float32 or float64, as `sytrd` left it.
        tau: (p − 1,), same dtype.
        c: (p, k), column-major, same dtype, written.
        work: at least k entries, 64·k + 4160 for speed, same dtype.
    """
    prefix = _prefix(a, tau, c, work)
    p, k = c.shape
    _require(a.shape == (p, p), f"shapes do not fit: {a.shape} by {c.shape}")
    (pa, lda), (pc, ldc) = _matrix(a, writes=True), _matrix(c, writes=True)  # LAPACK touches and restores `a`
    pt, pw = _vector(tau, p - 1), _vector(work, k, writes=True)
    lwork = min(work.size, _INT_LIMIT)
    _call_lapack(prefix, "ormtr", b"L", b"L", b"N", p, k, _at(pa), lda, _at(pt), _at(pc), ldc, _at(pw), lwork)


def sterf(d: FloatArray, e: FloatArray) -> FloatArray:
    """All eigenvalues of a symmetric tridiagonal matrix, ascending.

    Args:
        d: diagonal (p,), float32 or float64.
        e: subdiagonal (p − 1,), same dtype.
    """
    prefix = _prefix(d, e)
    p = d.size
    values, off = d.copy(), np.append(e, e.dtype.type(0))
    _require(p >= 1 and e.size == p - 1, f"expected a diagonal and a subdiagonal; got {d.shape} and {e.shape}")
    _call_lapack(prefix, "sterf", p, _at(_vector(values, p, writes=True)), _at(_vector(off, p - 1, writes=True)))
    return values


def bisect(d: FloatArray, e: FloatArray, index: int) -> float:
    """Eigenvalue number `index` (from 0, ascending) of a symmetric tridiagonal matrix, by bisection.

    Args:
        d: diagonal (p,), float64.
        e: subdiagonal (p − 1,), float64.
        index: 0 to p − 1.
    """
    _require(0 <= index < d.size, f"expected an index from 0 to {d.size - 1}; got {index}")
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
    _require(_prefix(d, e) == "d" and p >= 1 and e.size == p - 1, "expected float64 diagonal and subdiagonal")
    values, work = np.zeros(p), np.zeros(4 * p)
    integers = np.zeros(5 * p, np.int32)  # iblock (p), isplit (p), iwork (3p)
    start, found, splits = integers.ctypes.data, ctypes.c_int(), ctypes.c_int()
    off = np.append(e, 0.0)
    _call_lapack(
        *("d", "stebz", which, b"E", p, *interval, number, number, tolerance),
        *(_at(_vector(d, p)), _at(_vector(off, p))),
        *(ctypes.byref(found), ctypes.byref(splits), _at(values.ctypes.data)),
        *(_at(start), _at(start + 4 * p), _at(work.ctypes.data), _at(start + 8 * p)),
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
    _require(_prefix(d, e) == "d" and p >= 1 and e.size == p - 1, "expected float64 diagonal and subdiagonal")
    _require(1 <= count <= p, f"expected 1 to {p} eigenvalues; got {count}")
    diagonal, off = d.copy(), np.append(e, 0.0)
    values, vectors = np.zeros(p), np.zeros((p, count), order="F")
    support, found, accurate = np.zeros(2 * count, np.int32), ctypes.c_int(), ctypes.c_int(1)
    work, iwork = np.zeros(18 * p), np.zeros(10 * p, np.int32)
    _call_lapack(
        *("d", "stemr", b"V", b"I", p, _at(diagonal.ctypes.data), _at(off.ctypes.data), 0.0, 0.0, p - count + 1, p),
        *(ctypes.byref(found), _at(values.ctypes.data), _at(vectors.ctypes.data), p, count),
        *(_at(support.ctypes.data), ctypes.byref(accurate)),
        *(_at(work.ctypes.data), 18 * p, _at(iwork.ctypes.data), 10 * p),
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
    prefix = _prefix(a, work)
    p, k = a.shape
    pa, lda = _matrix(a, writes=True)
    pw = _vector(work, k, writes=True)
    tau = np.zeros(min(p, k), a.dtype)
    _call_lapack(prefix, "geqrf", p, k, _at(pa), lda, _at(tau.ctypes.data), _at(pw), min(work.size, _INT_LIMIT))
    return a.diagonal().copy(), tau


def generate_q(a: FloatArray, tau: FloatArray, work: FloatArray) -> None:
    """Turn the reflectors that `qr` left in `a` into the columns of Q, in place.

    Args:
        a: (p, k) with k ≤ p, column-major, float32 or float64, written.
        tau: (k,), same dtype.
        work: at least k entries, 64·k for speed, same dtype.
    """
    prefix = _prefix(a, tau, work)
    p, k = a.shape
    _require(k <= p, f"expected at least as many rows as columns; got {a.shape}")
    pa, lda = _matrix(a, writes=True)
    pt, pw = _vector(tau, k), _vector(work, k, writes=True)
    _call_lapack(prefix, "orgqr", p, k, k, _at(pa), lda, _at(pt), _at(pw), min(work.size, _INT_LIMIT))


def larft(v: FloatArray, tau: FloatArray) -> FloatArray:
    """The T of a product of reflectors, I − V·T·Vᵀ.

    Args:
        v: (p, k), column-major, unit lower trapezoidal, float32 or float64.
        tau: reflector scales (k,), same dtype.

    Returns:
        Upper triangular (k, k), column-major, zero below the diagonal.
    """
    prefix = _prefix(v, tau)
    p, k = v.shape
    t = np.zeros((k, k), v.dtype, order="F")
    (pv, ldv), pt = _matrix(v), _vector(tau, k)
    _call(prefix, "larft", b"F", b"C", p, k, _at(pv), ldv, _at(pt), _at(t.ctypes.data), k)
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
    prefix = _prefix(a, b, work)
    k, columns = b.shape
    _require(a.shape == (k, k), f"shapes do not fit: {a.shape} by {b.shape}")
    (pa, lda), (pb, ldb), pw = _matrix(a, writes=True), _matrix(b, writes=True), _vector(work, k, writes=True)
    pivots = np.zeros(k, np.int32)
    _call_lapack(
        *(prefix, "sysv", b"L", k, columns, _at(pa), lda, _at(pivots.ctypes.data), _at(pb), ldb),
        *(_at(pw), min(work.size, _INT_LIMIT)),
    )
    # A 2×2 block of D, marked by negative pivots, is always indefinite.
    singles = a.diagonal()[pivots > 0]
    return int(np.count_nonzero(singles > 0.0)) + int(np.count_nonzero(pivots < 0)) // 2
