from __future__ import annotations

import numpy as np
import pytest

from deltamend.matrices import buffers as module
from deltamend.matrices.buffers import Buffers, bytes_of, norm_squared, row_chunks, same_bytes


def test_a_buffer_is_reused_and_begins_on_a_cache_line() -> None:
    buffers = Buffers()
    first = buffers.get("rows", (3, 5), np.dtype(np.float32))
    assert first.shape == (3, 5)
    assert first.flags.c_contiguous
    for shape, dtype in (((3, 5), np.float32), ((2, 2), np.float64), ((7,), np.int8)):
        again = buffers.get("rows", shape, np.dtype(dtype))
        assert again.ctypes.data == first.ctypes.data
        assert again.ctypes.data % 64 == 0
        assert (again.shape, again.dtype) == (shape, np.dtype(dtype))


def test_a_buffer_grows_and_another_name_is_other_memory() -> None:
    buffers = Buffers()
    small = buffers.get("rows", (2, 2), np.dtype(np.float32))
    other = buffers.get("columns", (2, 2), np.dtype(np.float32))
    large = buffers.get("rows", (1000, 20), np.dtype(np.float32))
    large[:] = 1.0
    other[:] = 2.0
    assert not np.shares_memory(small, other)
    assert large.sum() == 20000.0
    assert np.shares_memory(buffers.get("rows", (2, 2), np.dtype(np.float32)), large)


@pytest.mark.parametrize("shape", [(1, 1), (10, 7), (9, 100), (100, 9), (5, 64)])
def test_chunks_cover_every_row_once(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 64)
    spans = list(row_chunks(shape))
    assert [row for span in spans for row in range(*span)] == list(range(shape[0]))
    assert all((stop - start) * shape[1] <= 64 or stop - start == 1 for start, stop in spans)


def test_a_matrix_of_nothing_has_no_chunks() -> None:
    assert list(row_chunks((1 << 60, 0))) == []
    assert list(row_chunks((0, 5))) == []


def test_bytes_are_a_view() -> None:
    array = np.zeros((2, 3), np.float32)
    view = bytes_of(array)
    assert view.nbytes == 24
    view[:4] = np.float32(1.5).tobytes()
    assert array[0, 0] == 1.5


def test_same_bytes_is_stricter_than_equality_and_knows_nan() -> None:
    values = np.array([1.0, np.nan, 0.0], np.float32)
    assert same_bytes(values, values.copy())
    assert not same_bytes(np.array([0.0], np.float32), np.array([-0.0], np.float32))
    assert not same_bytes(values, np.array([1.0, np.nan, 1.0], np.float32))


def test_the_norm_is_that_of_float64() -> None:
    values = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    assert norm_squared(values) == pytest.approx(float(np.sum(values.astype(np.float64) ** 2)), rel=1e-6)


@pytest.mark.parametrize("exponent", [-140, -126, -110, -80, -40, 0, 40])
def test_the_norm_of_small_and_large_entries_is_right(exponent: int) -> None:
    """Squares of entries below 1e-19 vanish in fp32; the norm does not."""
    values = np.ldexp(np.random.default_rng(0).standard_normal((100, 70)), exponent).astype(np.float32)
    exact = float(np.square(values.astype(np.float64)).sum())
    assert norm_squared(values) == pytest.approx(exact, rel=1e-5)
    assert norm_squared(values * 0) == 0.0
    mixed = np.concatenate([values, np.full((1, 70), np.float32(1e-17))])
    assert norm_squared(mixed) == pytest.approx(exact + 70 * float(np.float32(1e-17)) ** 2, rel=1e-5)
