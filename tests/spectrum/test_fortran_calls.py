"""Wrong arguments never reach BLAS or LAPACK, and calls release the global lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.linalg import cython_blas

from deltamend.spectrum import blas, fortran_calls, lapack
from deltamend.spectrum.fortran_calls import LapackError

F4 = np.zeros((4, 4), np.float32, order="F")


F8 = np.zeros((4, 4), np.float64, order="F")


V8 = np.zeros(4)


WORK = np.zeros(1000)


@pytest.mark.parametrize(
    "call",
    [
        lambda: blas.gemm(F4, F8, F8),
        lambda: blas.gemm(F8, np.zeros((3, 4), order="F"), F8),
        lambda: blas.gemm(F8, F8, np.zeros((4, 3), order="F")),
        lambda: blas.gemm(F8[::2, ::2], F8[:2, :2], F8[:2, :2]),
        lambda: blas.gemm(F8, F8, np.broadcast_to(np.zeros(4), (4, 4))),
        lambda: blas.syrk(F8, np.zeros((3, 3), order="F")),
        lambda: blas.syrk(F8, np.zeros((4, 4), order="C")[::-1]),
        lambda: blas.symm(F8, np.zeros((3, 2), order="F"), np.zeros((3, 2), order="F")),
        lambda: blas.syr2k(F8, F8, np.zeros((5, 5), order="F"), alpha=1.0),
        lambda: blas.trmm(F8, np.zeros((4, 3), order="F")),
        lambda: lapack.sytrd(F8[:, :3], WORK),
        lambda: lapack.sytrd(F8.copy(order="F"), np.zeros(3)),
        lambda: lapack.ormtr(F8, np.zeros(2), F8, WORK),
        lambda: lapack.sterf(V8, V8),
        lambda: lapack.sterf(np.zeros(0), np.zeros(0)),
        lambda: lapack.bisect(V8, np.zeros(3), 4),
        lambda: lapack.bisect(V8, V8, 0),
        lambda: lapack.bisect(V8.astype(np.float32), np.zeros(3, np.float32), 0),
        lambda: lapack.stemr(V8, np.zeros(3), 5),
        lambda: lapack.stemr(V8, np.zeros(3), 0),
        lambda: lapack.qr(np.zeros((4, 4)), WORK[::2]),
        lambda: lapack.qr(np.zeros((4, 0), order="F"), WORK),
        lambda: lapack.generate_q(np.zeros((2, 4), order="F"), V8, WORK),
        lambda: lapack.generate_q(F8, np.zeros(3), WORK),
        lambda: lapack.sysv(F8, np.zeros((3, 3), order="F"), WORK),
        lambda: lapack.larft(F8, np.zeros(3)),
        lambda: lapack.qr(np.zeros((4, 4), np.complex128, order="F"), WORK),
        lambda: blas.syrk(np.zeros((4, 4), ">f8", order="F"), F8),
    ],
)
def test_wrong_arguments_never_reach_lapack(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|fit"):
        call()


def test_read_only_output_is_refused() -> None:
    frozen, frozen_work = np.zeros((4, 4), order="F"), np.zeros(400)
    frozen.flags.writeable = frozen_work.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        lapack.qr(frozen, WORK)
    with pytest.raises(ValueError, match="writable"):
        lapack.qr(np.zeros((4, 4), order="F"), frozen_work)


def test_failure_of_lapack_is_an_error() -> None:
    with pytest.raises(LapackError, match="dsterf failed"):
        lapack.sterf(np.array([1.0, np.nan, 2.0]), np.array([1.0, 1.0]))
    with pytest.raises(LapackError, match="dsysv failed"):
        lapack.sysv(np.zeros((3, 3), order="F"), np.zeros((3, 1), order="F"), WORK)


def test_an_unexpected_signature_is_refused() -> None:
    with pytest.raises(ImportError, match="unexpected signature"):
        fortran_calls._load(cython_blas, "sgemm", 12)


def test_the_global_lock_is_released() -> None:
    a = np.ones((1500, 1500), np.float32, order="F")
    square = np.empty_like(a, order="F")
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    time.sleep(0.01)
    before = ticks
    blas.gemm(a, a, square)
    during = ticks - before
    done.set()
    ticker.join()
    assert during > 3
