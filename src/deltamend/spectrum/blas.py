"""Products of matrices by BLAS, called as `fortran_calls` says. Of symmetric matrices the lower triangle is used."""

from __future__ import annotations

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.fortran_calls import at, call, column_major, matrix_pointer, prefix_of, require


def gemm(a: FloatArray, b: FloatArray, c: FloatArray, *, alpha: float = 1.0, beta: float = 0.0) -> None:
    """Compute c ← alpha·a·b + beta·c for matrices that are each row- or column-major.

    Args:
        a: (m, k), float32 or float64.
        b: (k, n), same dtype.
        c: (m, n), same dtype, written.
        alpha: factor of the product.
        beta: factor of what `c` holds; with 0 it is not read.
    """
    prefix = prefix_of(a, b, c)
    if not column_major(c):
        a, b, c = b.T, a.T, c.T
    (m, k), n = a.shape, b.shape[1]
    require(b.shape == (k, n) and c.shape == (m, n), f"shapes do not fit: {a.shape} by {b.shape} into {c.shape}")
    flags: list[bytes] = []
    pointers: list[tuple[int, int]] = []
    for operand in (a, b):
        plain = column_major(operand)
        flags.append(b"N" if plain else b"T")
        pointers.append(matrix_pointer(operand if plain else operand.T))
    (pa, lda), (pb, ldb), (pc, ldc) = *pointers, matrix_pointer(c, writes=True)
    call(prefix, "gemm", *flags, m, n, k, float(alpha), at(pa), lda, at(pb), ldb, float(beta), at(pc), ldc)


def syrk(a: FloatArray, c: FloatArray, *, beta: float = 0.0) -> None:
    """Lower triangle of c ← a·aᵀ + beta·c.

    Args:
        a: (p, k), row- or column-major, float32 or float64.
        c: (p, p), column-major, same dtype; the strict upper triangle is left alone.
        beta: factor of what `c` holds; with 0 it is not read.
    """
    prefix = prefix_of(a, c)
    p, k = a.shape
    require(c.shape == (p, p), f"shapes do not fit: {a.shape} into {c.shape}")
    plain = column_major(a)
    pa, lda = matrix_pointer(a if plain else a.T)
    pc, ldc = matrix_pointer(c, writes=True)
    call(prefix, "syrk", b"L", b"N" if plain else b"T", p, k, 1.0, at(pa), lda, float(beta), at(pc), ldc)


def symm(a: FloatArray, b: FloatArray, c: FloatArray) -> None:
    """Compute c ← a·b for a symmetric `a` of which only the lower triangle is read.

    Args:
        a: (p, p), column-major, float32 or float64.
        b: (p, k), column-major, same dtype.
        c: (p, k), column-major, same dtype, written.
    """
    prefix = prefix_of(a, b, c)
    p, k = b.shape
    require(a.shape == (p, p) and c.shape == (p, k), f"shapes do not fit: {a.shape} by {b.shape} into {c.shape}")
    (pa, lda), (pb, ldb), (pc, ldc) = matrix_pointer(a), matrix_pointer(b), matrix_pointer(c, writes=True)
    call(prefix, "symm", b"L", b"L", p, k, 1.0, at(pa), lda, at(pb), ldb, 0.0, at(pc), ldc)


def syr2k(a: FloatArray, b: FloatArray, c: FloatArray, *, alpha: float) -> None:
    """Lower triangle of c ← c + alpha·(a·bᵀ + b·aᵀ).

    Args:
        a: (p, k), column-major, float32 or float64.
        b: (p, k), column-major, same dtype.
        c: (p, p), column-major, same dtype, written.
        alpha: factor of the update.
    """
    prefix = prefix_of(a, b, c)
    p, k = a.shape
    require(b.shape == (p, k) and c.shape == (p, p), f"shapes do not fit: {a.shape}, {b.shape} into {c.shape}")
    (pa, lda), (pb, ldb), (pc, ldc) = matrix_pointer(a), matrix_pointer(b), matrix_pointer(c, writes=True)
    call(prefix, "syr2k", b"L", b"N", p, k, float(alpha), at(pa), lda, at(pb), ldb, 1.0, at(pc), ldc)


def trmm(t: FloatArray, b: FloatArray) -> None:
    """Compute b ← b·t for an upper triangular t.

    Args:
        t: (k, k), column-major, float32 or float64.
        b: (p, k), column-major, same dtype, written.
    """
    prefix = prefix_of(t, b)
    p, k = b.shape
    require(t.shape == (k, k), f"shapes do not fit: {b.shape} by {t.shape}")
    (pt, ldt), (pb, ldb) = matrix_pointer(t), matrix_pointer(b, writes=True)
    call(prefix, "trmm", b"R", b"U", b"N", b"N", p, k, 1.0, at(pt), ldt, at(pb), ldb)
