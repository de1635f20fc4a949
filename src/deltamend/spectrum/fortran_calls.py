"""Call BLAS and LAPACK as scipy ships them, without holding Python's global lock.

scipy's own wrappers hold the lock while they compute, so two threads over two tensors take as long as one. The same
routines reached through the function pointers of `scipy.linalg.cython_blas` and `cython_lapack` run side by side. A
wrong size handed to one of them ends the process, so every wrapper in `blas` and `lapack` first checks dtype, order,
writability and sizes of every array, and raises `ValueError`.

All matrices are two-dimensional; "column-major" means stride one along the first axis (a slice of a larger array will
do).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from deltamend.spectrum.blocks import FloatArray

_PREFIX = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}
_REAL = {"s": ctypes.c_float, "d": ctypes.c_double}
INT_LIMIT = 2**31 - 1


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


@cache
def _routine(prefix: str, name: str) -> Callable[..., Any]:
    """A routine of scipy's BLAS or LAPACK, by the prefix of its dtype and its name.

    scipy.linalg is imported late: that is a quarter of all start-up time, and a dry run does without it. `one_thread_each` has
    imported it before it limits the threads of BLAS.
    """
    from scipy.linalg import cython_blas, cython_lapack

    return _load(cython_blas if name in _BLAS else cython_lapack, prefix + name, _ARGUMENTS[name])


def prefix_of(*arrays: FloatArray) -> str:
    """`s` or `d`, the same for all arrays."""
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) != 1 or (dtype := dtypes.pop()) not in _PREFIX:
        raise ValueError(f"expected arrays of one dtype, float32 or float64, in native byte order; got {dtypes}")
    return _PREFIX[dtype]


def matrix_pointer(array: FloatArray, *, writes: bool = False) -> tuple[int, int]:
    """Address and leading dimension of a column-major matrix."""
    if array.ndim != 2 or min(array.shape) < 1:
        raise ValueError(f"expected a non-empty matrix; got shape {array.shape}")
    if writes and not array.flags.writeable:
        raise ValueError("expected a writable matrix")
    rows, columns = array.shape
    if rows > 1 and array.strides[0] != array.itemsize:
        raise ValueError(f"expected a column-major matrix; got strides {array.strides} for shape {array.shape}")
    leading, rest = divmod(array.strides[1], array.itemsize) if columns > 1 else (rows, 0)
    if rest or leading < rows or leading > INT_LIMIT or max(array.shape) > INT_LIMIT or not array.flags.aligned:
        raise ValueError(f"expected columns that follow one another; got strides {array.strides}")
    return array.ctypes.data, leading


def vector_pointer(array: FloatArray, length: int, *, writes: bool = False) -> int:
    """Address of a contiguous vector of at least `length` entries."""
    if array.ndim != 1 or array.size < length or not array.flags.c_contiguous or not array.flags.aligned:
        raise ValueError(f"expected a contiguous vector of {length} entries; got shape {array.shape}")
    if writes and not array.flags.writeable:
        raise ValueError("expected a writable vector")
    return array.ctypes.data


def call(prefix: str, name: str, *arguments: Any) -> None:
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
    _routine(prefix, name)(*converted)


def call_lapack(prefix: str, name: str, *arguments: Any) -> None:
    """`call` for a routine that ends with `info`."""
    info = ctypes.c_int(0)
    call(prefix, name, *arguments, ctypes.byref(info))
    if info.value != 0:
        raise LapackError(f"LAPACK's {prefix}{name} failed with info = {info.value}")


def at(address: int) -> ctypes.c_void_p:
    """An address as `call` passes it on."""
    return ctypes.c_void_p(address)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def column_major(array: FloatArray) -> bool:
    """Whether a matrix can be handed over as it is."""
    try:
        matrix_pointer(array)
    except ValueError:
        return False
    return True
